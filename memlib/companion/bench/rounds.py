"""Timing in rounds: every way once a round, beginning with another one each time, so that a machine that slows down slows down all alike.

Each time is a row of a CSV file that is written as it comes, with what it was taken on; a run that was stopped goes on after its last row. Beside the
time on the wall stands the processor's, which is what counts on a CPU where something else runs, and the load of the machine.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from memlib.base.paths import ROOT
from memlib.base.writing import write_table
from memlib.companion.bench.sampling import PROMPTS, PUBLISHED_CALL, Job, Model, Way, apart, chosen, products, row_operations
from memlib.companion.bench.table import BATCHED, DEFAULT, MITIGATIONS, RATE, SHARED, SWEEP, UNDER, as_text
from memlib.companion.book.progress import duration, told
from memlib.experiment.provenance import provenance
from memlib.mitigations import get
from memlib.models.devices import settle
from memlib.results.table import reading
from memlib.results.timed import Sampler
from memlib.results.timed import measure as timed_mitigations


class Kept:
    """Rows of a benchmark in a CSV file; those of `facts` are this run's, and take the place of other ones of the same model on the same device."""

    def __init__(self, path: Path, facts: Mapping[str, Any]):
        self.path, self.facts = path, dict(facts)
        frame = pd.DataFrame()
        if path.is_file():
            with reading(path, "table of times"):
                frame = pd.read_csv(path)
                same = [frame[name].astype(str) == str(value) for name, value in facts.items()]
        self.others = frame if frame.empty else frame[frame["model"] != facts["model"]]
        kept: Any = [] if frame.empty else frame[np.logical_and.reduce(same)].to_dict("records")
        self.rows: list[dict[str, Any]] = kept

    def of(self, way: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["way"] == way]

    def add(self, way: str, turn: int, **values: Any) -> None:
        self.rows.append({**self.facts, "way": way, "round": turn, "load": round(os.getloadavg()[0], 1), **values})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_table(self.path, pd.concat([self.others, pd.DataFrame(self.rows)]).round(6))


def clocked(call: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Seconds of one call, on the wall and of this process's processors."""
    settle(device)
    wall, processor = time.perf_counter(), time.process_time()
    call()
    settle(device)
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - processor}


def measure(
    model: Model, ways: Mapping[str, Way], job: Job, rounds: int, path: Path, mitigations: Sequence[str] = (), say: Callable[[str], None] = print
) -> None:
    """Time every way in `rounds` rounds, with the rate of matrix products in each, and then the `mitigations`; rows go to `path` as they come.

    Of each way's row `difference` is that of its last latents to those of diffusers in batches (of shared first steps, to those of the same job without),
    and `rounding` that of diffusers' own in this precision to those in float32: what lies below is equal within the precision.
    """  # fmt: skip
    substrate = model.substrate(Way())
    facts = provenance({}, time.monotonic(), model.device).facts
    kept = Kept(path, {
        "model": model.name, "dtype": str(substrate.dtype).removeprefix("torch."), "pictures": job.pictures, "steps": job.steps, "decoded": job.decoded,
        "threads": torch.get_num_threads(), "hardware": facts["hardware"], "versions": facts["versions"], "commit": facts["commit"].removesuffix("-dirty"),
    })  # fmt: skip
    missing = [(turn, name) for turn in range(rounds) for name in _turned([RATE, *ways], turn) if len(kept.of(name)) <= turn]
    wanted = {name for _, name in missing}
    say(f"{model.name}: {len(missing)} times to take, after each way was once run untimed")
    before = kept.of(BATCHED)
    best = int(before[0]["batch_size"]) if before else model.best_batch(job)
    jobs = {name: dataclasses.replace(job, batch_size=best) if name == BATCHED else job for name in ways}
    short = dataclasses.replace(job, pictures=min(job.pictures, PUBLISHED_CALL), batch_size=min(job.batch_size, PUBLISHED_CALL), decoded=False)
    expected = model.call(BATCHED, ways[BATCHED], short)()
    rounding = before[0]["rounding"] if before else apart(model.call(BATCHED, Way(dtype="float32"), short)(), expected)
    operations, (multiply, done) = row_operations(substrate), products(model.device, substrate.dtype)
    calls: dict[str, Callable[[], Any]] = {RATE: multiply}
    differences: dict[str, float] = {}
    for name, way in ways.items():
        if name in wanted:
            latents = model.call(name, way, dataclasses.replace(short, batch_size=job.batch_size) if "compiled" in name else short)()
            other = model.call(SWEEP, ways[SWEEP], short)() if name == SHARED else expected
            differences[name] = float("nan") if name == SWEEP else apart(latents, other)
            calls[name] = model.call(name, way, jobs[name])
            say(f"  {name}: warm" + ("" if name == SWEEP else f", latents differ by {differences[name]:.1e}"))
    multiply()
    took: dict[str, float] = {}
    for place, (turn, name) in enumerate(missing, 1):
        if place == 1 or turn != missing[place - 2][0]:
            gc.collect()
        seconds = clocked(calls[name], model.device)
        took[name] = seconds["seconds"]
        if name == RATE:
            kept.add(name, turn, operations=done, **seconds)
            rate = f"{done / seconds['seconds'] / 1e12:.2f} TFLOP/s"
        else:
            way, made = ways[name], job.pictures * (3 if ways[name].sweep else 1)
            at_once = jobs[name].batch_size if way.batched else min(PUBLISHED_CALL, job.pictures)
            kept.add(name, turn, batch_size=at_once, made=made, difference=differences[name], rounding=rounding,
                     operations=operations * job.rows(name, way), **seconds)  # fmt: skip
            rate = f"{made / seconds['seconds']:.3f} pictures/s"
        usual = float(np.mean(list(took.values())))
        left = sum(took.get(other, usual) for _, other in missing[place:])
        say(f"[{place}/{len(missing)}] {model.name}, {name}: {rate}; {duration(left)} left")
    if mitigations and not kept.of(f"{UNDER}none"):
        sampler = Sampler(model.substrate(ways[DEFAULT]), job.steps, batch_size=min(4, job.batch_size))
        runs, _ = timed_mitigations(sampler, [get(name).full_run() for name in mitigations], {"prompts": list(PROMPTS)}, rounds)
        for run in runs:
            kept.add(f"{UNDER}{run.mitigation}", run.turn, made=1, seconds=run.seconds)


def _turned(names: Sequence[str], turn: int) -> list[str]:
    shift = turn % len(names)
    return [*names[shift:], *names[:shift]]


def run(
    models: Sequence[str],
    given: Mapping[str, Any],
    rounds: int,
    names: Sequence[str] | None,
    mitigations: bool | None,
    device: str,
    dtype: str,
    out: Path | None,
) -> None:
    """Carry out ``memlib bench sampling``: measure each model, print its table, and keep every time; raises InputError for an unknown way.

    `given` are fields of `Job` that are not as usual.
    """  # fmt: skip
    for name in models:
        model = Model(name, device, dtype)
        on_gpu, usual = model.device.type == "cuda", Job.usual(model.device, model.full)
        job = dataclasses.replace(usual, **given)
        job = dataclasses.replace(job, batch_size=given.get("batch_size", min(usual.batch_size, job.pictures)))
        path = out or ROOT / "_build" / "bench" / f"sampling-{model.device.type}.csv"
        also = MITIGATIONS if (on_gpu if mitigations is None else mitigations) else ()
        measure(model, chosen(names, model.device, model.full), job, rounds, path, tuple(also), told)
        frame = pd.read_csv(path)
        told(f"\n{as_text(frame[frame['model'] == name])}\n\nEvery time is in {path}.\n")
        del model
