"""What is compared across the scenarios of `basin`: how transition points spread, and what methods do in each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from memlib.experiment.page import NOT_MEASURED
from memlib.experiment.settings import Edit
from memlib.judging.bounded import bounded_mean, student_ratio
from memlib.judging.estimates import LEVEL, Estimate, bootstrap
from memlib.mitigations import Mitigation, get
from memlib.results.evidence import Evidence
from memlib.results.scenarios import SIMILARITY, earlier_methods, own_methods
from memlib.results.table import matrix, name_of

SHARED_SPREAD = 0.05  # share of the schedule up to which claim B3 takes a transition point to be one for all
RESAMPLES = 5_000


def _valid(steps: np.ndarray) -> np.ndarray:
    return steps[(steps >= 0).any(1)]


def _deviation(steps: np.ndarray, total: int) -> float:
    values = steps[steps >= 0]
    return float(values.std(ddof=1)) / total if values.size > 1 else 0.0


def spread(steps: np.ndarray, total: int) -> Estimate | None:
    """Standard deviation of the transition steps [P, S] as a share of `total` steps, bootstrap over prompts.

    Pictures without a transition (-1) are left out; None with fewer than two prompts that have one.
    """
    kept = _valid(steps)
    return None if len(kept) < 2 else _estimate(lambda rows: _deviation(kept[rows], total), [kept])


def kind_of(found: Estimate | None) -> str:
    """Return whether a spread says that all pictures share one transition point ("static"), or each has its own ("dynamic"): with its whole
    interval at most, or above, SHARED_SPREAD; else "open"."""
    if found is None:
        return NOT_MEASURED
    return "static" if found.high <= SHARED_SPREAD else "dynamic" if found.low > SHARED_SPREAD else "open"


def spread_difference(first: np.ndarray, second: np.ndarray, total: int) -> Estimate | None:
    """Spread of the first minus that of the second, steps [P, S] and [Q, S] of independent prompts."""
    sides = [_valid(steps) for steps in (first, second)]
    if min(map(len, sides)) < 2:
        return None
    return _estimate(lambda one, two: _deviation(sides[0][one], total) - _deviation(sides[1][two], total), sides)


def effect_share(none: np.ndarray, method: np.ndarray, own: np.ndarray) -> Estimate | None:
    """How much `method` lowers the mean of `none` as a share of what `own` does, all [P, S] on the same prompts and seeds.

    None where `own` lowers nothing, so that there is nothing to compare with, or with fewer than two prompts.
    """
    falls = [(none - other).mean(1) for other in (method, own)]
    if len(none) < 2 or falls[1].mean() <= 0:
        return None

    def share(rows: np.ndarray) -> float:
        below = falls[1][rows].mean()
        return float(falls[0][rows].mean() / below) if below > 0 else np.inf

    return _estimate(share, [none])


def _estimate(statistic: Callable[..., float], tables: Sequence[np.ndarray]) -> Estimate:
    value = statistic(*(np.arange(len(table)) for table in tables))
    # Infinite resamples (a share of nothing) belong to the upper end: quantiles are taken of the draws themselves.
    return bootstrap(lambda *drawn: np.array([statistic(*rows) for rows in zip(*drawn, strict=True)]), tables, value,
                     rows=True, resamples=RESAMPLES, method="nearest")  # fmt: skip


def worst_of(own: Sequence[Mitigation], measured: Callable[[Mitigation], Estimate | None], largest: bool = False) -> Estimate | None:
    """Return what was `measured` of that method for which it is smallest, or `largest`; None where one was not measured, or there is no method."""
    found = [estimate for method in own if (estimate := measured(method)) is not None]
    return None if not found or len(found) < len(own) else sorted(found, key=lambda estimate: estimate.value)[-1 if largest else 0]


def shares_of_effect(measured: Mapping[str, tuple[pd.DataFrame, Sequence[Mitigation]]]) -> dict[str, dict[str, Estimate | None]]:
    """By earlier method and scenario: how much it lowers similarity, as a share of what the better of the text's own does.

    `measured` has by scenario its rows and the methods as they were placed there.
    """
    earlier = [method.name for method in earlier_methods()]
    found: dict[str, dict[str, Estimate | None]] = {name: {} for name in earlier}
    for key, (rows, methods) in measured.items():
        none = matrix(rows, SIMILARITY, get("none"))
        own = [values for m in own_methods(key, methods) if (values := matrix(rows, SIMILARITY, m)) is not None]
        best = min(own, key=np.mean) if none is not None and own else None
        for method in methods:
            if method.name in found and _has_scores(rows, method):
                values = matrix(rows, SIMILARITY, method)
                found[method.name][key] = None if none is None or best is None or values is None else effect_share(none, values, best)
    return found


def loss_share(found: Evidence, metric: str, edit: Edit, severe: Edit, of: str, baseline: Edit = "none") -> Estimate | None:
    """What a score of the group `of` loses under `edit`, against `baseline`, as a share of what it loses under `severe`, paired.

    None where one was not measured, or nothing is lost under `severe`, so that there is nothing to compare with.
    """
    none, under, worst = (found.values(metric, which, of) for which in (baseline, edit, severe))
    if none is None or under is None or worst is None or (none - worst).mean() <= 0:
        return None
    return student_ratio(none - under, none - worst)


def shortfall(measured: Mapping[str, tuple[pd.DataFrame, Sequence[Mitigation]]], name: str) -> Estimate | None:
    """Similarity to training under a method minus that under one of the text's own, in the scenario and against the own method where that is largest.

    `measured` as in `shares_of_effect`. Student's interval with one imagined prompt at either end, at a level that is corrected (Bonferroni) for
    choosing among so many comparisons. None where nothing was measured.
    """
    differences = [
        under - best
        for key, (rows, methods) in measured.items()
        for method in methods
        if method.name == name and (under := matrix(rows, SIMILARITY, method)) is not None
        for own in own_methods(key, methods)
        if (best := matrix(rows, SIMILARITY, own)) is not None
    ]
    if not differences:
        return None
    largest = max(differences, key=np.mean)
    return bounded_mean(largest, -1.0, 1.0, level=1 - (1 - LEVEL) / len(differences))


def _has_scores(rows: pd.DataFrame, method: Mitigation) -> bool:
    name, params = name_of(method)
    return bool(((rows["method"] == name) & (rows["params"] == params) & (rows["note"] == "")).any())
