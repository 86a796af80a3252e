"""Intervals for figures measured on prompts and seeds.

Prompts are the sampling units: the seeds of one prompt share its caption and its training picture
and are not independent. Every bootstrap here therefore draws whole prompts. All random draws come
from an explicit NumPy generator; without one, the same fixed seed is used each time, so that a
repeated call gives the same interval.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from memlib.base.errors import InputError

LEVEL = 0.95
RESAMPLES = 10_000
CHUNK = 1_000


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
        """Return for instance ``0.55 [0.51, 0.59]``, with `digits` decimals."""
        if np.isnan(self.value):
            return "not measured"
        if np.isnan(self.low) or np.isnan(self.high):
            return f"{self.value:.{digits}f} [no interval]"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def __str__(self) -> str:
        return self.text()

    def __format__(self, spec: str) -> str:
        if not spec:
            return self.text()
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def to_json(self) -> dict[str, float | int]:
        """Return the fields as plain numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Estimate:
        """Return the estimate that `to_json` described."""
        return cls(**fields)


def mean_interval(
    values: Any,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    generator: np.random.Generator | None = None,
    missing: str = "raise",
) -> Estimate:
    """Return the mean over prompts of `values` [P] or [P, S], percentile bootstrap over prompts.

    Each prompt counts the same, whatever the number of its seeds that were measured. `missing` says
    what NaN means: ``"raise"`` (default) is an InputError, ``"drop"`` leaves the entry out, and a
    prompt without any entry left.
    """
    table = _table(values, missing)
    means = _prompt_means(table)
    return _interval(means.mean(), _resampled_means(means, resamples, generator), table, level)


def paired_difference(
    first: Any,
    second: Any,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    generator: np.random.Generator | None = None,
    missing: str = "raise",
) -> Estimate:
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
    return mean_interval(first - second, level=level, resamples=resamples, generator=generator, missing=missing)


def share_interval(
    flags: Any,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    generator: np.random.Generator | None = None,
) -> Estimate:
    """Return the share of true `flags` in 0..1: Wilson's interval for [P], bootstrap for [P, S].

    A bootstrap of all-true or all-false flags has no width although the true share may differ; Wilson's
    interval with the prompts as trials is taken there as well. Source: Wilson 1927, score interval.
    """
    flags = np.asarray(flags)
    if not np.isin(flags, (0, 1)).all():
        raise InputError("A share needs flags that are true or false (1 or 0): decide on NaN beforehand.")
    table = _table(flags.astype(float), "raise")
    means = _prompt_means(table)
    share = means.mean()
    if flags.ndim > 1 and 0 < share < 1:
        return _interval(share, _resampled_means(means, resamples, generator), table, level)
    prompts, z = len(means), norm.ppf(0.5 + level / 2)
    centre = (share + z**2 / (2 * prompts)) / (1 + z**2 / prompts)
    half = z / (1 + z**2 / prompts) * np.sqrt(share * (1 - share) / prompts + z**2 / (4 * prompts**2))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Estimate(float(share), float(low), float(high), prompts, table.shape[1], level)


def quantile_interval(
    values: Any,
    q: float,
    *,
    level: float = LEVEL,
    resamples: int = 2_000,
    generator: np.random.Generator | None = None,
    missing: str = "raise",
) -> Estimate:
    """Return the `q` quantile (0..1) over all entries of `values` [P] or [P, S], bootstrap over prompts."""
    if not 0 <= q <= 1:
        raise InputError(f"A quantile lies in 0..1, not at {q}: pass 0.95 for the 95th percentile.")
    table = _table(values, missing)
    draw = _generator(generator)
    resampled = [np.nanquantile(table[draw.integers(len(table), size=len(table))], q) for _ in range(resamples)]
    return _interval(np.nanquantile(table, q), np.array(resampled), table, level)


def seed_spread(values: Any) -> float:
    """Return the mean over prompts of the standard deviation across seeds of `values` [P, S].

    This is the figure that `clip` prints beside its means (Section 3, evaluation metrics). Whether it
    divides by S or S − 1 is not stated there; S − 1 is taken.
    """
    table = _table(values, "raise")
    if table.shape[1] < 2:
        raise InputError("The spread across seeds needs at least two seeds: sample more of them.")
    return float(table.std(axis=1, ddof=1).mean())


def _table(values: Any, missing: str) -> np.ndarray:
    """Check `values` and return them as floats [P, S]."""
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


def _prompt_means(table: np.ndarray) -> np.ndarray:
    return np.nanmean(table, axis=1)


def _generator(generator: np.random.Generator | None) -> np.random.Generator:
    return np.random.default_rng(0) if generator is None else generator


def _weights(count: int, resamples: int, draw: np.random.Generator) -> np.ndarray:
    """Return how much each of `count` prompts weighs in each resample, [resamples, count], rows sum to 1."""
    return draw.multinomial(count, np.full(count, 1 / count), size=resamples) / count


def _resampled_means(means: np.ndarray, resamples: int, generator: np.random.Generator | None) -> np.ndarray:
    draw = _generator(generator)
    chunks = [min(CHUNK, resamples - start) for start in range(0, resamples, CHUNK)]
    return np.concatenate([_weights(len(means), chunk, draw) @ means for chunk in chunks])


def _interval(
    value: float,
    resampled: np.ndarray,
    table: np.ndarray,
    level: float,
    other: np.ndarray | None = None,
) -> Estimate:
    groups = [table] if other is None else [table, other]
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    if min(map(len, groups)) < 2:
        # One prompt resampled is the same prompt again: a width of zero would be a lie.
        low = high = np.nan
    prompts, seeds = sum(map(len, groups)), max(group.shape[1] for group in groups)
    return Estimate(float(value), float(low), float(high), prompts, seeds, level)


def group_difference(
    first: Any,
    second: Any,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    generator: np.random.Generator | None = None,
    missing: str = "raise",
) -> Estimate:
    """Return mean(first) − mean(second) of two independent sets of prompts, [P] or [P, S] and [Q] or [Q, S].

    Prompts are drawn anew on each side; `n_prompts` counts both.
    """
    sides = [_table(values, missing) for values in (first, second)]
    means = [_prompt_means(table) for table in sides]
    draw = _generator(generator)
    resampled = [_resampled_means(side, resamples, draw) for side in means]
    return _interval(means[0].mean() - means[1].mean(), resampled[0] - resampled[1], sides[0], level, sides[1])
