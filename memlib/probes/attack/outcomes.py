"""What attacks amount to: shares of pictures that come back, what is left of them beside controls, and steps to success."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import CensoredData, ecdf, logrank

from memlib.base.errors import InputError
from memlib.judging.estimates import LEVEL, Estimate, share_interval


def share(flags: Any) -> Estimate | None:
    """Return the share of pictures that came back, with Wilson's interval; None for no pictures."""
    flags = np.asarray(flags, dtype=bool)
    return share_interval(flags) if len(flags) else None


def excess(first: Any, second: Any) -> Estimate | None:
    """Return the share of `first` [P] minus that of `second` [Q], two sets of pictures; None if one of them is empty.

    The interval joins Wilson's of both sides, so that it keeps a width where all or none came back; `n_prompts` is that of the fewer. Source: Newcombe
    1998, method 10.
    """
    one, other = share(first), share(second)
    if one is None or other is None:
        return None
    value = one.value - other.value
    low = value - np.hypot(one.value - one.low, other.high - other.value)
    high = value + np.hypot(one.high - one.value, other.value - other.low)
    return Estimate(value, float(low), float(high), min(one.n_prompts, other.n_prompts), 1)


@dataclass(frozen=True)
class Survival:
    """The share of pictures not yet brought up, by step: `steps` [K], `value`, `low` and `high` [K]; `pictures` of them, `failed` never."""

    steps: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    pictures: int
    failed: int


def survival(steps: Any, last: int) -> Survival:
    """Return the curve for `steps` [P] until success (-1: none within `last` steps, that is, censored there).

    Kaplan and Meier's estimate with the log-log interval, from 0 to `last`. Success is only seen at a test, so that it is dated to the test
    after it; curves of one budget are dated alike. One value for each picture: runs on the same picture are not independent. Raises
    InputError for no values.
    """
    steps = np.asarray(steps, dtype=float).reshape(-1)
    if not len(steps):
        raise InputError("A survival curve needs at least one picture: attack some.")
    done, missed = steps[steps >= 0], int((steps < 0).sum())
    grid = np.unique(np.r_[0.0, done, float(last)])
    if not len(done):
        ends = share_interval(np.zeros(missed, bool))
        flat = np.ones(len(grid))
        return Survival(grid, flat, np.full(len(grid), 1 - ends.high), flat, missed, missed)
    curve: Any = ecdf(_censored(steps, last)).sf
    with warnings.catch_warnings():  # where all are alive, or none, the log-log interval has no value
        warnings.simplefilter("ignore")
        interval = curve.confidence_interval(LEVEL, method="log-log")
    value = curve.evaluate(grid)
    low, high = (np.where(np.isnan(end), value, end) for end in (interval.low.evaluate(grid), interval.high.evaluate(grid)))
    return Survival(grid, value, low, high, len(steps), missed)


def apart(first: Any, second: Any, last: int) -> float:
    """Return the p value of the log-rank test between two sets of steps until success; NaN where nobody succeeded."""
    first, second = np.asarray(first, float).reshape(-1), np.asarray(second, float).reshape(-1)
    if not len(first) or not len(second) or (np.r_[first, second] < 0).all():
        return float("nan")
    return float(logrank(_censored(first, last), _censored(second, last)).pvalue)


def _censored(steps: np.ndarray, last: int) -> CensoredData:
    missed = steps < 0
    return CensoredData(uncensored=steps[~missed], right=np.full(int(missed.sum()), float(last)))
