"""Timed runs of mitigations, and the files in which ``memlib bench mitigations --runs`` leaves them."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from memlib.base.errors import InputError, NotMeasured
from memlib.base.paths import data_folder
from memlib.base.writing import write_table
from memlib.mitigations import Mitigation, get
from memlib.models.devices import settle
from memlib.prompts.embedding import encode_prompts
from memlib.results.table import reading
from memlib.sampling.batches import sample_batches, uncond_states
from memlib.sampling.loop import Cost
from memlib.sampling.prefix import unshared
from memlib.sampling.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """One timed batch: seconds, U-Net rows and decodes a picture, and the most memory in use meanwhile (MiB)."""

    prompts: str
    mitigation: str
    turn: int
    seconds: float
    evaluations: float
    decodes: float
    peak_mib: float


def by_turn(runs: Sequence[Run], value: str) -> pd.DataFrame:
    """A quantity of the runs ("seconds", "evaluations", ...), a row for each kind of prompts and turn, a column a mitigation, none first."""
    frame = pd.DataFrame([asdict(run) for run in runs])
    names = dict.fromkeys(["none", *frame["mitigation"]])
    return frame.pivot(index=["prompts", "turn"], columns="mitigation", values=value)[list(names)]


def path_of(substrate: str) -> Path:
    """Return where the runs of a substrate are kept."""
    return data_folder() / "bench" / f"{Path(substrate).name}-runs.csv"


def write(runs: Sequence[Run], source: str, path: Path) -> None:
    """Write runs to a CSV file, one a row; `source`, where they come from, stands in the first row."""
    table = pd.DataFrame([asdict(run) for run in runs]).round(5)
    table["source"] = [source, *[""] * (len(table) - 1)]
    write_table(path, table)


def read(substrate: str) -> tuple[list[Run], str] | None:
    """Return the runs kept for a substrate and their source, None where nothing is; raises InputError for a file that cannot be read."""
    path = path_of(substrate)
    if not path.is_file():
        return None
    with reading(path, "table of kept times"):
        table = pd.read_csv(path)
        names = [field.name for field in fields(Run)]
        return [Run(*row) for row in table[names].itertuples(index=False)], str(table["source"][0])


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
        settle(self.substrate.device)
        seconds = time.perf_counter() - start
        per = self.batch_size
        return Run(kind, mitigation.title, turn, seconds / per, cost.evaluations / per, cost.decodes / per, memory.peak())


class Memory:
    """The most memory in use since this object was made: the GPU's, or that of the process (Linux)."""

    def __init__(self, device: torch.device):
        self._device = device
        settle(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._known = True
        except OSError:
            self._known = False

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
