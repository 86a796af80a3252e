"""Sampling and scoring on several processes, GPUs or machines, as tasks of dask.distributed. The store is the only meeting point.

    memlib distributed sample --substrate sd14 --prompts webster-mv86 --seeds 10 --cluster tcp://scheduler:8786
    memlib distributed sample --substrate minisd-v1 --prompts minisd-memorized --cluster local --workers 2

A task is one batch: a worker loads the model once, samples, writes its pictures into the store and returns how many there were, so that no
picture travels through the scheduler. A worker that dies costs its batch, which another one makes. Every worker must see the store's
folder (or have one of its own, merged afterwards with ``memlib store merge``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from memlib.base.errors import InputError
from memlib.experiment.group import Group
from memlib.experiment.run import Experiment
from memlib.mitigations import get
from memlib.prompts.interventions import INTERVENTIONS

ANSWER_SECONDS, CLOSING_SECONDS = 30, 60
LOOK_SECONDS, LOST_SECONDS, PATIENCE_SECONDS = 2.0, 15, 300  # how often workers are counted, and how long there may be none: dead here, or out of sight
# Whoever reaches a worker's port can run code there: nothing listens but on this machine. Other users of it can still connect.
LOOPBACK = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}

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
        raise InputError("dask.distributed is not installed: run 'make env', or 'pip install distributed'.") from error
    return dask.distributed


def group_of(work: Work, part: Part) -> Group:
    """The prompts of a task as a `memlib.experiment.group.Group` in this process, with the embeddings that came along."""
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
    from dask import config

    if address != "local":
        try:
            client = library.Client(address, timeout=ANSWER_SECONDS)
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(f"No dask scheduler answers at {address!r} ({error}): start one with 'dask scheduler', or use local.") from error
        with client:
            yield client
        return
    gpus = _gpus()
    count = len(gpus) or 1 if workers is None else workers
    if count < 1:
        raise InputError(f"{count} workers are not possible: use at least 1.")
    threads = max(1, (os.cpu_count() or 1) // count)
    # By default the cluster lets go of a worker that is not back in 15 seconds, and on a busy machine starting one again takes longer.
    config.set({"distributed.deploy.lost-worker-timeout": "1 day"})
    specification = {}
    for place in range(count):
        variables = {"OMP_NUM_THREADS": str(threads)} | ({"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {})
        specification[place] = {"cls": library.Nanny, "options": {"nthreads": 1, "env": variables, **LOOPBACK}}
    scheduler = {"cls": library.Scheduler, "options": {"dashboard": False, "port": 0, **LOOPBACK}}
    try:
        local = library.SpecCluster(workers=specification, scheduler=scheduler)
    except RuntimeError as error:
        raise InputError(f"A worker process ended while it started ({error}), probably for memory: use fewer --workers.") from error
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
    return results(client, [client.submit(call, work, task, *arguments, pure=False) for task in tasks], progress)


def results(client: Any, futures: Sequence[Any], progress: bool = True) -> list[Any]:
    """Wait for futures and return their results in their order; raises what the first failing one raised, and InputError where no worker is left."""
    library = dask()
    seen = looked = time.monotonic()
    finished = library.as_completed(futures)
    try:
        with tqdm(total=len(futures), unit="batch", disable=not progress) as bar:
            while not finished.is_empty():
                if finished.has_ready():
                    future = next(finished)
                    if future.status == "error":
                        raise future.exception()  # read before the others are cancelled: a cancelled future has none
                    bar.update()
                    continue
                time.sleep(0.05)
                if time.monotonic() - looked > LOOK_SECONDS:
                    looked = time.monotonic()
                    seen = looked if client.nthreads() else seen
                    _refuse_alone(client, looked - seen)
    except library.KilledWorker as error:
        client.cancel(futures)
        raise InputError("A batch killed one worker after the other, probably for memory: use a smaller --batch-size.") from error
    except Exception:
        client.cancel(futures)
        raise
    return [future.result() for future in futures]


def _refuse_alone(client: Any, seconds: float) -> None:
    """Raise InputError where a scheduler has had no worker for so long that none will come by itself."""
    local = hasattr(client.cluster, "workers")
    # A nanny starts its worker again, but for one that dies in the moment between registering and being seen by it.
    if local and seconds > LOST_SECONDS and not any(nanny.is_alive() for nanny in client.cluster.workers.values()):
        raise InputError("The last worker died and was not started again: run the command once more, which makes only what is not yet in the store.")
    if seconds > PATIENCE_SECONDS:
        start = "use fewer --workers or a smaller --batch-size" if local else f"start one with 'dask worker {client.scheduler.address}'"
        raise InputError(f"For {seconds:.0f} seconds the scheduler has had no worker: {start}, and run the command again; what was made is in the store.")


def sample_on(client: Any, work: Work, group: Any, batch_size: int = 8, progress: bool = True) -> tuple[int, int]:
    """Make sure that a group's pictures under the run's edit are in the store; how many were made and how many were there."""
    counts = run_parts(client, sample_part, work, parts(group, work.how, batch_size), progress=progress)
    return sum(made for made, _ in counts), sum(found for _, found in counts)


def score_on(client: Any, work: Work, group: Any, scores: Sequence[str], batch_size: int = 8, progress: bool = True) -> dict[str, int]:
    """Compute these scores of a group's pictures (which are sampled where they are absent); how many prompts were scored, by name."""
    counts = run_parts(client, score_part, work, parts(group, work.how, batch_size, whole_prompts=True), scores, progress=progress)
    return {name: sum(count.get(name, 0) for count in counts) for name in scores}


def run(
    substrate: str,
    prompts: str,
    count: int | None,
    edits: Sequence[str],
    settings: Mapping[str, Any],
    batch_size: int,
    address: str,
    workers: int | None,
    scores: Sequence[str],
) -> Iterator[str]:
    """Make the pictures of a prompt set under each of `edits`, and their `scores`, on a cluster; a line is given for each as it is done.

    `settings` are those of `memlib.experiment.run.Experiment`: n_seeds, steps, guidance, scheduler, store.
    Raises InputError for what cannot be used and for a cluster that is not there.
    """  # fmt: skip
    dask()
    start = Experiment(substrate, **settings)
    group = start.group(prompts, count)
    group.embedding  # noqa: B018  encoded here, all prompts together
    root = str(start.store.root.resolve())
    with cluster(address, workers) as client:
        for edit in edits:
            work = Work(substrate, root, settings["steps"], settings["guidance"], settings["scheduler"], edit)
            made, there = sample_on(client, work, group, batch_size)
            yield f"{edit}: {made:,} pictures made, {there:,} were there."
            for name, scored in (score_on(client, work, group, scores, batch_size) if scores else {}).items():
                yield f"{edit}, {name}: {f'{scored:,} prompts scored' if scored else 'not measured'}."
