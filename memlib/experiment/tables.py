"""Scores of groups of prompts as tables: means with intervals for reading, one row per prompt for plots."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from memlib.experiment.group import Edit, Group, edit_name
from memlib.experiment.page import told
from memlib.experiment.scores import SCORES


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
