"""Which remedy leads, from the kept tables of mitigations: registered settings alone, oracles apart, each where it was tried on the most prompts.

The rule that chooses is the one that the page states: of the methods that need no training pictures, lower similarity to training with the whole interval,
and do not lower alignment of other prompts by more than a twentieth on the mean, the one that leaves the least similarity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd

from memlib.judging.bounded import student_change, student_mean, student_ratio
from memlib.judging.estimates import Estimate
from memlib.mitigations import REGISTRY, Mitigation, get
from memlib.results.evaluations import EVALUATIONS
from memlib.results.evidence import DESCRIPTIONS, ENDS, MEMORIZED, SEEN_ONCE
from memlib.results.scenarios import SCENARIOS, SIMILARITY
from memlib.results.table import join, kept, name_of

ALIGNMENT, QUALITY = "alignment with prompt", "quality"
MARGIN = 0.05  # of alignment that other prompts may lose on the mean
ORACLES = ("amg",)  # they know which training pictures are to be avoided
OTHERS = "not memorized"
Cells = dict[tuple[str, ...], pd.DataFrame]


@dataclass(frozen=True)
class Source:
    """Where methods were measured: cells of a table by prompt set, the labels of its prompt sets, and the steps of a picture."""

    cells: Cells = field(repr=False)
    label: str
    others: str
    steps: int

    def values(self, label: str, method: Mitigation, metric: str) -> np.ndarray | None:
        return _values(self.cells, label, method, metric)

    def pair(self, label: str, method: Mitigation, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
        under, base = (self.values(label, which, metric) for which in (method, get("none")))
        return None if under is None or base is None or under.shape != base.shape else (under, base)


@dataclass(frozen=True)
class Remedy:
    """One method at its registered setting in one scenario. Intervals are made when they are asked for: a page shows few of them."""

    method: Mitigation
    source: Source
    counted: Source  # where rows of the U-Net were counted

    def _share(self, label: str, metric: str) -> Estimate | None:
        """Change of a metric as a share."""
        pair = self.source.pair(label, self.method, metric)
        if pair is None or pair[1].mean() <= 0:
            return None
        found = student_ratio(*pair)
        return replace(found, value=found.value - 1, low=found.low - 1, high=found.high - 1)

    @cached_property
    def _similarities(self) -> np.ndarray:
        values = self.source.values(self.source.label, self.method, SIMILARITY)
        assert values is not None
        return values

    @property
    def left(self) -> float:
        """Mean similarity to training that it leaves."""
        return float(self._similarities.mean())

    @property
    def n_prompts(self) -> int:
        return len(self._similarities)

    @property
    def n_seeds(self) -> int:
        return int(self._similarities.shape[1])

    @property
    def steps(self) -> int:
        return self.source.steps

    @cached_property
    def similarity(self) -> Estimate:
        return student_mean(self._similarities, ENDS["similarity"])

    @cached_property
    def plain(self) -> Estimate:
        """Similarity of the same prompts and seeds without it."""
        return student_mean(self.source.values(self.source.label, get("none"), SIMILARITY), ENDS["similarity"])

    @cached_property
    def change(self) -> Estimate | None:
        """Of similarity to training, against no mitigation."""
        pair = self.source.pair(self.source.label, self.method, SIMILARITY)
        return None if pair is None else student_change(*pair, ENDS["similarity"])

    @cached_property
    def alignment(self) -> Estimate | None:
        """Change of alignment on the memorized prompts, as a share."""
        return self._share(self.source.label, ALIGNMENT)

    @cached_property
    def others(self) -> Estimate | None:
        """The same on descriptions that are not memorized."""
        return self._share(self.source.others, ALIGNMENT)

    @cached_property
    def seen_once(self) -> Estimate | None:
        """The same on titles that training showed once."""
        return self._share(SEEN_ONCE, ALIGNMENT)

    @cached_property
    def quality_others(self) -> Estimate | None:
        return self._share(self.source.others, QUALITY)

    @cached_property
    def evaluations(self) -> tuple[float, float] | None:
        """Rows of the U-Net that a picture takes, with the method and without."""
        pair = self.counted.pair(self.counted.label, self.method, EVALUATIONS)
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
    """The kept tables of a substrate and of the models fine-tuned from it; without scenarios where there are none."""
    rows = join(_of(substrate, "16_all_mitigations", family=True))
    if rows.empty:
        return Remedies()
    steps, edits = int(rows["steps"].iloc[0]), join(_of(substrate, "08_mitigations"))
    cells, found = _cells(rows), {}
    for key, scenario in SCENARIOS.items():
        own = key == "pretrained"
        sources = [Source(cells, *((MEMORIZED, OTHERS) if own else (scenario.title, "")), steps)]
        if own and len(edits):
            sources.append(Source(_cells(edits), MEMORIZED, DESCRIPTIONS, int(edits["steps"].iloc[0])))
        if sources[0].values(sources[0].label, get("none"), SIMILARITY) is not None:
            found[key] = _scenario(key, scenario.title, sources)
    return Remedies(found, steps, float(rows["guidance"].iloc[0]))


def _of(substrate: str, page: str, family: bool = False) -> list[pd.DataFrame]:
    return [rows for name, rows in kept(page).items() if name == substrate or (family and name.startswith(f"{substrate}-"))]


def _cells(rows: pd.DataFrame) -> Cells:
    """Rows filtered once, since the table is long; no mitigation has one name, whether a page called it an edit or a mitigation."""
    measured = rows[rows["value"].notna()].sort_values(["prompt", "seed"])
    none, params = name_of(get("none"))
    measured = measured.assign(params=measured["params"].where(measured["method"] != none, params))
    return {tuple(map(str, key)): frame for key, frame in measured.groupby(["prompt_set", "method", "params", "metric"], sort=False)}


def _scenario(key: str, title: str, sources: Sequence[Source]) -> Scenario:
    """Each method from the source in which it was tried on the most prompts."""
    found: dict[str, Remedy] = {}
    for source in sources:
        for method in filter(None, (_setting(source.cells, source.label, name) for name in REGISTRY if name != "none")):
            one = Remedy(method, source, sources[0])
            if source.values(source.label, method, SIMILARITY) is not None and (method.name not in found or one.n_prompts > found[method.name].n_prompts):
                found[method.name] = one
    plain = sources[0].values(sources[0].label, get("none"), SIMILARITY)
    assert plain is not None
    return Scenario(key, title, student_mean(plain, ENDS["similarity"]), tuple(sorted(found.values(), key=lambda r: r.left)), *plain.shape)


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
