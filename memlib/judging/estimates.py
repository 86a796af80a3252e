"""Intervals for figures measured on prompts and seeds.

Prompts are the sampling units: the seeds of one prompt share its caption and its training picture
and are not independent. Every bootstrap here therefore draws whole prompts. All random draws come
from an explicit NumPy generator; without one, the same fixed seed is used each time, so that a
repeated call gives the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict, Unpack

import numpy as np
from scipy.stats import binomtest

from memlib.base.errors import InputError

LEVEL = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A measured figure with its interval and the number of prompts and seeds behind it.

    `low` and `high` bound the interval at confidence `level`; they are NaN where no interval exists
    (fewer than two prompts). `n_prompts` counts the prompts that entered, after any that were dropped.
    """

    value: float
    low: float
    high: float
    n_prompts: int
    n_seeds: int
    level: float = LEVEL

    def text(self, digits: int = 2) -> str:
        """Return for instance ``0.55 [0.51, 0.59]``, with `digits` decimals; of what was counted in full, without seeds, the value alone."""
        if np.isnan(self.value):
            return "not measured"
        if not self.n_seeds and self.low == self.value == self.high:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} [no interval]" if np.isnan(self.low) or np.isnan(self.high) else f"{self:.{digits}f}"

    def __str__(self) -> str:
        return self.text()

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]" if spec else self.text()

    def to_json(self) -> dict[str, float | int]:
        """Return the fields as plain numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Estimate:
        """Return the estimate that `to_json` described."""
        return cls(**fields)


class Drawing(TypedDict, total=False):
    """How a bootstrap draws: how often, and from which generator (a fixed seed by default)."""

    resamples: int
    generator: np.random.Generator | None


def bootstrap_weights(count: int, resamples: int = RESAMPLES, generator: np.random.Generator | None = None, strata: np.ndarray | None = None) -> np.ndarray:
    """Return how much each of `count` units weighs in each resample, [resamples, count]; rows sum to 1.

    With `strata` [count] each stratum is drawn within itself and keeps its size, for levels that are fixed by design.
    """
    draw = _generator(generator)
    if strata is None:
        return draw.multinomial(count, np.full(count, 1 / count), size=resamples) / count
    weights = np.zeros((resamples, count))
    for stratum in np.unique(strata):
        inside = np.flatnonzero(strata == stratum)
        weights[:, inside] = draw.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), size=resamples) / count
    return weights


def bootstrap_rows(count: int, resamples: int = RESAMPLES, generator: np.random.Generator | None = None) -> np.ndarray:
    """Return which of `count` units each resample holds, int [resamples, count], for statistics that no weights can express."""
    return _generator(generator).integers(count, size=(resamples, count))


def percentile_interval(value: float, resampled: np.ndarray, n_prompts: int, n_seeds: int, *, method: Any = "linear", least: int | None = None) -> Estimate:
    """Return `value` with the percentile interval of its `resampled` values [R].

    No interval (NaN) where the smallest group that was drawn from, `least` (all prompts by default), has fewer than two: one prompt
    resampled is the same prompt again, and a width of zero would be a lie. `method` is NumPy's for quantiles.
    """
    ends = (np.nan, np.nan)
    if (n_prompts if least is None else least) >= 2:
        ends = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method=method)
    return Estimate(float(value), float(ends[0]), float(ends[1]), n_prompts, n_seeds)


def bootstrap(
    statistic: Callable[..., np.ndarray],
    tables: Sequence[np.ndarray],
    value: float,
    *,
    rows: bool = False,
    resamples: int = RESAMPLES,
    generator: np.random.Generator | None = None,
    method: str = "linear",
) -> Estimate:
    """Return `value` with the percentile bootstrap interval of a statistic of independent groups of prompts.

    `tables` are [P, S], one a group; the prompts of each are drawn anew. `statistic` takes, for each group, the weights [R, P] of its
    prompts (see `bootstrap_weights`) or with `rows` the prompts drawn (see `bootstrap_rows`), and returns [R]. What is measured twice on
    the same prompts is paired by being computed from the same weights. Source: Efron and Tibshirani 1993, percentile interval.
    """
    draw = _generator(generator)
    drawn = [(bootstrap_rows if rows else bootstrap_weights)(len(table), resamples, draw) for table in tables]
    sizes = [len(table) for table in tables]
    seeds = max(table.shape[1] for table in tables)
    return percentile_interval(value, statistic(*drawn), sum(sizes), seeds, method=method, least=min(sizes))


def mean_interval(values: Any, *, missing: str = "raise", **drawing: Unpack[Drawing]) -> Estimate:
    """Return the mean over prompts of `values` [P] or [P, S], percentile bootstrap over prompts.

    Each prompt counts the same, whatever the number of its seeds that were measured. `missing` says
    what NaN means: ``"raise"`` (default) is an InputError, ``"drop"`` leaves the entry out, and a
    prompt without any entry left.
    """
    table = checked_table(values, missing)
    means = prompt_means(table)
    return bootstrap(lambda weights: weights @ means, [table], means.mean(), **drawing)


def paired_difference(first: Any, second: Any, *, missing: str = "raise", **drawing: Unpack[Drawing]) -> Estimate:
    """Return mean(first − second) with both [P] or [P, S] on the same prompts and the same seeds.

    With ``missing="drop"`` an entry that is NaN on either side is left out on both. Raises InputError
    if the shapes differ.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape:
        raise InputError(
            f"A paired difference needs the same prompts and seeds on both sides, but the shapes are "
            f"{first.shape} and {second.shape}: pass arrays of one shape."
        )
    return mean_interval(first - second, missing=missing, **drawing)


