"""What is left of memorization against what is kept of alignment: curves over strengths, and how much they dominate.

Single settings of two methods compare how they were tuned. A method is therefore taken with all its strengths, and ranked by the area that
they dominate together: of all pairs (similarity, alignment) between a reference point and the ideal, the share to which one of its settings is
at least as good in both (the hypervolume indicator, Zitzler and Thiele 1999, in two dimensions).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from memlib.base.errors import InputError
from memlib.judging.estimates import Estimate, bootstrap_weights, percentile_interval

RESAMPLES = 5_000
# The settings of a method from weak to strong, by title: similarity to training [P, S], better low, and alignment [Q, S], better high, on the
# same prompts or on others (see `rank`).
Settings = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Reference:
    """The worst corner, (`left`, `kept`), and `unharmed`, the alignment without mitigation.

    The area is measured in units of the rectangle from that corner to a similarity of 0 at unharmed alignment, so that 1 means: nothing is
    left of the training picture and nothing is lost. A method beyond the corner in either direction dominates nothing.
    """

    left: float
    kept: float
    unharmed: float

    @property
    def unit(self) -> float:
        return self.left * (self.unharmed - self.kept)


@dataclass(frozen=True)
class Ranked:
    """The dominated area of a method with its interval, of its registered setting alone, and how often it came first in resamples."""

    area: Estimate
    single: float
    first: float


def means_of(setting: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Return the means of a setting's similarity and alignment."""
    return float(setting[0].mean()), float(setting[1].mean())


def front(curves: Mapping[str, Settings]) -> list[tuple[str, str]]:
    """Return the settings, as (method, title of the setting), that no other one equals or beats in both means; least similar first."""
    means = {(name, title): means_of(setting) for name, settings in curves.items() for title, setting in settings.items()}
    found, best = [], -np.inf
    for which, (_, kept) in sorted(means.items(), key=lambda item: (item[1][0], -item[1][1])):
        if kept > best:
            found.append(which)
            best = kept
    return found


def dominated_area(left: np.ndarray, kept: np.ndarray, corner: tuple[np.ndarray | float, np.ndarray | float]) -> np.ndarray:
    """Return the area [...] that K points dominate above and to the left of a `corner` (two numbers or [...]), from `left` and `kept` [..., K].

    Raises InputError for shapes that do not fit.
    """
    left, kept = np.asarray(left, float), np.asarray(kept, float)
    if left.shape != kept.shape or left.ndim < 1 or left.shape[-1] < 1:
        raise InputError(f"Points need as many similarities as alignments, and at least one each, not {left.shape} and {kept.shape}.")
    order = np.argsort(left, -1)
    worst, floor = (np.broadcast_to(side, left.shape[:-1])[..., None] for side in corner)
    x = np.minimum(np.take_along_axis(left, order, -1), worst)
    # From each point to the next one on, the best alignment reached so far counts.
    best = np.maximum.accumulate(np.take_along_axis(kept, order, -1), -1)
    widths = np.diff(x, axis=-1, append=worst)
    return (widths * (best - floor).clip(min=0)).sum(-1)


def rank(
    curves: Mapping[str, Settings], reference: Reference, usual: Mapping[str, str] | None = None, same_prompts: bool = True,
    resamples: int = RESAMPLES,
) -> dict[str, Ranked]:  # fmt: skip
    """Return the dominated area of each method, in units of `reference`, the largest first; bootstrap over prompts.

    The same prompts are drawn for every method, and the corner's similarity is that of the method "none" on them, so that areas are those
    beyond no mitigation; `same_prompts` says whether `kept` is on the prompts of `left`, and is drawn with them. A similarity below 0 counts
    as 0. `usual` names the setting of each method that counts as its single one (by default the first). An empty result means that the
    reference has no area (alignment without mitigation is not above the corner), or that "none" is not among the methods.

    More settings can only dominate more, and the best of several noisy ones looks better than it is.
    """
    if "none" not in curves or reference.unit <= 0:
        return {}
    draw = np.random.default_rng(0)
    plain, plainly_kept = next(iter(curves["none"].values()))
    weights = [bootstrap_weights(len(plain), resamples, draw)]
    weights.append(weights[0] if same_prompts else bootstrap_weights(len(plainly_kept), resamples, draw))
    corner, corners = (reference.left, reference.kept), (weights[0] @ plain.mean(1), reference.kept)
    areas, found = {}, {}
    for name, points in curves.items():
        left, kept = (np.stack([point[side].mean(1) for point in points.values()], 1) for side in (0, 1))  # [prompts, K]
        value = float(_area(left.mean(0), kept.mean(0), corner, reference))
        areas[name] = _area(weights[0] @ left, weights[1] @ kept, corners, reference)
        alone = next((i for i, title in enumerate(points) if title == (usual or {}).get(name)), 0)
        single = float(_area(left.mean(0)[[alone]], kept.mean(0)[[alone]], corner, reference))
        found[name] = (percentile_interval(value, areas[name], *next(iter(points.values()))[0].shape), single)
    table = np.stack(list(areas.values()))
    # Methods that share the first place share its weight.
    firsts = (table == table.max(0)) & (table > 0)
    shares = (firsts / np.maximum(firsts.sum(0), 1)).mean(1)
    ranked = {name: Ranked(*found[name], float(share)) for name, share in zip(areas, shares, strict=True)}
    return dict(sorted(ranked.items(), key=lambda item: -item[1].area.value))


def leading(by: Mapping[str, Ranked], evaluations: Mapping[str, float] | None = None, count: int = 5) -> str:
    """Return the methods that come first in at least one of twenty resamples, the largest areas first, `count` of them at most, with their areas.

    With `evaluations`, U-Net rows of a picture by name, only those that need no more than no mitigation stand there, as far as their intervals
    reach the best one's area.
    """
    if evaluations is not None:
        by = {name: found for name, found in by.items() if evaluations[name] <= evaluations["none"]}
    best = max(by.values(), key=lambda found: found.area.value)
    told = [name for name, f in by.items() if (f.first >= 0.05 if evaluations is None else f.area.high >= best.area.value) or f is best]
    return ", ".join(f"{name} ({by[name].area.value:.2f})" for name in told[:count]) or "none"


def areas(ranked: Mapping[str, Mapping[str, Ranked]]) -> pd.DataFrame:
    """Return a table with one line for each method and three columns for each ranking: the area, that of its registered setting, how often first."""
    parts = {
        title: {name: {"area": f.area.text(2), "registered setting": f"{f.single:.2f}", "first": f"{f.first:.0%}"} for name, f in by.items()}
        for title, by in ranked.items()
    }
    return pd.concat({title: pd.DataFrame(lines).T for title, lines in parts.items()}, axis=1)


def _area(left: np.ndarray, kept: np.ndarray, corner: tuple, reference: Reference) -> np.ndarray:
    return dominated_area(left.clip(min=0), kept, corner) / reference.unit
