"""How well a score tells two sets of prompts apart: ROC curve, its area, true positives at few false ones.

Larger scores mean positive. Prompts are the sampling units: seeds are averaged to one score per prompt, and every bootstrap
draws whole prompts, positive and negative ones separately.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from memlib.base.errors import InputError
from memlib.judging.estimates import (
    LEVEL,
    Estimate,
    _generator,
    _interval,
    _prompt_means,
    _table,
    _weights,
    share_interval,
)

RESAMPLES = 2_000
RULES = ("not above", "below", "nearest")


def roc_curve(positive: Any, negative: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates [K] of scores [P] or [P, S], from (0, 0) to (1, 1).

    One point for each distinct score: all prompts at or above it count as positive.
    """
    up, down = (_prompt_means(_table(values, "raise")) for values in (positive, negative))
    return _curve(up, down)


def auc_interval(
    positive: Any,
    negative: Any,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    generator: np.random.Generator | None = None,
) -> Estimate:
    """Return the area under the ROC curve of scores [P] or [P, S], larger meaning positive.

    Seeds are averaged to one score per prompt; ties count one half. Positive and negative prompts are resampled separately.
    `n_prompts` counts both groups. A bootstrap of two sets that do not overlap at all has no width although the true area may
    differ from 1; there the interval is that of Newcombe. Source: Hanley and McNeil 1982; Newcombe 2006, method 5.
    """
    ups, downs = _table(positive, "raise"), _table(negative, "raise")
    wins = np.sign(_prompt_means(ups)[:, None] - _prompt_means(downs)[None]) / 2 + 0.5
    draw = _generator(generator)
    up_weights = _weights(len(ups), resamples, draw)
    down_weights = _weights(len(downs), resamples, draw)
    resampled = np.einsum("rp,pn,rn->r", up_weights, wins, down_weights, optimize=True)
    estimate = _interval(wins.mean(), resampled, ups, level, other=downs)
    if estimate.value not in (0.0, 1.0) or np.isnan(estimate.low):
        return estimate
    far = _newcombe(len(ups), len(downs), level)
    low, high = (far, 1.0) if estimate.value == 1 else (0.0, 1 - far)
    return Estimate(estimate.value, low, high, estimate.n_prompts, estimate.n_seeds, level)


def tpr_at_fpr(
    positive: Any,
    negative: Any,
    fpr: float,
    *,
    rule: str = "not above",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    generator: np.random.Generator | None = None,
) -> Estimate:
    """Return the true positive rate at a false positive rate of `fpr`, larger scores meaning positive.

    `rule` picks the ROC point: ``"not above"`` the last one whose rate does not exceed `fpr`, ``"below"`` the last one strictly
    below it (Wen et al.), ``"nearest"`` the one nearest to it, which may exceed it and may be the origin (Ren et al.,
    Jeon et al.). With fewer than 1 / fpr negative prompts the first two allow no false positive at all. A rate of exactly 0 or 1
    has Wilson's interval over the positive prompts, since its bootstrap has no width. Raises InputError for another rule.
    """
    if rule not in RULES:
        raise InputError(f"Unknown rule {rule!r} for a false positive rate: use 'not above', 'below' or 'nearest'.")
    if not 0 <= fpr <= 1:
        raise InputError(f"A false positive rate lies in 0..1, not at {fpr}: pass 0.01 for 1 %.")
    ups, downs = _table(positive, "raise"), _table(negative, "raise")
    up, down = _prompt_means(ups), _prompt_means(downs)
    draw = _generator(generator)
    up_drawn = up[draw.integers(len(up), size=(resamples, len(up)))]
    down_drawn = down[draw.integers(len(down), size=(resamples, len(down)))]
    value, resampled = _rates(up[None], down[None], fpr, rule)[0], _rates(up_drawn, down_drawn, fpr, rule)
    estimate = _interval(value, resampled, ups, level, other=downs)
    if value not in (0.0, 1.0) or np.isnan(estimate.low):
        return estimate
    wilson = share_interval(np.full(len(up), value), level=level)
    return Estimate(estimate.value, wilson.low, wilson.high, estimate.n_prompts, estimate.n_seeds, level)


def _rates(up: np.ndarray, down: np.ndarray, fpr: float, rule: str) -> np.ndarray:
    """True positive rates [R] of R pairs of samples [R, P] and [R, N]."""
    if rule == "nearest":
        curves = (_curve(*pair) for pair in zip(up, down, strict=True))
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


def _curve(up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    thresholds = np.concatenate([[np.inf], np.unique(np.concatenate([up, down]))[::-1]])
    # Sorted once and searched: the share of scores at or above each threshold.
    false_rates = (len(down) - np.searchsorted(np.sort(down), thresholds, side="left")) / len(down)
    true_rates = (len(up) - np.searchsorted(np.sort(up), thresholds, side="left")) / len(up)
    return false_rates, true_rates


def _newcombe(positives: int, negatives: int, level: float) -> float:
    """The lower end of the interval of an area of 1: the area that lies z of its own standard errors below 1."""
    z, half = norm.ppf(0.5 + level / 2), (positives + negatives) / 2

    def beyond(area: float) -> float:
        spread = 1 + (half - 1) * ((1 - area) / (2 - area) + area / (1 + area))
        return (1 - area) ** 2 - z**2 * area * (1 - area) * spread / (positives * negatives)

    return float(brentq(beyond, 1e-9, 1 - 1e-9))
