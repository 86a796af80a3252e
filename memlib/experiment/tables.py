"""Scores of groups of prompts as tables: means with intervals for reading, one row per prompt for plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from memlib.experiment.group import Group, edit_name
from memlib.experiment.page import told
from memlib.experiment.scores import SCORES
from memlib.experiment.settings import Edit
from memlib.judging.estimates import Estimate, mean_interval


def summary(groups: Sequence[Group], edits: Sequence[Edit], scores: Sequence[str] = SCORES, digits: int = 2) -> pd.DataFrame:
    """Means with intervals, one row per group and edit, one column per score; "not measured" where it is not."""
    rows = []
    for group in groups:
        group.make(edits)
        for key in edits:
            means = {score: told(group.mean(score, key), digits) for score in scores}
            rows.append({"prompts": f"{group.label} ({len(group)})", "edit": edit_name(key), **means})
    return pd.DataFrame(rows).set_index(["prompts", "edit"])


def long_table(groups: Sequence[Group], edits: Sequence[Edit], score: str) -> pd.DataFrame:
    """One row per group, edit and prompt: the score's mean over seeds, for plots."""
    rows = []
    for group in groups:
        for key in edits:
            values = group.score(score, key)
            if values is None:
                continue
            per_prompt = values if values.ndim == 1 else values.mean(1)
            rows += [{"prompts": group.label, "edit": edit_name(key), score: float(v)} for v in per_prompt]
    return pd.DataFrame(rows, columns=["prompts", "edit", score])


def mean_of_those(values: Any, **options: Any) -> Estimate | None:
    """Mean over the prompts and seeds of [N] or [N, S] that have a value, with its interval; None if none has (all NaN).

    `options` go to `memlib.judging.estimates.mean_interval`.
    """
    table = np.asarray(values, dtype=float)
    return mean_interval(table, missing="drop", **options) if np.isfinite(table).any() else None


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
