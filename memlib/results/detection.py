"""Detectors' scores as rows of the table of scores, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from memlib.experiment.group import Group
from memlib.experiment.page import NOT_MEASURED
from memlib.probes.detectors.base import Detector, Scores
from memlib.probes.detectors.evaluation import measure_all
from memlib.results.evaluations import EVALUATIONS
from memlib.results.evidence import Evidence
from memlib.results.table import join, rows_of

SCORE = "detector's score"


def detected(group: Group, detectors: Iterable[Detector] | None = None) -> pd.DataFrame:
    """Return rows of each detector's scores of a group (all registered ones by default), and of U-Net evaluations per prompt.

    The method of a row is the detector's title. One that cannot be computed here has a single row, with a note.
    """
    parts = []
    for detector, scores in measure_all([group], detectors).items():
        if isinstance(scores, str):
            parts.append(rows_of(group, detector.title, "", np.nan, note=scores))
            continue
        parts += [rows_of(group, detector.title, SCORE, scores[0].values), rows_of(group, detector.title, EVALUATIONS, scores[0].evaluations)]
    return join(parts)


def kept_scores(found: Evidence, labels: Sequence[str], detectors: Iterable[Detector]) -> dict[Detector, list[Scores] | str]:
    """Return by detector its scores of each group, or why there are none, as `memlib.probes.detectors.evaluation.measure_all` does, from rows."""
    return {detector: _scores(found, labels, detector) for detector in detectors}


def _scores(found: Evidence, labels: Sequence[str], detector: Detector) -> list[Scores] | str:
    made = []
    for label in labels:
        values, price = found.values(SCORE, detector.title, label), found.values(EVALUATIONS, detector.title, label)
        if values is None or price is None:
            rows = found.rows[label]
            return next((note for note in rows.loc[rows["method"] == detector.title, "note"] if note), NOT_MEASURED)
        seeds = values.shape[1] if values.ndim == 2 else max(1, found.rows[label]["seed"].nunique())
        made.append(Scores(values, price.item(), seeds if price.item() else 0))
    return made
