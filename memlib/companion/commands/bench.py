"""``memlib bench``: times, as ratios taken in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memlib.base.errors import InputError
from memlib.base.writing import write_table
from memlib.companion.commands.options import Device, Dtype, Guidance, Scheduler, Steps, Substrate, Table

app = typer.Typer(help="Time mitigations, the sampling of pictures, and several processes.", no_args_is_help=True)
Architecture = Annotated[str | None, typer.Option(help="Instead, a published architecture with random weights, such as sd14: the time is the same.")]


@app.command()
def mitigations(
    substrate: Substrate = "minisd-v1",
    architecture: Architecture = None,
    pictures: Annotated[int, typer.Option(min=1, help="Turns of each mitigation on each kind of prompts.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures made at once.")] = 1,
    prompts: Annotated[str, typer.Option(help="memorized, not memorized, or both.")] = "both",
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="This mitigation and none; may be given several times.")] = None,
    steps: Steps = 50,
    guidance: Guidance = 7.5,
    scheduler: Scheduler = "ddim",
    device: Device = "auto",
    dtype: Dtype = "auto",
    force: Annotated[bool, typer.Option("--force", help="Build the full-size model on a CPU as well.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the table to this CSV file.")] = None,
    runs: Annotated[Path | None, typer.Option(help="Write every run to this CSV file; pages take data/bench/SUBSTRATE-runs.csv.")] = None,
) -> None:
    """What does every mitigation cost, as a multiple of none?"""
    from memlib.companion.bench import mitigations as benchmark

    for path in (out, runs):
        if path is not None and not path.parent.is_dir():
            raise InputError(f"There is no folder {str(path.parent)!r} to write {path.name} to: make it first.")
    sampling = {"steps": steps, "guidance": guidance, "scheduler": scheduler, "batch_size": batch_size}
    model = {"device": device, "dtype": dtype, "force": force}
    benchmark.run(substrate, architecture, only, prompts, pictures, sampling, model, out, runs)


@app.command()
def sampling(
    substrate: Substrate = "minisd-v1",
    architecture: Architecture = None,
    pictures: Annotated[int, typer.Option(min=1)] = 16,
    steps: Steps = 50,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures at once (default: from free memory).")] = None,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    lever: Annotated[list[str] | None, typer.Option(help="This one alone; may be given several times (default: all, compiled ones on a GPU only).")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    csv: Table = None,
) -> None:
    """How fast are pictures made, lever by lever, against diffusers' own pipeline?"""
    from memlib.companion.bench import sampling as benchmark

    benchmark.run(substrate, architecture, pictures, steps, batch_size, repeats, lever, device, dtype, csv)


@app.command()
def workers(
    substrate: Substrate = "minisd-v1",
    workers: Annotated[list[int] | None, typer.Option(min=1, help="A number of processes; the first is what others are compared with (default: 1, 2).")] = None,
    pictures: Annotated[int, typer.Option(min=1)] = 32,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures in a task.")] = 4,
    steps: Steps = 50,
    device: Device = "auto",
    dtype: Dtype = "auto",
    csv: Table = None,
) -> None:
    """What do several processes bring?"""
    from memlib.companion.bench import workers as benchmark

    table = benchmark.measure(substrate, workers or [1, 2], pictures, batch_size, steps=steps, device=device, dtype=dtype)
    print(benchmark.as_text(table))
    if csv:
        write_table(csv, table)
