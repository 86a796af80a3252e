"""Sampling and scoring on several processes, GPUs or machines, as tasks of dask.distributed. The store is the only meeting point.

    python -m memlib.companion.distributed sample --substrate sd14 --prompts webster-mv86 --seeds 10 --cluster tcp://scheduler:8786
    python -m memlib.companion.distributed sample --substrate minisd-v1 --prompts minisd-memorized --cluster local --workers 2

A task is one batch: a worker loads the model once, samples, writes its pictures into the store and returns how many there were, so that no
picture travels through the scheduler. A worker that dies costs its batch, which another one makes. Every worker must see the store's
folder (or have one of its own, merged afterwards with ``python -m memlib.base.store merge``).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from memlib.base.errors import InputError, exit_status

CLOSING_SECONDS = 60

# Models that this worker process has loaded: a task brings a name and no weights.
_loaded: dict[tuple[str, str, str], Any] = {}


@dataclass(frozen=True)
class Work:
    """What every task of a run shares: the model, how pictures are sampled, what is done to the prompts, and where the store lies.

    `edit` is the key of an intervention or the name of a mitigation.
    """

    substrate: str
    store: str
    steps: int = 50
    guidance: float = 7.5
    scheduler: str = "ddim"
    edit: str = "none"
    device: str = "auto"
    dtype: str = "auto"

    @property
    def how(self) -> Any:
        """The edit as `memlib.experiment.group.Group` takes it: an intervention's key, or a mitigation."""
        from memlib.mitigations import get
        from memlib.prompts.interventions import INTERVENTIONS

        return self.edit if self.edit == "none" or self.edit in INTERVENTIONS else get(self.edit)


@dataclass(frozen=True)
class Part:
    """One task: prompts with their embeddings, as they are and edited, and seeds.

    Prompts are encoded where the run is started, all together, as a notebook does: in other company the last digits of half precision
    may differ, and with them the pictures' keys in the store.
    """

    prompts: Any
    plain: Any
    edited: Any
    seeds: tuple[int, ...]


def dask() -> Any:
    """Return `dask.distributed`; raises InputError where it is not installed."""
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "warning")  # read when it is imported, here and in workers
    try:
        import dask.distributed
    except ImportError as error:
        raise InputError("dask.distributed is not installed: pip install -r requirements.txt -c requirements.lock.txt.") from error
    return dask.distributed


def group_of(work: Work, part: Part) -> Any:
    """The prompts of a task as a `memlib.experiment.group.Group` in this process, with the embeddings that came along."""
    from memlib.experiment.group import Group
    from memlib.experiment.run import Experiment

    key = (work.substrate, work.device, work.dtype)
    run = Experiment(work.substrate, steps=work.steps, guidance=work.guidance, scheduler=work.scheduler, device=work.device, dtype=work.dtype,
                     store=work.store, loaded=_loaded.get(key))  # fmt: skip
    _loaded[key] = run.substrate
    run.seeds = part.seeds
    group = Group(run, part.prompts, "task")
    group.embedding = part.plain
    group.hold(work.how, part.edited)
    return group


def sample_part(work: Work, part: Part) -> tuple[int, int]:
    """Carry out one task in this process: make sure that its pictures are stored; how many were made and how many were there."""
    group = group_of(work, part)
    group.pictures(work.how)
    return group.experiment.store.made, group.experiment.store.found


def score_part(work: Work, part: Part, scores: Sequence[str]) -> dict[str, int]:
    """Compute scores of one task's pictures; the store keeps them where a notebook finds them. How many prompts were scored, by name."""
    group = group_of(work, part)
    values = {name: group.score(name, work.how) for name in scores}
    return {name: len(value) for name, value in values.items() if value is not None}


