"""What a report is made of: prompts screened for copies, mitigations on those that are reproduced and on others, detectors between the two.

Every picture and score is in the store, so that a command that was stopped goes on where it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd

from memlib.base.errors import InputError, NotMeasured
from memlib.base.numbers import counted
from memlib.companion.report.own import Judged
from memlib.companion.report.pace import Pace
from memlib.experiment.group import Group
from memlib.experiment.run import Experiment
from memlib.metrics import MetricSet
from memlib.mitigations import REGISTRY as MITIGATIONS
from memlib.mitigations import Mitigation, get
from memlib.probes.detectors import REGISTRY as DETECTORS
from memlib.probes.detectors import Detector
from memlib.probes.detectors import get as named_detector
from memlib.probes.detectors.base import NEEDS
from memlib.probes.detectors.evaluation import Evaluation, evaluate
from memlib.prompts.sets import PromptSet
from memlib.results.evaluations import BY_CHANCE
from memlib.results.measure import scored
from memlib.results.table import join

SIMILARITY, CHANGED, AGREEMENT = "similarity to training", "similarity to original", "alignment with prompt"
FEWEST = 3  # Prompts of either kind without which nothing is compared.


@dataclass(frozen=True)
class Scope:
    """How much is measured: prompts that mitigations and detectors are tried on, of either kind, and seeds of each, beside those of the screening."""

    prompts: int = 12
    seeds: int = 2
    every: bool = False  # all mitigations and not those alone that are one call on a pipeline
    methods: tuple[str, ...] = ()  # mitigations by name, these alone
    detectors: tuple[str, ...] = ()  # likewise


@dataclass
class Findings:
    """What was found. `similarity` [P, S] is that of the screened prompts' pictures to their training pictures, `reproduced` and `never` are rows of it.

    `memorized` and `others` are the groups on which `rows` and `other_rows` (tables of scores) were taken, with seeds that the screening did not use;
    None where there were too few prompts. `notes` say what could not be measured.
    """

    run: Experiment
    judged: Judged
    screened: Group
    similarity: np.ndarray
    memorized: Group | None = None
    others: Group | None = None
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    other_rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    methods: list[Mitigation] = field(default_factory=list)
    detected: list[Evaluation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def copies(self) -> np.ndarray:
        """Which pictures are copies, bool [P, S]."""
        return self.similarity >= self.judged.metric.threshold

    @property
    def reproduced(self) -> np.ndarray:
        """Rows of the prompts of which at least half the pictures are copies, the most alike first."""
        order = np.argsort(-self.similarity.mean(1), kind="stable")
        return order[self.copies.mean(1)[order] >= 0.5]

    @property
    def never(self) -> np.ndarray:
        """Rows of the prompts of which no picture is a copy."""
        return np.flatnonzero(~self.copies.any(1))


def find(run: Experiment, screened: Group, judged: Judged, other_prompts: PromptSet | None, scope: Scope, say: Callable[[str], None] = print) -> Findings:
    """Measure all that a report tells of the prompts `screened`; `other_prompts` are not memorized (None: the screened ones that gave no copy)."""
    run.metrics = MetricSet({**run.metrics, "copy": judged.metric})
    prompts, pace = screened.prompts, Pace(run.cost, say)
    each, seeds = 2.0 * run.steps, len(run.seeds)
    methods, detectors = _methods(scope), [named_detector(name) for name in scope.detectors] or list(DETECTORS.values())
    ahead = min(scope.prompts, len(prompts)) * scope.seeds * each
    pace.plan(len(prompts) * seeds * each + 2 * len(methods) * ahead)
    at_once = max(1, (run.batch_size or run.substrate.batch_size()) // seeds)
    for start in range(0, len(prompts), at_once):
        rows = range(start, min(start + at_once, len(prompts)))
        label = f"Screening, {rows.stop} of {counted(len(prompts), 'prompt')}"
        pace.step(label, len(rows) * seeds * each, partial(screened.some_pictures, "none", rows))
    similarity = screened.score(SIMILARITY)
    assert similarity is not None  # training pictures and copy metric were at hand for `judged`
    found = Findings(run, judged, screened, similarity)
    fresh = copy.copy(run)
    fresh.seeds = tuple(range(seeds, seeds + scope.seeds))
    chosen, rest = found.reproduced[: scope.prompts], found.never
    say(f"{len(found.reproduced)} of {counted(len(prompts), 'prompt')} are reproduced with at least half their seeds.")
    if len(chosen) < FEWEST:
        found.notes.append(f"Mitigations and detectors are compared on prompts that are reproduced, and there are {len(chosen)}: they were not measured.")
        return found
    found.memorized = Group(fresh, prompts.select(chosen), "reproduced")
    found.others = _others(fresh, prompts, rest, other_prompts, scope.prompts, found)
    pace.plan(len(methods) * ((len(chosen) + len(found.others or ())) * scope.seeds * each - 2 * ahead))
    _mitigations(found, methods, scope.seeds * each, pace)
    if found.others is not None:
        _detectors(found, found.others, detectors, each, pace)
    return found


def _methods(scope: Scope) -> list[Mitigation]:
    """No mitigation and those named, or those registered that a plain pipeline can be given in one call, or all."""
    chosen = [get(name) for name in scope.methods] or [m for m in MITIGATIONS.values() if scope.every or not m.sampled]
    return list(dict.fromkeys([get("none"), *chosen]))


def _others(fresh: Experiment, prompts: PromptSet, rest: np.ndarray, given: PromptSet | None, count: int, found: Findings) -> Group | None:
    chosen = given.sample(min(count, len(given)), seed=0) if given is not None else prompts.select(rest[:count]) if len(rest) >= FEWEST else None
    if chosen is None or len(chosen) < FEWEST:
        found.notes.append(
            "What a mitigation costs other prompts, and which detector tells, was not measured, since too few prompts gave no copy: give others with --others."
        )
        return None
    return Group(fresh, chosen, "others")


def _mitigations(found: Findings, methods: Sequence[Mitigation], each: float, pace: Pace) -> None:
    memorized, others, rows, beside = found.memorized, found.others, [], []
    assert memorized is not None
    told, told_of_others = [SIMILARITY, AGREEMENT, BY_CHANCE], [CHANGED, AGREEMENT, BY_CHANCE]
    for place, method in enumerate(methods, 1):
        label = f"Mitigation {place} of {len(methods)}, {method.name}"
        one = pace.step(f"{label}, reproduced prompts", len(memorized) * each, partial(_rows, memorized, method, told, evaluations=True))
        rows.append(one)
        if others is not None and not (one["note"] != "").any():
            beside.append(pace.step(f"{label}, others", len(others) * each, partial(_rows, others, method, told_of_others)))
    found.methods, found.rows, found.other_rows = list(methods), join(rows), join(beside)


def _rows(group: Group, method: Mitigation, metrics: Sequence[str], evaluations: bool = False) -> pd.DataFrame:
    return scored(group, [method], metrics, evaluations)


def _detectors(found: Findings, others: Group, chosen: Sequence[Detector], each: float, pace: Pace) -> None:
    memorized = found.memorized
    assert memorized is not None
    pictures = (len(memorized) + len(others)) * len(memorized.experiment.seeds)
    # Those that need most go first, since others read what they need from the same run.
    ordered = sorted(chosen, key=lambda detector: NEEDS.index(detector.needs))
    price = {"whole run with attention": each, "first steps": 8.0}
    rows = {d: pictures * price.get(d.needs, 0.0) / (1 if d is ordered[0] or d.needs != NEEDS[0] else 100) for d in ordered}
    pace.plan(sum(rows.values()))
    for place, detector in enumerate(ordered, 1):
        label = f"Detector {place} of {len(ordered)}, {detector.name}"
        found.detected.append(pace.step(label, rows[detector], partial(_judged, detector, memorized, others)))


def _judged(detector: Detector, memorized: Group, others: Group) -> Evaluation:
    try:
        return evaluate(detector, detector.measure(memorized), detector.measure(others))
    except (InputError, NotMeasured) as error:
        return evaluate(detector, str(error), str(error))
