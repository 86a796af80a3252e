"""Rows of the table of scores that were measured anew, beside those of a reference run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from memlib.base.errors import InputError
from memlib.results.table import KEYS

# Another machine's arithmetic, another batch or precision moves a score by a hundredth of its standard deviation, and now and then turns a picture that
# nothing holds in place into another one. So TURNED of a method's values may differ by any amount, one of two or three; the mean
# difference of the others is at most TOLERANCE of the metric's standard deviation. A method that works otherwise moves nearly all of its values.
TURNED = 1 / 4
TOLERANCE = 0.1


@dataclass(frozen=True)
class Comparison:
    """Rows measured anew beside those of the reference: how many, and the largest difference in standard deviations of a metric, with its place."""

    rows: int = 0
    apart: float = 0.0
    where: str = ""


def compare(now: pd.DataFrame, kept: pd.DataFrame) -> Comparison:
    """Compare rows with the same keys, method by method under each metric, and each metric over all methods together (see TOLERANCE).

    The second keeps a check of two values a method from passing where one of every method has turned. Raises InputError where the reference
    lacks a method.
    """
    if lacking := sorted(set(zip(now["method"], now["metric"])) - set(zip(kept["method"], kept["metric"]))):
        told_of = "; ".join(f"{metric} under {method}" for method, metric in lacking[:3])
        raise InputError(f"The reference run lacks {told_of}: measure it again (make book PROFILE=reference).")
    both = now.merge(kept, on=list(KEYS), suffixes=("", "_kept"))
    both = both[both["value"].notna() & both["value_kept"].notna()]
    spread = kept.groupby("metric")["value"].std().fillna(0.0).clip(lower=1e-6)
    both = both.assign(apart=(both["value"] - both["value_kept"]).abs() / both["metric"].map(spread).astype(float))
    found = {f"{metric} under {method}": _without_turned(own["apart"]) for (method, _, metric), own in both.groupby(["method", "params", "metric"])}
    found |= {f"{metric} over all methods": _without_turned(own["apart"]) for metric, own in both.groupby("metric")}
    where = max(found, key=found.__getitem__, default="")
    return Comparison(len(both), found.get(where, 0.0), where)


def require_agreement(now: pd.DataFrame, kept: pd.DataFrame, reference: Path) -> Comparison:
    """Compare, and raise InputError where they are further apart than TOLERANCE."""
    found = compare(now, kept)
    if found.apart > TOLERANCE:
        raise InputError(
            f"{found.where}: what was measured anew differs from the reference run {reference.name} by {found.apart:.2f} standard deviations, more than "
            f"{TOLERANCE:g}: look for what has changed since, or measure the reference again (make book PROFILE=reference)."
        )
    return found


def _without_turned(apart: pd.Series) -> float:
    """Mean without the quarter that differs most; of two or three values without one."""
    values = np.sort(apart.to_numpy(float))
    turned = max(int(TURNED * len(values)), int(len(values) > 1))
    return float(values[: len(values) - turned].mean())
