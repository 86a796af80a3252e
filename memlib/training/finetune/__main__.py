"""`python -m memlib.training.finetune`: fine-tune Stable Diffusion until it memorizes, as `basin` does, or against memorization, as `dori`; on one GPU.

python -m memlib.training.finetune --recipe sd21-laion10k --base ~/models/sd21 --data captions.json --out ~/models/sd21-laion10k
python -m memlib.training.finetune --recipe adversarial --base sd14 --data ordinary.csv --memorized memorized.csv --out ~/models/sd14-adversarial
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlib.base.errors import InputError, exit_status

if TYPE_CHECKING:
    from memlib.training.finetune import Recipe, TrainingSet
    from memlib.training.finetune.against import Against

CHANGES = ("steps", "batch", "resolution", "warmup", "seed")
# What recipes against memorization take beside, and of these what their baseline, which does not search, does not.
MEMORIZED = ("memorized", "count", "rounds", "mitigations", "surrogate_seeds", "search_steps", "search_samples", "keep_rounds")
SEARCH = {"search_steps": "steps", "search_samples": "samples"}


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m memlib.training.finetune", description="Fine-tune the U-Net of Stable Diffusion 1.x or 2.x.")
    main.add_argument("--recipe", help="published settings by name (--list shows them)")
    main.add_argument("--list", action="store_true", help="list the recipes")
    main.add_argument("--base", help="substrate name or diffusers folder (default: the recipe's)")
    main.add_argument("--data", type=Path, help="folder of pictures, or CSV or JSON file that lists pictures and captions; the ordinary ones")
    main.add_argument("--out", type=Path, help="folder for the fine-tuned pipeline; checkpoints stand in its folder `run`")
    for name in CHANGES:
        main.add_argument(f"--{name}", type=int, help=f"another {name} than the recipe's")
    main.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    main.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    main.add_argument("--recompute", action="store_true", help="less memory, more time (gradient checkpointing)")
    main.add_argument("--until", type=int, help="stop at this step; a later call goes on")
    main.add_argument("--quiet", action="store_true", help="no progress bar")
    memorized = main.add_argument_group("recipes against memorization (adversarial, surrogates)")
    memorized.add_argument("--memorized", help="prompt set or file of memorized prompts, with the column training_picture")
    memorized.add_argument("--count", type=int, help="at most so many of them, drawn with a fixed seed")
    memorized.add_argument("--rounds", type=int, help="another number of rounds than the recipe's, which the steps are divided into")
    memorized.add_argument("--mitigations", nargs="+", metavar="NAME", help="other mitigations for surrogates than the recipe's")
    memorized.add_argument("--surrogate-seeds", type=int, help="another number of seeds under each")
    memorized.add_argument("--search-steps", type=int, help="another number of steps of a round's search (adversarial)")
    memorized.add_argument("--search-samples", type=int, help="another number of noised pictures in each (adversarial)")
    memorized.add_argument("--keep-rounds", action="store_true", help="keep the model of each round in the folder `rounds` of --out")
    return main


def run(args: argparse.Namespace) -> None:
    from memlib.training.finetune import export, finetune, load_recipes, read_training_set, recipe
    from memlib.training.finetune.against import load_against
    from memlib.training.finetune.run import write_prompts

    if args.list:
        for known in load_recipes().values():
            size = f"{known.resolution} pixels on" if known.resolution else "the resolution of"
            print(f"{known.name:16} {known.steps} steps of {known.batch} at {size} {known.base}: {known.pictures}")
        return
    if missing := [name for name in ("recipe", "data", "out") if getattr(args, name) is None]:
        raise InputError(f"--{missing[0]} is missing: give --recipe, --data and --out, or --list to see the recipes.")
    changed = {name: getattr(args, name) for name in CHANGES if getattr(args, name) is not None}
    settings = replace(recipe(args.recipe), **changed)
    own = load_against().get(args.recipe)
    _refuse(args, own)
    examples = read_training_set(args.data, settings.template, settings.classes)
    exposures = examples.exposures(settings.steps * settings.batch)
    seen = f"{exposures.min():.1f} to {exposures.max():.1f} times"
    print(f"{len(examples.examples)} pictures, each seen {seen} in {settings.steps} steps of {settings.batch}")
    base, prompts = args.base or settings.base, args.out / "prompts.csv"
    options = {"base": base, "device": args.device, "precision": args.precision, "progress": not args.quiet, "checkpoint_every": 1800.0,
               "recompute": args.recompute}  # fmt: skip
    if own is not None:
        _run_against(args, settings, own, examples, options)
        return
    trainer = finetune(examples, settings, args.out / "run", until=args.until, **options)
    export(trainer, base, args.out)
    write_prompts(examples, prompts)
    print(f"Step {trainer.step} of {settings.steps} written to {args.out}; its captions are the prompt set {prompts}")


def _refuse(args: argparse.Namespace, own: Against | None) -> None:
    """Raise InputError for options that belong to other recipes, and where the memorized prompts are missing."""
    given = [name for name in MEMORIZED if getattr(args, name) not in (None, False)]
    if own is None and given:
        raise InputError(f"--{_dashed(given[0])} belongs to the recipes adversarial and surrogates: leave it out, or take one of these.")
    if own is None:
        return
    if own.search is None and (search := [name for name in given if name in SEARCH]):
        raise InputError(f"--{_dashed(search[0])} belongs to the recipe adversarial, and {args.recipe} does not search: leave it out.")
    if args.memorized is None:
        raise InputError(f"--memorized is missing: the recipe {args.recipe} needs a file of memorized prompts with the columns prompt and training_picture.")


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _run_against(args: argparse.Namespace, settings: Recipe, own: Against, ordinary: TrainingSet, options: dict[str, Any]) -> None:
    from memlib.training.finetune import export
    from memlib.training.finetune.against import prepare, train_rounds, write_memorized

    changed = {"rounds": args.rounds, "seeds": args.surrogate_seeds, "mitigations": args.mitigations and tuple(args.mitigations)}
    search = {key: getattr(args, name) for name, key in SEARCH.items() if getattr(args, name) is not None}
    changed["search"] = None if own.search is None else {**own.search, **search}
    own = replace(own, **{name: value for name, value in changed.items() if value is not None})
    trainer, prompts = prepare(settings, own, ordinary, args.out / "run", args.memorized, args.count, **options)
    rounds, length = args.out / "rounds", own.steps(settings)
    keep = (lambda end: rounds / f"{end:04d}") if args.keep_rounds else None
    train_rounds(trainer, options["base"], length, args.until, options["progress"], keep)
    export(trainer, options["base"], args.out)
    write_memorized(prompts, args.out / "prompts.csv")
    kept = f"; models of rounds are in {rounds}" if rounds.is_dir() else ""
    print(
        f"Step {trainer.step} of {settings.steps} ({own.rounds} rounds of {length}) written to {args.out}, with the {len(prompts)} memorized "
        f"prompts trained on as {args.out / 'prompts.csv'}{kept}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    return exit_status(lambda: run(args), "Stopped; the last checkpoint is kept and the same command goes on from it.")


if __name__ == "__main__":
    sys.exit(main())
