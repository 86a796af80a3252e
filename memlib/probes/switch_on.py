"""The switch-on sweep: pictures by the step from which guidance is on, and where they stop being copies (`basin` Figures 2 and 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memlib.base.errors import InputError
from memlib.base.numbers import is_whole
from memlib.experiment.group import Group
from memlib.sampling.rules import StaticTransition

REFERENCE_STEPS = 50


def switch_steps(steps: int, every: int) -> list[int]:
    """Steps 0, `every`, 2 `every`, ... of a schedule; raises InputError unless `every` is a whole number of at least 1."""
    if not is_whole(every, 1):
        raise InputError(f"Guidance cannot be switched on at every {every!r} steps: use a whole number of at least 1.")
    return list(range(0, steps, every))


def sweep(group: Group, switches: Sequence[int], before: float = 0.0) -> np.ndarray:
    """Pictures of a group with guidance `before` up to each of the steps: uint8 [N, S, K, H, W, 3].

    A switch at step 0 is plain guidance, one at the number of steps never comes.
    """
    x = group.experiment
    columns = [
        group.sample(group.embedding, guidance=StaticTransition(x.guidance, step=int(step), before=before)) if step else group.pictures() for step in switches
    ]
    return np.stack(columns, axis=2)


def swept_score(group: Group, name: str, pictures: np.ndarray) -> np.ndarray | None:
    """A score of swept pictures [N, S, K, H, W, 3], [N, S, K]; None where it cannot be measured."""
    scores = [group.score_of(name, pictures[:, :, column]) for column in range(pictures.shape[2])]
    known = [score for score in scores if score is not None]
    return np.stack(known, axis=-1) if len(known) == len(scores) else None


def crossing_step(similarity: np.ndarray, switches: Sequence[int], threshold: float) -> np.ndarray:
    """Switch-on step [...] at which similarity [..., K] first falls below the threshold, linear between the swept steps.

    NaN where the first is below the threshold already, and where none is.
    """
    similarity, steps = np.asarray(similarity, dtype=float), np.asarray(switches, dtype=float)
    if len(steps) < 2:
        return np.full(similarity.shape[:-1], np.nan)
    below = similarity < threshold
    after = below.argmax(-1)
    crosses = below.any(-1) & (after > 0)
    after = np.maximum(after, 1)
    high, low = (np.take_along_axis(similarity, place[..., None], -1)[..., 0] for place in (after - 1, after))
    with np.errstate(divide="ignore", invalid="ignore"):
        part = (high - threshold) / (high - low)
    found = steps[after - 1] + part * (steps[after] - steps[after - 1])
    return np.where(crosses, found, np.nan)


def comes_back(similarity: np.ndarray, threshold: float) -> np.ndarray:
    """Whether [...] similarity [..., K] is at or above the threshold again after it has fallen below it."""
    below = np.asarray(similarity, dtype=float) < threshold
    return np.any(~below & (np.cumsum(below, axis=-1) > 0), axis=-1)


def prediction_error(crossing: np.ndarray, predicted: np.ndarray, steps: int) -> np.ndarray:
    """Crossing minus predicted transition step [...], in steps of a 50-step schedule; NaN where there is no crossing or none is predicted (-1)."""
    predicted = np.where(np.asarray(predicted) < 0, np.nan, predicted)
    return (np.asarray(crossing, dtype=float) - predicted) * REFERENCE_STEPS / steps
