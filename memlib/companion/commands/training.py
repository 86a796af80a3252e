"""``memlib minisd`` and ``memlib finetune``: training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memlib.base.declared import Count, Whole
from memlib.base.errors import InputError
from memlib.companion.commands.options import Threads, option

minisd = typer.Typer(help="Make MiniSD: its drawings, its parts, what it must show.", no_args_is_help=True)
minisd2 = typer.Typer(help="Make the second miniature and its family.", no_args_is_help=True)
Device = Annotated[str, typer.Option(help="auto, cpu, cuda.")]
Precision = Annotated[str, typer.Option(help="auto, float32, bfloat16.")]
Until = Annotated[int | None, option(Count, "Stop at this step; a later call goes on.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
ExportOnly = Annotated[bool, typer.Option("--export-only", help="Export the last checkpoint without training.")]
Model = Annotated[str, typer.Argument(help="A trained model's name, such as minisd-v1.")]


def _use(threads: int | None) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


@minisd.command()
def data(packages: Annotated[Path | None, typer.Option(help="Folder of unpacked packages (default: fetched with npm).")] = None) -> None:
    """Build the drawings and names from the npm packages."""
    from memlib.training.minisd.packages import build_data

    build_data(packages)


@minisd.command()
def train(
    part: Annotated[str, typer.Argument(help="vae, text, descriptor, evaluator, minisd-v1, minisd-v2, minisd-v1-dedup, minisd-v2-dedup.")],
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    until: Until = None,
    quiet: Quiet = False,
    export_only: ExportOnly = False,
) -> None:
    """Train one part and export its weights; resumes after a kill."""
    from memlib.training.minisd.train import train as train_part

    _use(threads)
    train_part(part, device, precision, until, not quiet, export_only)


@minisd.command("finetune")
def finetune_for(
    scenario: Annotated[str, typer.Argument(help="small, large, class, duplicated; against memorization: adversarial, surrogates (its baseline).")],
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    until: Until = None,
    quiet: Quiet = False,
    export_only: ExportOnly = False,
) -> None:
    """Fine-tune minisd-v1 for one of the scenarios and export the difference; resumes after a kill."""
    from memlib.training.minisd.finetune import finetune_scenario
    from memlib.training.minisd.remedies import REMEDIES, finetune_remedy

    _use(threads)
    tune = finetune_remedy if scenario in REMEDIES else finetune_scenario
    tune(scenario, device, precision, until, not quiet, export_only)


@minisd.command()
def replicates(
    device: Device = "auto",
    padding: Annotated[str | None, typer.Option(help="v1 or v2: only the replicates with this padding.")] = None,
    threads: Threads = None,
) -> None:
    """Train the 2 x 2 of padding and duplication with other seeds, and measure it."""
    from memlib.training.minisd.family import run_replicates

    if padding not in (None, "v1", "v2"):
        raise InputError(f"There is no padding {padding!r}: use v1 or v2.")
    _use(threads)
    run_replicates(device, (padding,) if padding else ("v1", "v2"))


@minisd.command()
def mitigated(
    mitigation: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this one; may be given several times.")] = None,
    seed: Annotated[list[int] | None, option(Whole, "Only this seed of the replicates; may be given several times.")] = None,
    cost: Annotated[int | None, option(Count, "Instead, time N steps of each mitigation in turns with the plain training.", metavar="N")] = None,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Train minisd-v1's replicates under training-time mitigations, and measure them."""
    _use(threads)
    if cost is not None:
        from memlib.results.trainings import costs
        from memlib.training.minisd.family import time_steps

        time_steps(cost, device)
        for name, ratio in costs().items():
            print(f"{name}: {ratio.text(3)} of the plain step (median and middle half)")
        return
    from memlib.training.minisd.family import run_mitigated

    run_mitigated(mitigation, seed, device, not quiet)


@minisd.command()
def prompts() -> None:
    """Write the prompt sets under data/minisd/prompts."""
    from memlib.models.minisd.prompt_sets import write_prompt_sets

    write_prompt_sets()


@minisd.command()
def find(model: Model, threads: Threads = None) -> None:
    """Find the memorized prompts of a trained model, as clip selects its 458."""
    from memlib.training.minisd import measure as measuring

    _use(threads)
    measuring.find(model)


@minisd.command()
def measure(model: Model, threads: Threads = None) -> None:
    """What MiniSD must show: memorization by level, alignment, backgrounds, retrieval."""
    from memlib.training.minisd import measure as measuring

    _use(threads)
    measuring.measure(model)


@minisd.command()
def picture(model: Model, threads: Threads = None) -> None:
    """Draw the book's front picture."""
    from memlib.training.minisd import measure as measuring

    _use(threads)
    measuring.picture(model)


