"""Quartiles of traces and of transition steps."""

from __future__ import annotations

import numpy as np

from memlib.judging.estimates import Estimate


def middle_half(values: np.ndarray) -> dict[int, Estimate]:
    """Median and quartiles over prompts and seeds at each step of [N, S, T], for bands of `memlib.results.figures`."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=(0, 1))
    prompts, seeds = values.shape[:2]
    return {i: Estimate(middle[i], low[i], high[i], prompts, seeds, 0.5) for i in range(len(middle))}


def median_step(steps: np.ndarray) -> str:
    """Median and quartiles of those steps that exist (0 and above) as ``12 [9, 15]``; "none" if none does."""
    if not (steps >= 0).any():
        return "none"
    low, middle, high = np.quantile(steps[steps >= 0], (0.25, 0.5, 0.75))
    return f"{middle:.0f} [{low:.0f}, {high:.0f}]"
