"""Equivalence tests: whether an edit leaves a score as it was, with changes as a share of a baseline.

A difference that is "not significant" may still be large. An equivalence test turns the question round: a margin is fixed
beforehand, and the change counts as none only if its whole interval lies inside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from memlib.base.errors import InputError
from memlib.base.numbers import is_number
from memlib.judging.estimates import Drawing, Estimate, paired_difference

OUTCOMES = ("equivalent", "lower", "higher", "open")


@dataclass(frozen=True)
class Equivalence:
    """A paired change with its interval, the margin, and one of `OUTCOMES`.

    "equivalent": the interval lies within the margin on both sides; "lower" and "higher": it lies wholly beyond the margin;
    "open": it crosses a bound, and more prompts are needed.
    """

    change: Estimate
    margin: float
    outcome: str

    def text(self, digits: int = 3) -> str:
        """Return change, interval and outcome as text."""
        return f"{self.change.text(digits)} {self.outcome}"


def equivalence(change: Estimate, margin: float) -> Equivalence:
    """Return whether `change` is equivalent to none, by two one-sided tests through its bootstrap interval.

    The interval within (-margin, margin) rejects both "lower by the margin or more" and "higher by the margin or more"; with an
    interval at level 0.95 each test is at 2.5 %. Raises InputError for a margin that is not a positive number. Without an
    interval (a single prompt) the outcome is "open". Source: Schuirmann 1987; Westlake 1972 for the interval.
    """
    if not is_number(margin) or margin <= 0:
        raise InputError(f"An equivalence margin of {margin!r} is not usable: give a positive number, fixed beforehand.")
    if -margin < change.low and change.high < margin:
        return Equivalence(change, float(margin), "equivalent")
    outcome = "lower" if change.high < -margin else "higher" if change.low > margin else "open"
    return Equivalence(change, float(margin), outcome)


def relative_change(first: Any, second: Any, base: float | None = None, **drawing: Unpack[Drawing]) -> Estimate:
    """Return mean(first - second) / base for [P] or [P, S] on the same prompts and seeds; -0.03 is a fall by 3 %.

    `base` is the mean of `second` by default. It sets the scale and is taken as known: its own spread does not
    widen the interval, which is that of the paired difference (bootstrap over prompts). Raises InputError
    for a base that is not positive, since a share of it would mean nothing.
    """
    base = float(np.mean(second)) if base is None else float(base)
    if not (math.isfinite(base) and base > 0):
        raise InputError(f"A change cannot be expressed as a share of {base:.3g}: the baseline's mean must be positive.")
    scaled = (np.asarray(first, dtype=float) / base, np.asarray(second, dtype=float) / base)
    return paired_difference(*scaled, **drawing)