def relative_change(first: Any, second: Any, base: float | None = None, **drawing: Unpack[Drawing]) -> Estimate:
    """Return mean(first - second) / base for [P] or [P, S] on the same prompts and seeds; -0.03 is a fall by 3 %.

    `base` is the mean of `second` by default. It sets the scale and is taken as known: its own spread does not
    widen the interval, which is that of the paired difference (bootstrap over prompts). Raises InputError
    for a base that is not positive, since a share of it would mean nothing.
    """
    base = float(np.mean(second)) if base is None else float(base)
    if not (math.isfinite(base) and base > 0):
        raise InputError(f"A change cannot be expressed as a share of {base:.3g}: the baseline's mean must be positive.")
    scaled = (np.asarray(first, dtype=float) / base, np.asarray(second, dtype=float) / base)
    return paired_difference(*scaled, **drawing)


def share_interval(flags: Any, **drawing: Unpack[Drawing]) -> Estimate:
    """Return the share of true `flags` in 0..1: Wilson's interval for [P], bootstrap for [P, S].

    A bootstrap of all-true or all-false flags has no width although the true share may differ; Wilson's
    interval with the prompts as trials is taken there as well. Source: Wilson 1927, score interval.
    """
    flags = np.asarray(flags)
    if not np.isin(flags, (0, 1)).all():
        raise InputError("A share needs flags that are true or false (1 or 0): decide on NaN beforehand.")
    table = checked_table(flags.astype(float), "raise")
    if flags.ndim > 1 and table.min() < table.max():
        return mean_interval(table, **drawing)
    return wilson(int(table[:, 0].sum()), *table.shape)


def wilson(count: int, n_prompts: int, n_seeds: int = 1) -> Estimate:
    """Return the share of `count` among `n_prompts` with Wilson's interval, prompts being the trials. Source: Wilson 1927 (SciPy)."""
    ends = binomtest(count, n_prompts).proportion_ci(LEVEL, method="wilson")
    return Estimate(count / n_prompts, max(0.0, float(ends.low)), min(1.0, float(ends.high)), n_prompts, n_seeds)


def crossed_interval(values: Any, strata: np.ndarray | None = None, signed: bool = False, **drawing: Unpack[Drawing]) -> Estimate:
    """Return the mean of `values` [N, R] with a percentile bootstrap over rows (within their stratum) and columns, crossed.

    For instance prompts by trainings, both of which are samples. One column is resampled over rows alone. Where all values are 0 or
    all are 1 a bootstrap has no width, and Wilson's interval with the rows as trials is taken; with `signed`, for differences of
    shares, on both sides of 0, and mirrored for -1. Raises InputError for values of another shape or that are missing. Source: Owen
    2007, "The pigeonhole bootstrap".
    """
    values = np.asarray(values, float)
    if values.ndim != 2 or not values.size or np.isnan(values).any():
        raise InputError(f"A crossed interval needs values of two samples, for instance [pairs, trainings], without gaps, not {values.shape}.")
    count, columns = values.shape
    same = float(values.flat[0])
    if values.min() == values.max() and abs(same) in (0, 1):
        sure = wilson(int(abs(same)) * count, count, columns)
        low, high = (-sure.high, -sure.low) if same < 0 else (sure.low, sure.high)
        return Estimate(same, -high if signed and same == 0 else low, high, count, columns)
    resamples, draw = drawing.get("resamples", RESAMPLES), _generator(drawing.get("generator"))
    by_row = bootstrap_weights(count, resamples, draw, strata)
    by_column = bootstrap_weights(columns, resamples, draw)
    return percentile_interval(values.mean(), ((by_row @ values) * by_column).sum(1), count, columns, least=2)


def quantile_interval(values: Any, q: float, *, missing: str = "raise", **drawing: Unpack[Drawing]) -> Estimate:
    """Return the `q` quantile (0..1) over all entries of `values` [P] or [P, S], bootstrap over prompts."""
    if not 0 <= q <= 1:
        raise InputError(f"A quantile lies in 0..1, not at {q}: pass 0.95 for the 95th percentile.")
    table = checked_table(values, missing)

    def quantiles(rows: np.ndarray) -> np.ndarray:
        if np.isnan(table).any():
            return np.array([np.nanquantile(table[row], q) for row in rows])
        return np.quantile(table[rows], q, axis=(1, 2))  # the same, all resamples at once: pages take hundreds of these

    return bootstrap(quantiles, [table], np.nanquantile(table, q), rows=True, **Drawing(resamples=2_000) | drawing)


def checked_table(values: Any, missing: str = "raise") -> np.ndarray:
    """Return `values` [P] or [P, S] as floats [P, S]; raises InputError for what no interval can be taken of (see `mean_interval`)."""
    if missing not in ("raise", "drop"):
        raise InputError(f"Unknown treatment {missing!r} of missing values: use 'raise' or 'drop'.")
    table = np.asarray(values, dtype=float)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or table.size == 0:
        raise InputError(f"An interval needs values of shape [prompts] or [prompts, seeds], not {np.shape(values)}: pass at least one prompt and one seed.")
    if np.isinf(table).any():
        raise InputError("An interval needs finite values, but some are infinite: look where they come from.")
    absent = np.isnan(table)
    if absent.any():
        if missing == "raise":
            raise InputError(f"{absent.sum()} of {absent.size} values are missing (NaN): measure them, or pass missing='drop' to leave them out.")
        table = table[~absent.all(axis=1)]
        if not len(table):
            raise InputError("Every value is missing (NaN): there is nothing to take a mean of.")
    return table


def prompt_means(table: np.ndarray) -> np.ndarray:
    """Return the mean over seeds [P] of `table` [P, S], without the values that are NaN."""
    return np.nanmean(table, axis=1)


def _generator(generator: np.random.Generator | None) -> np.random.Generator:
    return np.random.default_rng(0) if generator is None else generator
