"""How well a score tells two sets of prompts apart: ROC curve, its area, true positives at few false ones.

Larger scores mean positive. Prompts are the sampling units: seeds are averaged to one score per prompt, and every bootstrap
draws whole prompts, positive and negative ones separately.
"""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.metrics import roc_curve as sklearn_curve

from memlib.base.errors import InputError
from memlib.judging.estimates import LEVEL, Drawing, Estimate, bootstrap, checked_table, prompt_means, wilson

USUAL = Drawing(resamples=2_000)
RULES = ("not above", "below", "nearest")


def roc_curve(positive: Any, negative: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates [K] of scores [P] or [P, S], from (0, 0) to (1, 1).

    One point for each distinct score: all prompts at or above it count as positive. Computed by scikit-learn.
    """
    ups, downs = (prompt_means(checked_table(values)) for values in (positive, negative))
    return _curve(ups, downs, drop_intermediate=False)


def auc_interval(positive: Any, negative: Any, **drawing: Unpack[Drawing]) -> Estimate:
    """Return the area under the ROC curve of scores [P] or [P, S], larger meaning positive.

    Seeds are averaged to one score per prompt; ties count one half. Positive and negative prompts are resampled separately.
    `n_prompts` counts both groups. A bootstrap of two sets that do not overlap at all has no width although the true area may
    differ from 1; there the interval is that of Newcombe. Source: Hanley and McNeil 1982; Newcombe 2006, method 5.
    """
    ups, downs = checked_table(positive), checked_table(negative)
    wins = np.sign(prompt_means(ups)[:, None] - prompt_means(downs)[None]) / 2 + 0.5

    def areas(up: np.ndarray, down: np.ndarray) -> np.ndarray:
        return np.einsum("rp,pn,rn->r", up, wins, down, optimize=True)

    estimate = bootstrap(areas, [ups, downs], wins.mean(), **USUAL | drawing)
    if estimate.value not in (0.0, 1.0) or np.isnan(estimate.low):
        return estimate
    far = _newcombe(len(ups), len(downs))
    low, high = (far, 1.0) if estimate.value == 1 else (0.0, 1 - far)
    return Estimate(estimate.value, low, high, estimate.n_prompts, estimate.n_seeds)


def tpr_at_fpr(positive: Any, negative: Any, fpr: float, *, rule: str = "not above", **drawing: Unpack[Drawing]) -> Estimate:
    """Return the true positive rate at a false positive rate of `fpr`, larger scores meaning positive.

    `rule` picks the ROC point: ``"not above"`` the last one whose rate does not exceed `fpr`, ``"below"`` the last one strictly
    below it (Wen et al.), ``"nearest"`` what the programs of Ren et al. and Jeon et al. take: of scikit-learn's curve with its
    collinear points dropped the point nearest to `fpr`, the first of several. That point may exceed `fpr`, and it is the origin,
    a rate of 0, for a detector that makes no error at all. With fewer than 1 / fpr negative prompts the other two allow no false positive
    at all. A rate of exactly 0 or 1 has Wilson's interval over the positive prompts, since its bootstrap has no width. Raises
    InputError for another rule.
    """
    if rule not in RULES:
        raise InputError(f"Unknown rule {rule!r} for a false positive rate: use 'not above', 'below' or 'nearest'.")
    if not 0 <= fpr <= 1:
        raise InputError(f"A false positive rate lies in 0..1, not at {fpr}: pass 0.01 for 1 %.")
    ups, downs = checked_table(positive), checked_table(negative)
    up, down = prompt_means(ups), prompt_means(downs)
    value = _rates(up[None], down[None], fpr, rule)[0]
    estimate = bootstrap(lambda rows, others: _rates(up[rows], down[others], fpr, rule), [ups, downs], value, rows=True, **USUAL | drawing)
    if value not in (0.0, 1.0) or np.isnan(estimate.low):
        return estimate
    sure = wilson(int(value) * len(up), len(up))
    return Estimate(estimate.value, sure.low, sure.high, estimate.n_prompts, estimate.n_seeds)


def best_accuracy(positive: Any, negative: Any) -> float:
    """Return the balanced accuracy of scores [P] or [P, S], larger meaning positive, at the threshold where it is best: 0.5 to 1.

    That is the largest 1 - (FPR + FNR) / 2 on the ROC curve; the threshold is chosen on the same prompts. Source: Wen et al. 2024, program.
    """
    false, true = roc_curve(positive, negative)
    return float((1 + true - false).max() / 2)


def _rates(up: np.ndarray, down: np.ndarray, fpr: float, rule: str) -> np.ndarray:
    """True positive rates [R] of R pairs of samples [R, P] and [R, N]."""
    if rule == "nearest":
        curves = (_curve(*pair, drop_intermediate=True) for pair in zip(up, down, strict=True))
        return np.array([true[np.abs(false - fpr).argmin()] for false, true in curves])
    count = down.shape[1]
    # So many false positives are allowed; the small number keeps 0.03 * 100 from being 3.0000000000000004 or 2.9999999999999996.
    allowed = int(np.floor(fpr * count + 1e-9)) if rule == "not above" else int(np.ceil(fpr * count - 1e-9)) - 1
    if allowed >= count:
        return np.ones(len(up))
    if allowed < 0:
        return np.zeros(len(up))
    # A threshold may not reach down to the first negative too many; positives tied with it are lost with it.
    first_excluded = -np.partition(-down, allowed, axis=1)[:, allowed]
    return (up > first_excluded[:, None]).mean(1)


def _curve(up: np.ndarray, down: np.ndarray, drop_intermediate: bool) -> tuple[np.ndarray, np.ndarray]:
    labels = np.r_[np.ones(len(up)), np.zeros(len(down))]
    false, true, _ = sklearn_curve(labels, np.r_[up, down], drop_intermediate=drop_intermediate)
    return false, true


def _newcombe(positives: int, negatives: int) -> float:
    """The lower end of the interval of an area of 1: the area that lies z of its own standard errors below 1."""
    z, half = norm.ppf(0.5 + LEVEL / 2), (positives + negatives) / 2

    def beyond(area: float) -> float:
        spread = 1 + (half - 1) * ((1 - area) / (2 - area) + area / (1 + area))
        return (1 - area) ** 2 - z**2 * area * (1 - area) * spread / (positives * negatives)

    return float(brentq(beyond, 1e-9, 1 - 1e-9))
