"""What every mitigation costs, side by side: memlib bench mitigations --substrate minisd-v1 --pictures 8

All of them in one process, warm, one picture (or batch) after the other in turn, from prompt to picture; the ratio is to no mitigation in
the same turn, so that a machine that slows down for a while slows down both.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from memlib.base.errors import InputError, NotMeasured
from memlib.companion.bench.runs import Run, write
from memlib.experiment.provenance import provenance
from memlib.judging.estimates import quantile_interval
from memlib.mitigations import REGISTRY, Mitigation, get
from memlib.models.architectures import build
from memlib.models.substrate import load
from memlib.prompts.embedding import encode_prompts
from memlib.prompts.sets import choose_prompts
from memlib.sampling.batches import sample_batches, uncond_states
from memlib.sampling.loop import Cost
from memlib.sampling.prefix import unshared
from memlib.sampling.recipe import Recipe

KINDS = ("memorized", "not memorized")
COLUMNS = ("prompts", "mitigation", "seconds", "ratio", "ratio_low", "ratio_high", "evaluations", "decodes", "peak_mib", "pictures", "note")


@dataclass(frozen=True)
class Sampler:
    """How each picture is made: `batch_size` seeds of one prompt at once."""

    substrate: Any
    steps: int = 50
    guidance: float = 7.5
    scheduler: str = "ddim"
    batch_size: int = 1

    def __call__(self, mitigation: Mitigation, prompt: str, turn: int, uncond: torch.Tensor) -> Cost:
        cost, substrate = Cost(), unshared(self.substrate)
        seeds = range(turn * self.batch_size, (turn + 1) * self.batch_size)
        embedding = mitigation.apply(substrate, encode_prompts(substrate, [prompt]))
        batches = sample_batches(
            substrate,
            embedding,
            list(seeds),
            Recipe(self.steps, mitigation.guidance(self.guidance), self.scheduler),
            batch_size=self.batch_size,
            uncond=uncond,
            cost=cost,
            around=mitigation.around if mitigation.sampled else None,
        )
        for _ in batches:
            pass
        return cost

    def timed(self, kind: str, mitigation: Mitigation, prompt: str, turn: int, uncond: torch.Tensor) -> Run:
        gc.collect()
        memory = Memory(self.substrate.device)
        start = time.perf_counter()
        cost = self(mitigation, prompt, turn, uncond)
        memory.settle()
        seconds = time.perf_counter() - start
        per = self.batch_size
        return Run(kind, mitigation.title, turn, seconds / per, cost.evaluations / per, cost.decodes / per, memory.peak())


class Memory:
    """The most memory in use since this object was made: the GPU's, or that of the process (Linux)."""

    def __init__(self, device: torch.device):
        self._device = device
        self.settle()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._known = True
        except OSError:
            self._known = False

    def settle(self) -> None:
        """Wait until the device has done what it was told."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def peak(self) -> float:
        """In MiB; NaN where the system does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**20
        if not self._known:
            return float("nan")
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10


def measure(
    sampler: Sampler, mitigations: Sequence[Mitigation], prompts: Mapping[str, Sequence[str]], pictures: int, progress: bool = False
) -> tuple[list[Run], dict[str, str]]:
    """Time `pictures` turns of every mitigation on each kind of prompts; turn n takes prompt n and begins with another mitigation.

    Each is run once before, untimed, with which thresholds are calibrated and kernels chosen. Returned with the runs: for each
    mitigation that cannot be used here, why. No mitigation is always among them.
    """
    uncond = uncond_states(sampler.substrate)
    usual, left_out = {"none": get("none"), **{m.title: m for m in mitigations}}, {}
    first = next(iter(prompts.values()))[0]
    for title, mitigation in list(usual.items()):
        try:
            if why := mitigation.missing(sampler.substrate):
                raise InputError(why)
            sampler(mitigation, first, 0, uncond)
        except (InputError, NotMeasured) as error:
            if title == "none":
                raise
            left_out[title] = str(error)
            del usual[title]
    return list(_runs(sampler, list(usual.values()), prompts, pictures, uncond, progress)), left_out


def _runs(sampler: Sampler, mitigations: list[Mitigation], prompts: Mapping[str, Sequence[str]], pictures: int, uncond: Any, progress: bool) -> Iterator[Run]:
    with tqdm(total=pictures * len(prompts) * len(mitigations), unit="run", disable=not progress) as bar:
        for turn in range(pictures):
            for kind, texts in prompts.items():
                shift = turn % len(mitigations)
                for mitigation in mitigations[shift:] + mitigations[:shift]:
                    yield sampler.timed(kind, mitigation, texts[turn % len(texts)], turn, uncond)
                    bar.update()


