"""``memlib report`` and ``memlib convert``: a model of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memlib.base.declared import Count
from memlib.base.errors import InputError
from memlib.companion.commands.options import Device, Dtype, Guidance, Scheduler, StoreFolder, TwoOrMore, option


def report(
    model: Annotated[str, typer.Argument(metavar="FOLDER", help="A diffusers folder, a YAML file that describes one, or a substrate's name.")],
    pictures: Annotated[
        Path | None,
        typer.Option(help="Training pictures with captions: a folder with a .txt beside each or metadata.csv, or a table of picture and caption."),
    ] = None,
    others: Annotated[str | None, typer.Option(help="Prompts not memorized: a set or file (default: captions that give no copy).")] = None,
    out: Annotated[Path | None, typer.Option(help="The HTML file to write (default: report-NAME.html).")] = None,
    metric: Annotated[str, typer.Option(help="What tells copies: auto (the model's own or SSCD), pixels, clip.")] = "auto",
    prompts: Annotated[int, option(TwoOrMore, "At most so many captions are screened, those repeated most often first.")] = 40,
    seeds: Annotated[int, option(Count, "Seeds of each.")] = 4,
    tried: Annotated[int, option(TwoOrMore, "Prompts of either kind that mitigations and detectors are tried on.")] = 12,
    tried_seeds: Annotated[int, option(Count, "Seeds of each of these.")] = 2,
    every: Annotated[bool, typer.Option("--all", help="All mitigations, those that need memlib's own sampler included.")] = False,
    method: Annotated[list[str] | None, typer.Option(metavar="NAME", help="This mitigation alone; may be given several times.")] = None,
    detector: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Likewise of detectors.")] = None,
    steps: Annotated[int, option(Count, "Steps of sampling.")] = 25,
    guidance: Guidance = 7.5,
    scheduler: Scheduler = "ddim",
    batch_size: Annotated[int | None, option(Count, "Pictures at once (default: from free memory).")] = None,
    show: Annotated[str, typer.Option(help="Pictures in the report: full, blurred or none (default: full where you bring the training pictures).")] = "auto",
    keep: Annotated[bool, typer.Option("--keep", help="Put the rows into the table of scores, for `memlib results export`.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    store: StoreFolder = None,
) -> None:
    """What does a model reproduce of its training pictures, what helps, which detector tells? One HTML file; goes on where it was stopped."""
    from memlib.companion.report.command import report as make
    from memlib.companion.report.findings import Scope
    from memlib.experiment.picture_policy import CHOICES

    if show not in CHOICES:
        raise InputError(f"Pictures cannot be shown {show!r}: use {', '.join(CHOICES)}.")
    sampling = {"n_seeds": seeds, "steps": steps, "guidance": guidance, "scheduler": scheduler, "batch_size": batch_size, "store": store}
    scope = Scope(tried, tried_seeds, every, tuple(method or ()), tuple(detector or ()))
    path, _ = make(model, pictures, others, out, metric=metric, prompts=prompts, scope=scope, show=show, keep=keep,
                   sampling=sampling, device=device, dtype=dtype, say=lambda line: print(line, flush=True))  # fmt: skip
    print(f"Report: {path} ({path.stat().st_size / 1000:,.0f} kB).")


def convert(
    file: Annotated[Path, typer.Argument(help="A .safetensors checkpoint of Stable Diffusion 1.x or 2.x.")],
    folder: Annotated[Path, typer.Argument(help="The diffusers folder to write.")],
    config: Annotated[str | None, typer.Option(help="A diffusers folder of the same kind (default: diffusers asks the hub).")] = None,
) -> None:
    """Make a diffusers folder of a checkpoint in a single file."""
    from memlib.models.convert import convert as make

    print(f"{make(file, folder, config)} is a diffusers folder: memlib report {folder} --pictures ...")
