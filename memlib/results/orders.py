"""Which of two methods leaves less of a picture, or keeps more of the prompt: what texts report, and whether it is so here.

Models and metrics differ, so that values cannot be compared; the order of two methods in one table can.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from memlib.experiment.page import told
from memlib.judging.claims import reported
from memlib.judging.estimates import Estimate, paired_difference
from memlib.mitigations import REGISTRY

OUTCOMES = ("confirmed", "reversed", "open", "not measured")
# By metric of the texts, the score that stands for it. Mean and 95th percentile of similarity are judged by the mean.
SCORES = {
    "sscd_to_original": "similarity to original",
    "similarity": "similarity to training",
    "similarity_p95": "similarity to training",
    "clip_score": "alignment with prompt",
}
TIE = 0.015  # One hundredth is the last digit that `clip` prints: reported values that differ by it count as equal.


@dataclass(frozen=True)
class Order:
    """A text reports that method `lower` has a lower score than `higher`, by `gap`; `measured` is higher minus lower here, paired."""

    place: str
    score: str
    lower: str
    higher: str
    gap: float
    measured: Estimate | None

    @property
    def outcome(self) -> str:
        """One of OUTCOMES: confirmed or reversed where the whole interval lies on one side of zero."""
        if self.measured is None or np.isnan(self.measured.low):
            return "not measured"
        if self.measured.low > 0:
            return "confirmed"
        return "reversed" if self.measured.high < 0 else "open"


def orders(text: str, place: str, scores: Mapping[str, Mapping[str, np.ndarray | None]]) -> list[Order]:
    """Return every pair of methods that one table of a text tells apart (by at least TIE), judged by what was measured.

    `scores` holds [P, S] by registered name and score, on the same prompts and seeds. Where a table has mean and percentile of
    similarity, the mean is taken. Methods that the text has under several settings count once.
    """
    rows = reported(text, place)
    metrics = [metric for metric in SCORES if metric in set(rows["metric"])]
    if "similarity" in metrics and "similarity_p95" in metrics:
        metrics.remove("similarity_p95")
    found: dict[tuple[str, str, str], Order] = {}
    for metric in metrics:
        score = SCORES[metric]
        for one, other in combinations(_named(rows[rows["metric"] == metric]), 2):
            (lower, low), (higher, high) = sorted((one, other), key=lambda pair: pair[1])
            if lower == higher or high - low < TIE:
                continue
            values = [scores.get(name, {}).get(score) for name in (lower, higher)]
            measured = None if any(v is None for v in values) else paired_difference(values[1], values[0])
            found.setdefault((score, lower, higher), Order(f"{text} {place}", score, lower, higher, high - low, measured))
    return list(found.values())


def _named(rows: pd.DataFrame) -> list[tuple[str, float]]:
    """Registered name and reported value of the methods of one table and metric."""
    names = {key: name for name, method in REGISTRY.items() for key in method.reported}
    return [(names[key], float(value)) for key, value in zip(rows["method"], rows["value"], strict=True) if key in names]


def tally(found: Iterable[Order]) -> pd.DataFrame:
    """Count the outcomes by table and score, one row each."""
    rows = [{"reported in": o.place, "score": o.score, "outcome": o.outcome} for o in found]
    table = pd.DataFrame(rows, columns=["reported in", "score", "outcome"])
    counted = table.groupby(["reported in", "score"], sort=False)["outcome"].value_counts().unstack(fill_value=0)
    return counted.reindex(columns=list(OUTCOMES), fill_value=0).assign(pairs=lambda t: t.sum(axis=1)).astype(int)


def listed(found: Iterable[Order]) -> pd.DataFrame:
    """Return the orders that are confirmed or reversed, reversed ones first and large reported differences before small ones."""
    told_apart = sorted((o for o in found if o.outcome in OUTCOMES[:2]), key=lambda o: (o.outcome != "reversed", -o.gap))
    columns = ("reported in", "score", "lower", "higher", "reported difference", "here", "outcome")
    rows = [(o.place, o.score, o.lower, o.higher, round(o.gap, 2), told(o.measured), o.outcome) for o in told_apart]
    return pd.DataFrame(rows, columns=list(columns))
