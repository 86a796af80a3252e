"""How wide a basin is: the distance at which half of the latents still end in it, by step, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.stats import rankdata

from memlib.base.errors import InputError
from memlib.judging.estimates import Estimate, bootstrap, bootstrap_weights, percentile_interval

RESAMPLES = 2_000


@dataclass(frozen=True)
class Widths:
    """A basin cut at K steps, measured at R radii.

    `shares` [K, R] are the shares that end in the ball; `half` are the half distances by step, `at_least` [K] says at which of them more
    than half still ended there at the largest radius. `narrowing` is the half distance at the first step minus that at the last; `order`
    the share of pairs of steps that narrow minus the share that widen, from -1 to 1.
    """

    shares: np.ndarray
    half: tuple[Estimate, ...]
    at_least: np.ndarray
    narrowing: Estimate
    order: Estimate


def half_distance(shares: np.ndarray, radii: Sequence[float]) -> np.ndarray:
    """Distance [...] at which the share [..., R] has come down to one half, linear between the rising `radii` [R].

    Shares are first replaced by the falling sequence nearest to them (isotonic regression), so that a share that rises by chance gives no
    second crossing. Where even the first share is below one half the result is the first radius, where the last is above one half the last
    radius: the true distance is then at most or at least that. Raises InputError for radii that do not rise or do not fit.
    """
    shares, rising = np.asarray(shares, dtype=float), np.asarray(radii, dtype=float)
    if rising.ndim != 1 or len(rising) < 2 or (np.diff(rising) <= 0).any() or shares.shape[-1:] != rising.shape:
        raise InputError(f"Shares of shape {shares.shape} do not fit {rising.size} radii: give one share per radius, at least two, radii rising.")
    falling = [isotonic_regression(row, increasing=False).x for row in shares.reshape(-1, len(rising))]
    return np.array([np.interp(0.5, row[::-1], rising[::-1]) for row in falling]).reshape(shares.shape[:-1])


def widths(inside: np.ndarray, radii: Sequence[float]) -> Widths:
    """Measure a basin from flags [P, S, K, R] that say which latents ended in the ball, bootstrap over prompts.

    All seeds, steps and radii of a prompt are drawn together, so that differences between steps are paired. With fewer than two prompts
    there is no interval (NaN).
    """
    inside = np.asarray(inside, dtype=float)
    if inside.ndim != 4 or 0 in inside.shape or not np.isin(inside, (0, 1)).all():
        raise InputError(f"A basin is measured from flags [prompts, seeds, steps, radii], not from values of shape {inside.shape}.")
    prompts, seeds, steps, count = inside.shape
    by_prompt = inside.mean(axis=1)
    weights = bootstrap_weights(prompts, RESAMPLES)
    resampled = half_distance((weights @ by_prompt.reshape(prompts, -1)).reshape(-1, steps, count), radii)
    shares = by_prompt.mean(axis=0)
    half = half_distance(shares, radii)

    def estimate(value: float, drawn: np.ndarray) -> Estimate:
        return percentile_interval(value, drawn, prompts, seeds)

    return Widths(
        shares,
        tuple(estimate(half[k], resampled[:, k]) for k in range(steps)),
        half >= radii[-1],
        estimate(half[0] - half[-1], resampled[:, 0] - resampled[:, -1]),
        estimate(_order(half[None])[0], _order(resampled)),
    )


def rank_correlation(inside: np.ndarray, steps: Sequence[int], sign: int = 1) -> Estimate:
    """Spearman's correlation of the step with the share that ends in the ball, times `sign`, from flags [P, S, K]; bootstrap over prompts.

    Where the shares of all steps are the same no rank differs, and the correlation is 0. Raises InputError for flags that do not fit two steps or more.
    """
    inside = np.asarray(inside, dtype=float)
    if inside.ndim != 3 or 0 in inside.shape or inside.shape[2] != len(steps) or len(steps) < 2:
        raise InputError(f"A correlation with the step needs flags [prompts, seeds, steps] and two steps or more, not {inside.shape} and {len(steps)}.")
    by_prompt, ranks = inside.mean(axis=1), rankdata(steps) - (len(steps) + 1) / 2

    def correlations(weights: np.ndarray) -> np.ndarray:
        # Weighted sums of the same flags in another order differ in the last digit, which is no rank.
        own = rankdata(np.round(weights @ by_prompt, 9), axis=1) - (len(steps) + 1) / 2
        spread = np.sqrt((own**2).sum(axis=1) * (ranks**2).sum())
        return sign * np.where(spread > 0, own @ ranks, 0.0) / np.where(spread > 0, spread, 1.0)

    found = bootstrap(correlations, [by_prompt], float(correlations(np.full((1, len(by_prompt)), 1 / len(by_prompt)))[0]), resamples=RESAMPLES)
    return Estimate(found.value, found.low, found.high, *inside.shape[:2])


def _order(half: np.ndarray) -> np.ndarray:
    """Pairs of steps that narrow minus pairs that widen, as a share of all pairs, [B] of half distances [B, K]."""
    first, second = np.triu_indices(half.shape[1], k=1)
    if not len(first):
        return np.zeros(len(half))
    return np.sign(half[:, first] - half[:, second]).mean(axis=1)
