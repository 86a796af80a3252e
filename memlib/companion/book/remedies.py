"""Which remedy leads, from the kept table of all mitigations: registered settings alone, oracles apart.

The rule that chooses is the one that the page states: of the methods that need no training pictures, lower similarity to training with the whole interval,
and do not lower alignment of other prompts by more than a twentieth on the mean, the one that leaves the least similarity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from memlib.judging.estimates import Estimate, mean_interval, paired_difference, relative_change
from memlib.mitigations import REGISTRY, Mitigation, get
from memlib.results.evaluations import EVALUATIONS
from memlib.results.scenarios import SCENARIOS, SIMILARITY
from memlib.results.table import name_of, path_of
from memlib.results.table import read as read_rows

ALIGNMENT, QUALITY = "alignment with prompt", "quality"
MARGIN = 0.05  # of alignment that other prompts may lose on the mean
ORACLES = ("amg",)  # they know which training pictures are to be avoided
OTHERS = "not memorized"
Cells = dict[tuple[str, ...], pd.DataFrame]


@dataclass(frozen=True)
class Remedy:
    """One method at its registered setting in one scenario. Intervals are made when they are asked for: a page shows few of them."""

    method: Mitigation
    cells: Cells = field(repr=False)
    label: str
    others_label: str

    def _pair(self, label: str, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
        under, base = (_values(self.cells, label, which, metric) for which in (self.method, get("none")))
        return None if under is None or base is None else (under, base)

    def _share(self, label: str, metric: str) -> Estimate | None:
        pair = self._pair(label, metric)
        return None if pair is None or pair[1].mean() <= 0 else relative_change(*pair)

    @cached_property
    def left(self) -> float:
        """Mean similarity to training that it leaves."""
        return float(_values(self.cells, self.label, self.method, SIMILARITY).mean())  # type: ignore[union-attr]

    @cached_property
    def similarity(self) -> Estimate:
        return mean_interval(_values(self.cells, self.label, self.method, SIMILARITY))

    @cached_property
    def change(self) -> Estimate | None:
        """Of similarity to training, against no mitigation."""
        pair = self._pair(self.label, SIMILARITY)
        return None if pair is None else paired_difference(*pair)

    @cached_property
    def alignment(self) -> Estimate | None:
        """Change of alignment on the memorized prompts, as a share."""
        return self._share(self.label, ALIGNMENT)

    @cached_property
    def others(self) -> Estimate | None:
        """The same on prompts that are not memorized."""
        return self._share(self.others_label, ALIGNMENT)

    @cached_property
    def quality_others(self) -> Estimate | None:
        return self._share(self.others_label, QUALITY)

    @cached_property
    def evaluations(self) -> tuple[float, float] | None:
        """Rows of the U-Net that a picture takes, with the method and without."""
        pair = self._pair(self.label, EVALUATIONS)
        return None if pair is None else (float(pair[0].mean()), float(pair[1].mean()))

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def oracle(self) -> bool:
        return self.name in ORACLES

    @property
    def one_call(self) -> bool:
        """Whether `memlib.mitigate` puts it into any pipeline."""
        return not self.method.sampled

    @property
    def free(self) -> bool:
        return self.evaluations is not None and self.evaluations[0] == self.evaluations[1]

    @property
    def lowers(self) -> bool:
        return self.change is not None and self.change.high < 0

    @property
    def spares(self) -> bool:
        """Whether other prompts keep their alignment, as far as the mean tells; where it was measured on these only, these."""
        cost = self.others if self.others is not None else self.alignment
        return cost is not None and cost.value >= -MARGIN


@dataclass(frozen=True)
class Scenario:
    """A way in which memorization comes about, with all remedies measured in it, the least similarity first."""

    key: str
    title: str
    plain: Estimate
    remedies: tuple[Remedy, ...]
    n_prompts: int
    n_seeds: int

    @property
    def leader(self) -> Remedy | None:
        return next((r for r in self.remedies if not r.oracle and r.lowers and r.spares), None)

    def remedy(self, name: str) -> Remedy | None:
        return next((r for r in self.remedies if r.name == name), None)


@dataclass(frozen=True)
class Remedies:
    """The scenarios by key, and the protocol of the pictures."""

    scenarios: Mapping[str, Scenario] = field(default_factory=dict)
    steps: int = 0
    guidance: float = 0.0

    @property
    def main(self) -> Scenario | None:
        """A pre-trained model's own memorized prompts."""
        return self.scenarios.get("pretrained")

    @property
    def leader(self) -> Remedy | None:
        return self.main.leader if self.main else None


def read(substrate: str) -> Remedies:
    """The kept table of a substrate; without scenarios where there is none."""
    rows = read_rows(path_of("all_mitigations", substrate))
    if rows.empty:
        return Remedies()
    keys = ["prompt_set", "method", "params", "metric"]
    measured = rows[rows["value"].notna()].sort_values(["prompt", "seed"])
    cells: Cells = {tuple(map(str, key)): frame for key, frame in measured.groupby(keys, sort=False)}  # filtered once: the table is long
    found = {}
    for key, scenario in SCENARIOS.items():
        label, others = ("memorized", OTHERS) if key == "pretrained" else (scenario.title, "")
        if _values(cells, label, get("none"), SIMILARITY) is not None:
            found[key] = _scenario(key, scenario.title, cells, label, others)
    return Remedies(found, int(rows["steps"].iloc[0]), float(rows["guidance"].iloc[0]))


def _scenario(key: str, title: str, cells: Cells, label: str, others: str) -> Scenario:
    plain = _values(cells, label, get("none"), SIMILARITY)
    assert plain is not None
    found = [Remedy(method, cells, label, others) for method in filter(None, (_setting(cells, label, name) for name in REGISTRY if name != "none"))]
    whole = [r for r in found if _values(cells, label, r.method, SIMILARITY) is not None]
    return Scenario(key, title, mean_interval(plain), tuple(sorted(whole, key=lambda r: r.left)), *plain.shape)


def _values(cells: Cells, label: str, method: Mitigation, metric: str) -> np.ndarray | None:
    """A metric under a method by prompt and seed, [P, S]; None where it was not measured."""
    rows = cells.get((label, *name_of(method), metric))
    if rows is None:
        return None
    values = rows["value"].to_numpy(float)
    return values.reshape(rows["prompt"].nunique(), -1) if rows["seed"].notna().all() else values


def _setting(cells: Cells, label: str, name: str) -> Mitigation | None:
    """The registered setting of a method, or the one whose point was put where the scenario's traces have it; strengths are measured without quality."""
    whole = {params: len(rows) for (where, method, params, metric), rows in cells.items() if (where, method, metric) == (label, name, QUALITY)}
    if not whole:
        return None
    registered = name_of(get(name))[1]
    params = registered if whole.get(registered, 0) == max(whole.values()) else max(whole, key=whole.__getitem__)
    known = get(name).params
    return get(name, **{key: value for key, value in json.loads(params).items() if key in known})