def table(runs: Sequence[Run], left_out: Mapping[str, str]) -> pd.DataFrame:
    """One row a kind of prompts and mitigation: medians over turns, the ratio's with its 95 % interval, the largest peak.

    The interval is a bootstrap over turns of the median ratio; there is none for a single turn.
    """
    frame = pd.DataFrame([asdict(run) for run in runs])
    plain = frame[frame["mitigation"] == "none"].set_index(["prompts", "turn"])["seconds"]
    frame["ratio"] = frame["seconds"] / plain.loc[pd.MultiIndex.from_frame(frame[["prompts", "turn"]])].to_numpy()
    rows = []
    for (kind, title), part in frame.groupby(["prompts", "mitigation"], sort=False):
        ratio = quantile_interval(part["ratio"].to_numpy(), 0.5)
        rows.append({
            "prompts": kind, "mitigation": title, "seconds": part["seconds"].median(), "ratio": ratio.value, "ratio_low": ratio.low,
            "ratio_high": ratio.high, "evaluations": part["evaluations"].median(), "decodes": part["decodes"].median(),
            "peak_mib": part["peak_mib"].max(), "pictures": len(part), "note": "",
        })  # fmt: skip
    rows.sort(key=lambda row: (list(dict.fromkeys(frame["prompts"])).index(row["prompts"]), row["mitigation"] != "none", row["ratio"]))
    rows += [{"prompts": "", "mitigation": title, "pictures": 0, "note": f"not measured: {why}"} for title, why in left_out.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def as_text(found: pd.DataFrame) -> str:
    """The table as it is printed."""
    lines = [f"{'mitigation':42} {'s/picture':>10} {'ratio to none [95 %]':>24} {'U-Net rows':>11} {'decodes':>8} {'peak MiB':>9}"]
    for kind, part in found.groupby("prompts", sort=False):
        if kind:
            lines.append(f"{kind} prompts")
        for row in part.itertuples():
            if row.note:
                lines.append(f"{row.mitigation:42} {row.note}")
                continue
            lines.append(f"{row.mitigation[:42]:42} {row.seconds:10.3f} {_ratio(row, 3):>24} {row.evaluations:11.0f} {row.decodes:8.0f} {row.peak_mib:9.0f}")
    return "\n".join(lines)


def _ratio(row: Any, digits: int) -> str:
    interval = "one picture" if np.isnan(row.ratio_low) else f"{row.ratio_low:.{digits}f}, {row.ratio_high:.{digits}f}"
    return f"{row.ratio:.{digits}f} [{interval}]"


def for_page(found: pd.DataFrame) -> pd.DataFrame:
    """The table (`table`, or what ``--out`` wrote of it) as a page shows it: a row a mitigation, columns by kind of prompts.

    None comes first and then what is quick with the first kind of prompts; the peak is the largest of all kinds. What was not measured is
    left out.
    """
    found = found[found["pictures"] > 0]
    kinds = {}
    for kind, part in found.set_index("mitigation").groupby("prompts", sort=False):
        ratios, evaluations = [_ratio(row, 2) for row in part.itertuples()], part["evaluations"].round().astype(int)
        kinds[f"{kind} prompts"] = pd.DataFrame(
            {"seconds per picture": part["seconds"].round(2), "as a multiple of none": ratios, "U-Net evaluations": evaluations}
        )
    shown = pd.concat(kinds, axis=1)
    shown["memory", "peak in MiB"] = found.groupby("mitigation")["peak_mib"].max().round().astype(int)
    return shown


def chosen(names: Sequence[str] | None, every_step: bool) -> list[Mitigation]:
    """The mitigations to time, by default all; with `every_step` each one that may end early comes a second time without early ends."""
    found = []
    for mitigation in [get(name) for name in names or REGISTRY]:
        found.append(mitigation)
        if every_step and mitigation.full_run() != mitigation:
            found.append(mitigation.full_run())
    return found


@contextmanager
def _empty_store() -> Iterator[None]:
    """Meanwhile the store is an empty one: what earlier runs found for a prompt (neurons, say) would make its method look cheap."""
    before = os.environ.get("MEMLIB_STORE")
    with tempfile.TemporaryDirectory(prefix="memlib-bench-") as folder:
        os.environ["MEMLIB_STORE"] = folder
        try:
            yield
        finally:
            os.environ.pop("MEMLIB_STORE")
            if before is not None:
                os.environ["MEMLIB_STORE"] = before


def run(
    substrate: str,
    architecture: str | None,
    only: Sequence[str] | None,
    prompts: str,
    pictures: int,
    sampling: Mapping[str, Any],
    model: Mapping[str, Any],
    out: Path | None,
    runs_file: Path | None,
) -> None:
    """Carry out ``memlib bench mitigations``: measure, print, and write where asked.

    `sampling` are the fields of `Sampler`, `model` the device, the precision and whether a full-size model is built on a CPU as well.
    Raises InputError for kinds of prompts that there are not.
    """  # fmt: skip
    started = time.monotonic()
    if prompts not in (*KINDS, "both"):
        raise InputError(f"There are no prompts {prompts!r} to time: use {', '.join(KINDS)} or both.")
    mitigations = chosen(only, every_step=architecture is not None)
    if architecture:
        loaded = build(architecture, model["device"], model["dtype"], model["force"])
        texts = {"the texts' figure": choose_prompts("figures", loaded.data).prompts}
    else:
        loaded = load(substrate, model["device"], model["dtype"])
        texts = {kind: choose_prompts(kind, loaded.data, pictures).prompts for kind in (KINDS if prompts == "both" else (prompts,))}
    with _empty_store():
        runs, left_out = measure(Sampler(loaded, **sampling), mitigations, texts, pictures, progress=True)
    found = table(runs, left_out)
    print(as_text(found))
    facts = {
        "substrate": loaded.name, "pictures": f"{pictures} of each, {sampling['batch_size']} at once",
        "sampler": f"{sampling['scheduler']}, {sampling['steps']} steps, {str(loaded.dtype).removeprefix('torch.')}",
    }  # fmt: skip
    line = str(provenance(facts, started, loaded.device))
    print(f"\n{line}")
    if out is not None:
        found.assign(provenance=line).to_csv(out, index=False)
    if runs_file is not None:
        write(runs, line, runs_file)
