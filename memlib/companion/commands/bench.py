"""``memlib bench``: times, as ratios taken in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from annotated_types import Ge

from memlib.base.declared import Count
from memlib.base.errors import InputError
from memlib.base.writing import write_table
from memlib.companion.commands.options import Device, Dtype, Guidance, Scheduler, Steps, Substrate, Table, option

app = typer.Typer(help="Time the sampling of pictures (without a name of what to time), mitigations, several processes, and a store.")
Architecture = Annotated[str | None, typer.Option(help="Instead, a published architecture with random weights, such as sd14: the time is the same.")]


@app.callback(invoke_without_command=True)
def all_of_it(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        sampling()


@app.command()
def mitigations(
    substrate: Substrate = "minisd-v1",
    architecture: Architecture = None,
    pictures: Annotated[int, option(Count, "Turns of each mitigation on each kind of prompts.")] = 8,
    batch_size: Annotated[int, option(Count, "Pictures made at once.")] = 1,
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
    model: Annotated[list[str] | None, typer.Option(help="A substrate or architecture; may be given several times (default: minisd-v1, sd14).")] = None,
    pictures: Annotated[int | None, option(Count, "Pictures of each way (default: as many as take minutes in all).")] = None,
    steps: Annotated[int | None, option(Count, "Steps of sampling.")] = None,
    batch_size: Annotated[int | None, option(Count, "Pictures at once.")] = None,
    rounds: Annotated[int, option(Count, "Times of each way.")] = 3,
    way: Annotated[list[str] | None, typer.Option(help="This one beside diffusers'; may be given several times.")] = None,
    mitigations: Annotated[bool | None, typer.Option(help="Time some mitigations too (default: on a GPU).")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Annotated[Path | None, typer.Option(help="Every time goes to this CSV file; pages take data/bench/sampling-*.csv.")] = None,
) -> None:
    """How fast are pictures made, lever by lever, against diffusers' own pipeline? A run that was stopped goes on."""
    from memlib.companion.bench import rounds as benchmark

    asked = {"pictures": pictures, "steps": steps, "batch_size": batch_size}
    given = {name: value for name, value in asked.items() if value}
    benchmark.run(model or ["minisd-v1", "sd14"], given, rounds, way, mitigations, device, dtype, out)


@app.command()
def workers(
    substrate: Substrate = "minisd-v1",
    workers: Annotated[list[int] | None, option(Count, "A number of processes; the first is what others are compared with (default: 1, 2).")] = None,
    pictures: Annotated[int, option(Count)] = 32,
    batch_size: Annotated[int, option(Count, "Pictures in a task.")] = 4,
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


@app.command()
def store(
    pictures: Annotated[int, option(Annotated[int, Ge(100)], "Made-up pictures, in a temporary folder.")] = 100_000,
    out: Annotated[Path | None, typer.Option(help="Write the table to this CSV file; the page about speed takes data/bench/store.csv.")] = None,
) -> None:
    """Does a large store stay quick?"""
    from memlib.companion.bench import store as benchmark

    benchmark.run(pictures, out)
