"""``memlib distributed``: several processes, GPUs or machines."""

from __future__ import annotations

from typing import Annotated

import typer

from memlib.base.declared import Count
from memlib.companion.commands.options import Guidance, Scheduler, Steps, StoreFolder, Substrate, option

app = typer.Typer(help="Sample and score on several processes, GPUs or machines, over dask.", no_args_is_help=True)
Prompts = Annotated[str, typer.Option(help="memorized, not memorized, a prompt set by name, or a file.")]
AtMost = Annotated[int | None, option(Count, "At most so many of its prompts.")]
Seeds = Annotated[int, option(Count, "Seeds 0, 1, ... for every prompt.")]
Edit = Annotated[list[str] | None, typer.Option(help="An intervention or mitigation by name; may be given several times.")]
BatchSize = Annotated[int, option(Count, "Pictures in a task.")]
Cluster = Annotated[str, typer.Option(help="The address of a dask scheduler, or local.")]
Workers = Annotated[int | None, option(Count, "Processes of a local cluster (default: one per GPU).")]


@app.command()
def sample(
    prompts: Prompts, substrate: Substrate = "minisd-v1", count: AtMost = None, seeds: Seeds = 10, edit: Edit = None, steps: Steps = 50,
    guidance: Guidance = 7.5, scheduler: Scheduler = "ddim", batch_size: BatchSize = 8, store: StoreFolder = None, cluster: Cluster = "local",
    workers: Workers = None,
) -> None:  # fmt: skip
    """Make pictures."""
    from memlib.companion import distributed

    settings = {"n_seeds": seeds, "steps": steps, "guidance": guidance, "scheduler": scheduler, "store": store}
    for line in distributed.run(substrate, prompts, count, edit or ["none"], settings, batch_size, cluster, workers, scores=()):
        print(line)


@app.command()
def score(
    prompts: Prompts, substrate: Substrate = "minisd-v1", count: AtMost = None, seeds: Seeds = 10, edit: Edit = None, steps: Steps = 50,
    guidance: Guidance = 7.5, scheduler: Scheduler = "ddim", batch_size: BatchSize = 8, store: StoreFolder = None, cluster: Cluster = "local",
    workers: Workers = None, scores: Annotated[list[str] | None, typer.Option(help="Scores by name; may be given several times.")] = None,
) -> None:  # fmt: skip
    """Make pictures and their scores."""
    from memlib.companion import distributed

    settings = {"n_seeds": seeds, "steps": steps, "guidance": guidance, "scheduler": scheduler, "store": store}
    for line in distributed.run(substrate, prompts, count, edit or ["none"], settings, batch_size, cluster, workers, scores or ["similarity to original"]):
        print(line)
