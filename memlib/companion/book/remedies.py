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

from memlib.judging.estimates import Estimate
from memlib.mitigations import REGISTRY, Mitigation, get
from memlib.results.evaluations import EVALUATIONS
from memlib.results.evidence import DESCRIPTIONS, MEMORIZED, SEEN_ONCE, Evidence
from memlib.results.scenarios import SCENARIOS, SIMILARITY
from memlib.results.table import join, kept, name_of, path_of
from memlib.results.table import read as read_rows

ALIGNMENT, QUALITY = "alignment with prompt", "quality"
MARGIN = 0.05  # of alignment that other prompts may lose on the mean
ORACLES = ("amg",)  # they know which training pictures are to be avoided
OTHERS = "not memorized"
NONE = get("none")


@dataclass(frozen=True)
class Source:
    """Where methods were measured: the rows by prompt set, the labels of its prompt sets, and the steps of a picture."""

    rows: Evidence = field(repr=False)
    label: str
    others: str
    steps: int


@dataclass(frozen=True)
class Remedy:
    """One method at its registered setting in one scenario. Intervals are made when they are asked for: a page shows few of them."""

    method: Mitigation
    source: Source
    counted: Source  # where rows of the U-Net were counted

    def _share(self, label: str, metric: str) -> Estimate | None:
        """Change of a metric as a share."""
        found = self.source.rows.share(metric, self.method, NONE, label)
        return None if found is None else replace(found, value=found.value - 1, low=found.low - 1, high=found.high - 1)

    @cached_property
    def _similarities(self) -> np.ndarray:
        values = self.source.rows.values(SIMILARITY, self.method, self.source.label)
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
    def similarity(self) -> Estimate | None:
        return self.source.rows.mean(SIMILARITY, self.method, self.source.label)

    @cached_property
    def plain(self) -> Estimate | None:
        """Similarity of the same prompts and seeds without it."""
        return self.source.rows.mean(SIMILARITY, NONE, self.source.label)

    @cached_property
    def change(self) -> Estimate | None:
        """Of similarity to training, against no mitigation."""
        return self.source.rows.change(SIMILARITY, self.method, NONE, self.source.label)

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
        """The same on titles that training showed once, where others were measured on the model at all."""
        return self._share(SEEN_ONCE, ALIGNMENT) if self.source.others else None

    @cached_property
    def quality_others(self) -> Estimate | None:
        return self._share(self.source.others, QUALITY)

    @cached_property
    def evaluations(self) -> tuple[float, float] | None:
        """Rows of the U-Net that a picture takes, with the method and without."""
        with_it, without = (self.counted.rows.values(EVALUATIONS, method, self.counted.label) for method in (self.method, NONE))
        return None if with_it is None or without is None else (float(with_it.mean()), float(without.mean()))

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
    everywhere = join(rows for name, rows in kept("16_all_mitigations").items() if name == substrate or name.startswith(f"{substrate}-"))
    if everywhere.empty:
        return Remedies()
    steps, edits = int(everywhere["steps"].iloc[0]), read_rows(path_of("08_mitigations", substrate))
    rows, found = _by_set(everywhere), {}
    for key, scenario in SCENARIOS.items():
        own = key == "pretrained"
        sources = [Source(rows, *((MEMORIZED, OTHERS) if own else (scenario.title, "")), steps)]
        if own and len(edits):
            sources.append(Source(_by_set(edits), MEMORIZED, DESCRIPTIONS, int(edits["steps"].iloc[0])))
        if rows.values(SIMILARITY, NONE, sources[0].label) is not None:
            found[key] = _scenario(key, scenario.title, sources)
    return Remedies(found, steps, float(everywhere["guidance"].iloc[0]))


def _by_set(rows: pd.DataFrame) -> Evidence:
    """Rows by prompt set; no mitigation has one name, whether a page called it an edit or a mitigation."""
    none, params = name_of(NONE)
    rows = rows.assign(params=rows["params"].where(rows["method"] != none, params))
    return Evidence({}, {str(label): own for label, own in rows.groupby("prompt_set", sort=False)}, "")


def _scenario(key: str, title: str, sources: Sequence[Source]) -> Scenario:
    """Each method from the source in which it was tried on the most prompts."""
    found: dict[str, Remedy] = {}
    for source in sources:
        for method in filter(None, (_setting(source, name) for name in REGISTRY if name != "none")):
            one = Remedy(method, source, sources[0])
            there = source.rows.values(SIMILARITY, method, source.label) is not None
            if there and (method.name not in found or one.n_prompts > found[method.name].n_prompts):
                found[method.name] = one
    first = sources[0]
    plain, values = first.rows.mean(SIMILARITY, NONE, first.label), first.rows.values(SIMILARITY, NONE, first.label)
    assert plain is not None and values is not None
    return Scenario(key, title, plain, tuple(sorted(found.values(), key=lambda r: r.left)), *values.shape)


def _setting(source: Source, name: str) -> Mitigation | None:
    """The registered setting of a method, or the one whose point was put where the scenario's traces have it; strengths are measured without quality."""
    rows = source.rows.rows[source.label]
    whole = rows.loc[(rows["method"] == name) & (rows["metric"] == QUALITY) & rows["value"].notna(), "params"].value_counts(sort=False)
    if whole.empty:
        return None
    registered = name_of(get(name))[1]
    params = registered if whole.get(registered, 0) == whole.max() else str(whole.idxmax())
    known = get(name).params
    return get(name, **{key: value for key, value in json.loads(params).items() if key in known})