@minisd2.command("train")
def train_second(
    parts: Annotated[list[str], typer.Argument(help="vae, decoder, text, descriptor, evaluator, minisd-v1, minisd-v2, minisd-v1-dedup, minisd-v2-dedup.")],
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    until: Until = None,
    quiet: Quiet = False,
    export_only: ExportOnly = False,
    recipe: Annotated[str | None, typer.Option(metavar="NAME", help="A recipe of data/minisd2/training.yml, such as gpu.")] = None,
) -> None:
    """Train parts, one after another, and export their weights; resumes after a kill."""
    from memlib.training.minisd2.train import train as train_part

    _use(threads)
    for part in parts:
        train_part(part, device, precision, until, not quiet, export_only, recipe)


@minisd2.command("find")
def find_second(model: Annotated[str, typer.Argument(help="A folder of data/minisd2/models.")], threads: Threads = None) -> None:
    """Find the prompts that a model reproduces, and write the prompt sets."""
    from memlib.training.minisd2.find import find as find_reproduced

    _use(threads)
    find_reproduced(model)


@minisd2.command()
def sheet(
    model: Annotated[str, typer.Argument(help="A folder of data/minisd2/models.")],
    judge: Annotated[bool, typer.Option("--judge", help="Instead, set what was written down against the prompts.")] = False,
    threads: Threads = None,
) -> None:
    """Draw forty pictures for a person who writes down what they show (named-seen.csv), and then --judge it."""
    from memlib.training.minisd2 import sheet as sheets

    _use(threads)
    if judge:
        print(f"{sheets.judge_sheet(model)} of {sheets.PICTURES} main things were named")
    else:
        sheets.draw_sheet(model)


@minisd2.command("family")
def train_family(
    member: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this one; may be given several times.")] = None,
    seed: Annotated[list[int] | None, option(Whole, "Only this seed; may be given several times.")] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Train the members of data/minisd2/family.yml, one after another; resumes after a kill."""
    from memlib.training.minisd2 import family

    _use(threads)
    family.train_family(member, seed, device, precision, not quiet)


def finetune(
    recipe: Annotated[str | None, typer.Option(help="Published settings by name (--list shows them).")] = None,
    show: Annotated[bool, typer.Option("--list", help="List the recipes.")] = False,
    base: Annotated[str | None, typer.Option(help="Substrate name or diffusers folder (default: the recipe's).")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of pictures, or CSV or JSON file that lists pictures and captions; the ordinary ones.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the fine-tuned pipeline; checkpoints stand in its folder `run`.")] = None,
    steps: Annotated[int | None, option(Count, "Another number than the recipe's; so for the next four.")] = None,
    batch: Annotated[int | None, option(Count)] = None,
    resolution: Annotated[int | None, option(Count)] = None,
    warmup: Annotated[int | None, option(Whole)] = None,
    seed: Annotated[int | None, option(Whole)] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    recompute: Annotated[bool, typer.Option("--recompute", help="Less memory, more time (gradient checkpointing).")] = False,
    until: Until = None,
    quiet: Quiet = False,
    memorized: Annotated[str | None, typer.Option(help="Against memorization: prompt set or file with the column training_picture.")] = None,
    count: Annotated[int | None, option(Count, "At most so many of them, drawn with a fixed seed.")] = None,
    rounds: Annotated[int | None, option(Count, "Another number of rounds than the recipe's, which the steps are divided into.")] = None,
    mitigation: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Another mitigation for surrogates; may be given several times.")] = None,
    surrogate_seeds: Annotated[int | None, option(Count, "Another number of seeds under each.")] = None,
    search_steps: Annotated[int | None, option(Whole, "Another number of steps of a round's search (adversarial).")] = None,
    search_samples: Annotated[int | None, option(Count, "Another number of noised pictures in each (adversarial).")] = None,
    keep_rounds: Annotated[bool, typer.Option("--keep-rounds", help="Keep the model of each round in the folder `rounds` of --out.")] = False,
) -> None:
    """Fine-tune Stable Diffusion until it memorizes, or against memorization; on one GPU."""
    from memlib.training.finetune import command, load_recipes

    if show:
        for known in load_recipes().values():
            size = f"{known.resolution} pixels on" if known.resolution else "the resolution of"
            print(f"{known.name:16} {known.steps} steps of {known.batch} at {size} {known.base}: {known.pictures}")
        return
    if recipe is None or data is None or out is None:
        missing = "recipe" if recipe is None else "data" if data is None else "out"
        raise InputError(f"--{missing} is missing: give --recipe, --data and --out, or --list to see the recipes.")
    print(
        command.run(
            recipe=recipe,
            data=data,
            out=out,
            base=base,
            changes={"steps": steps, "batch": batch, "resolution": resolution, "warmup": warmup, "seed": seed},
            running={"device": device, "precision": precision, "recompute": recompute, "progress": not quiet},
            until=until,
            against={"memorized": memorized, "count": count, "rounds": rounds, "mitigations": mitigation, "surrogate_seeds": surrogate_seeds,
                     "search_steps": search_steps, "search_samples": search_samples, "keep_rounds": keep_rounds or None},
        )
    )  # fmt: skip
