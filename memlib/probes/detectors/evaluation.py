"""Detectors judged: area under the ROC curve, true positives at few false ones, and what a score costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from memlib.base.errors import NotMeasured
from memlib.experiment.group import Group
from memlib.judging.estimates import Estimate
from memlib.judging.roc import auc_interval, tpr_at_fpr
from memlib.probes.detectors.base import NEEDS, REGISTRY, Detector, Scores

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Evaluation:
    """How well one detector tells memorized from other prompts with `n_seeds` seeds, at `evaluations` U-Net rows per prompt.

    `auc`, `tpr_1` and `tpr_3` (true positive rate at the last ROC point with at most 1 and 3 % false positives) are None where
    the detector could not be computed, for the `reason` given.
    """

    detector: Detector
    n_seeds: int
    evaluations: float
    auc: Estimate | None
    tpr_1: Estimate | None
    tpr_3: Estimate | None
    reason: str = ""

    @property
    def title(self) -> str:
        return self.detector.title


def measure_all(groups: Sequence[Group], detectors: Iterable[Detector] | None = None) -> dict[Detector, list[Scores] | str]:
    """Return for each detector (all registered ones by default) its scores of each group, or why there are none.

    Those that need most go first (`NEEDS`), since others read what they need from the same run.
    """
    chosen = list(REGISTRY.values() if detectors is None else detectors)
    found: dict[Detector, list[Scores] | str] = {}
    for detector in sorted(chosen, key=lambda d: NEEDS.index(d.needs)):
        try:
            found[detector] = [detector.measure(group) for group in groups]
        except NotMeasured as error:
            found[detector] = str(error)
    return {detector: found[detector] for detector in chosen}


def evaluate(detector: Detector, memorized: Scores | str, others: Scores | str, n_seeds: int | None = None) -> Evaluation:
    """Judge scores of memorized against other prompts in the direction that the detector's source gives; it is never turned round.

    `n_seeds` uses the first seeds only; a score per prompt is as it is. A text in place of scores says why there are none.
    """
    if isinstance(memorized, str) or isinstance(others, str):
        reason = memorized if isinstance(memorized, str) else others
        return Evaluation(detector, 0, np.nan, None, None, None, str(reason))
    if n_seeds is not None:
        memorized, others = memorized.first(n_seeds), others.first(n_seeds)
    up, down = detector.sign * memorized.values, detector.sign * others.values
    return Evaluation(
        detector, memorized.n_seeds, memorized.evaluations,
        auc_interval(up, down), tpr_at_fpr(up, down, 0.01), tpr_at_fpr(up, down, 0.03),
    )  # fmt: skip


def evaluate_all(found: Mapping[Detector, list[Scores] | str], memorized: int, others: int, seeds: Sequence[int]) -> list[Evaluation]:
    """Judge every detector of `measure_all` between two of its groups (by number), with each number of seeds in `seeds`.

    A detector whose price does not depend on the seeds asked for appears once.
    """
    rows: list[Evaluation] = []
    for detector, scores in found.items():
        if isinstance(scores, str):
            rows.append(evaluate(detector, scores, scores))
            continue
        made = [evaluate(detector, scores[memorized], scores[others], count) for count in seeds]
        rows += {row.n_seeds: row for row in made}.values()
    return rows


def table(evaluations: Sequence[Evaluation], digits: int = 2) -> pd.DataFrame:
    """One row per evaluation: detector, seeds, U-Net evaluations per prompt, AUC and the two rates with intervals."""
    rows = [
        {"detector": e.title, "seeds": e.n_seeds or "–", "U-Net evaluations": NOT_MEASURED if np.isnan(e.evaluations) else f"{e.evaluations:g}",
         "AUC": _told(e.auc, digits), "TPR at 1 % FPR": _told(e.tpr_1, digits), "TPR at 3 % FPR": _told(e.tpr_3, digits)}
        for e in evaluations
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index(["detector", "seeds"])


def _told(estimate: Estimate | None, digits: int) -> str:
    return NOT_MEASURED if estimate is None else estimate.text(digits)