def parts(group: Any, edit: Any, batch_size: int, whole_prompts: bool = False) -> list[Part]:
    """Cut a group's prompts and seeds into tasks of at most `batch_size` pictures; with `whole_prompts` no prompt's seeds are parted."""
    if batch_size < 1:
        raise InputError(f"Tasks of {batch_size} pictures are not possible: use at least 1.")
    seeds, edited = group.experiment.seeds, group.edited(edit)
    prompts_at_once, seeds_at_once = max(1, batch_size // len(seeds)), len(seeds) if whole_prompts else batch_size
    return [
        Part(group.prompts.select(rows), group.embedding.select(rows), edited.select(rows), tuple(seeds[first : first + seeds_at_once]))
        for rows in (list(range(start, min(start + prompts_at_once, len(group)))) for start in range(0, len(group), prompts_at_once))
        for first in range(0, len(seeds), seeds_at_once)
    ]


@contextmanager
def cluster(address: str = "local", workers: int | None = None) -> Iterator[Any]:
    """A dask client: of a scheduler by its address, or with "local" of `workers` processes of this machine (one per GPU by default)."""
    library = dask()
    if address != "local":
        try:
            client = library.Client(address, timeout="30s")
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(f"No dask scheduler answers at {address!r} ({error}): start one with 'dask scheduler', or use local.") from error
        with client:
            yield client
        return
    gpus = _gpus()
    count = workers or len(gpus) or 1
    if count < 1:
        raise InputError(f"{count} workers are not possible: use at least 1.")
    threads = max(1, (os.cpu_count() or 1) // count)
    specification = {}
    for place in range(count):
        variables = {"OMP_NUM_THREADS": str(threads)} | ({"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {})
        specification[place] = {"cls": library.Nanny, "options": {"nthreads": 1, "env": variables}}
    scheduler = {"cls": library.Scheduler, "options": {"dashboard": False, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1", "port": 0}}
    local = library.SpecCluster(workers=specification, scheduler=scheduler)
    client = library.Client(local)
    try:
        yield client
    finally:
        # On a busy machine workers take long to end; what they made is in the store, and their nannies kill them in the end.
        with suppress(TimeoutError):
            client.close(timeout=CLOSING_SECONDS)
        with suppress(TimeoutError):
            local.close(timeout=CLOSING_SECONDS)


def _gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part for part in named.split(",") if part.strip()]
    import torch

    return [str(place) for place in range(torch.cuda.device_count())]


def run_parts(client: Any, call: Callable[..., Any], work: Work, tasks: Sequence[Part], *arguments: Any, progress: bool = True) -> list[Any]:
    """Carry out `call(work, part, *arguments)` for every task on the client's workers and return the results in their order.

    A task whose worker died is given to another one, at most three times. Raises what a task raised, InputError as it was.
    """
    library = dask()
    futures = [client.submit(call, work, task, *arguments, pure=False) for task in tasks]
    with tqdm(total=len(tasks), unit="batch", disable=not progress) as bar:
        for future in library.as_completed(futures):
            if future.status == "error":
                client.cancel(futures)
                error = future.exception()
                if isinstance(error, library.KilledWorker):
                    raise InputError("A batch killed one worker after the other, probably for memory: use a smaller --batch-size.") from error
                raise error
            bar.update()
    return [future.result() for future in futures]


def sample_on(client: Any, work: Work, group: Any, batch_size: int = 8, progress: bool = True) -> tuple[int, int]:
    """Make sure that a group's pictures under the run's edit are in the store; how many were made and how many were there."""
    counts = run_parts(client, sample_part, work, parts(group, work.how, batch_size), progress=progress)
    return sum(made for made, _ in counts), sum(found for _, found in counts)


def score_on(client: Any, work: Work, group: Any, scores: Sequence[str], batch_size: int = 8, progress: bool = True) -> dict[str, int]:
    """Compute these scores of a group's pictures (which are sampled where they are absent); how many prompts were scored, by name."""
    counts = run_parts(client, score_part, work, parts(group, work.how, batch_size, whole_prompts=True), scores, progress=progress)
    return {name: sum(count.get(name, 0) for count in counts) for name in scores}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(prog="python -m memlib.companion.distributed", description="Samples and scores on several processes, GPUs or machines.")
    commands = main.add_subparsers(dest="command", required=True)
    for name, text in (("sample", "make pictures"), ("score", "make pictures and their scores")):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--substrate", default="minisd-v1")
        command.add_argument("--prompts", required=True, help="memorized, not memorized, a prompt set by name, or a file")
        command.add_argument("--count", type=int, help="at most so many of its prompts")
        command.add_argument("--seeds", type=int, default=10, help="seeds 0, 1, ... for every prompt")
        command.add_argument("--edit", nargs="+", default=["none"], help="interventions and mitigations, by name")
        command.add_argument("--steps", type=int, default=50)
        command.add_argument("--guidance", type=float, default=7.5)
        command.add_argument("--scheduler", default="ddim")
        command.add_argument("--batch-size", type=int, default=8, help="pictures in a task")
        command.add_argument("--store", type=Path, help="the store's folder, seen by all workers (default: MEMLIB_STORE, or _build/store)")
        command.add_argument("--cluster", default="local", help="the address of a dask scheduler, or local")
        command.add_argument("--workers", type=int, help="processes of a local cluster (default: one per GPU)")
        if name == "score":
            command.add_argument("--scores", nargs="+", default=["similarity to original"])
    return main


def run(options: argparse.Namespace) -> None:
    """Carry out one command."""
    from memlib.experiment.run import Experiment

    dask()
    start = Experiment(options.substrate, n_seeds=options.seeds, steps=options.steps, guidance=options.guidance, scheduler=options.scheduler,
                       store=options.store)  # fmt: skip
    group = start.group(options.prompts, options.count)
    group.embedding  # noqa: B018  encoded here, all prompts together
    root = str(start.store.root.resolve())
    with cluster(options.cluster, options.workers) as client:
        for edit in options.edit:
            work = Work(options.substrate, root, options.steps, options.guidance, options.scheduler, edit)
            made, there = sample_on(client, work, group, options.batch_size)
            print(f"{edit}: {made:,} pictures made, {there:,} were there.")
            if options.command == "score":
                for name, count in score_on(client, work, group, options.scores, options.batch_size).items():
                    print(f"{edit}, {name}: {f'{count:,} prompts scored' if count else 'not measured'}.")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return exit_status(lambda: run(options), "Stopped; what was made is kept and the next run goes on from there.")


if __name__ == "__main__":
    sys.exit(main())
