"""How rows of the table of scores come about: a group's pictures under methods, judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from memlib.base.errors import InputError, NotMeasured
from memlib.experiment.group import Group
from memlib.experiment.settings import Edit
from memlib.mitigations import Mitigation
from memlib.results.evaluations import BY_CHANCE, EVALUATIONS, WITH_CHANGED, alignment_by_chance, alignment_with_changed, counted
from memlib.results.table import SCORES, join, name_of, rows_of


def scored(group: Group, methods: Iterable[Edit], metrics: Sequence[str] = SCORES, evaluations: bool = False) -> pd.DataFrame:
    """Return rows of a group of prompts under each method: scores by prompt and seed, and with `evaluations` the U-Net rows of a picture.

    A score that cannot be measured here has no rows; a method that cannot be used here has one, with a note.
    """
    methods = list(dict.fromkeys(methods))
    made = group.make(m for m in methods if not _missing(m, group))
    return join(_measured(group, method, metrics, evaluations, made.get(method)) for method in methods)


def _measured(group: Group, method: Edit, metrics: Sequence[str], evaluations: bool, known: float | None) -> pd.DataFrame:
    try:
        if why := _missing(method, group):
            raise NotMeasured(why)
        # First, since rows are counted while pictures are made.
        rows = counted(group, method, known) if evaluations and isinstance(method, Mitigation) else None
        values = {metric: _value(group, method, metric) for metric in metrics} | {EVALUATIONS: rows}
        return join(rows_of(group, method, metric, value) for metric, value in values.items() if value is not None)
    except (InputError, NotMeasured) as error:
        if name_of(method)[0] == "none":
            raise
        return rows_of(group, method, "", np.nan, note=str(error))


def _value(group: Group, method: Edit, metric: str) -> Any:
    if metric == BY_CHANCE:
        return alignment_by_chance(group) if name_of(method)[0] == "none" else None
    if metric == WITH_CHANGED:
        return alignment_with_changed(group, method) if isinstance(method, Mitigation) and method.rewrites else None
    return group.score(metric, method)


def _missing(method: Edit, group: Group) -> str:
    return method.missing(group.experiment.substrate) if isinstance(method, Mitigation) else ""
