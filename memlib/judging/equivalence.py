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
from memlib.judging.estimates import Drawing, Estimate, bootstrap_weights, paired_difference, percentile_interval

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


def pair_interval(values: Any, **drawing: Unpack[Drawing]) -> Estimate:
    """Return the mean over ordered pairs of prompts of `values` [P, P], or [P, P, S], with its interval; the diagonal is not used.

    The pairs of one prompt are not independent, whether it stands first or second. The bootstrap draws prompts, and
    each pair weighs as often as both its prompts were drawn together (a drawing in which a prompt meets only itself is
    left out). `n_prompts` is P. Two prompts have no interval (NaN). Raises InputError for another shape or fewer than two prompts.
    """
    table = np.asarray(values, dtype=float)
    seeds = table.shape[2] if table.ndim == 3 else 1
    if table.ndim not in (2, 3) or table.shape[0] != table.shape[1] or len(table) < 2:
        raise InputError(f"Pairs need values of shape [prompts, prompts], at least 2 x 2, not {table.shape}.")
    pairs = table.mean(2) if table.ndim == 3 else table
    off = ~np.eye(len(pairs), dtype=bool)
    if not np.isfinite(pairs[off]).all():
        raise InputError("Some pairs have no finite value: measure them all.")
    pairs = np.where(off, pairs, 0.0)
    weights = bootstrap_weights(len(pairs), **drawing)
    totals = np.einsum("ri,ij,rj->r", weights, pairs, weights, optimize=True)
    together = 1 - (weights**2).sum(1)
    kept = together > 1e-9  # what is left is zero but for rounding where one prompt alone was drawn
    # Two prompts make one pair, and every drawing that counts is the same.
    least = 2 if len(pairs) > 2 else 0
    return percentile_interval(pairs.sum() / off.sum(), totals[kept] / together[kept], len(pairs), seeds, least=least)
