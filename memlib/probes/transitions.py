"""Traces of the prompt's pull on the latents, and the transition points read from them.

The pull is the L2 norm, per sample, of conditional minus unconditional predicted noise at each step. `basin` (Section 4)
reads from it where a trajectory leaves the attraction basin, Wen et al. 2024 (Section 4) whether a prompt is memorized.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.experiment.group import Group
from memlib.experiment.settings import Settings
from memlib.prompts.embedding import Embedding
from memlib.sampling.batches import Step
from memlib.sampling.guidance import Rule

VERSION = 1  # Part of the store's keys: raise it when the same recipe gives other traces.
QUANTITIES = ("difference", "conditional", "unconditional", "raw_difference", "turn", "scale")


@dataclass(frozen=True)
class Traces:
    """What was recorded at each of T steps for N prompts x S seeds: float32 arrays [N, S, T], step 0 the noisiest.

    `conditional`, `unconditional` and `difference` are L2 norms of the two noise predictions and of their difference (epsilon,
    whatever the model predicts); `raw_difference` is the norm of the difference of the model's own outputs, which is another
    one for velocity models; `turn` is 1 - cos of the angle between the latents before and after the step; `scale` is the
    guidance used. `times` [T] are the scheduler's times.
    """

    difference: np.ndarray
    conditional: np.ndarray
    unconditional: np.ndarray
    raw_difference: np.ndarray
    turn: np.ndarray
    scale: np.ndarray
    times: np.ndarray

    def transition(self, variant: str = "text") -> np.ndarray:
        """Transition steps, int [N, S], of the quantity that `variant` looks at; see `transition_step`."""
        _refuse_unknown(variant)
        return transition_step(getattr(self, VARIANTS[variant]), variant)


def trace(group: Group, guidance: float | Rule | None = None) -> Traces:
    """Record a group's prompts under its experiment's seeds, through the store.

    `guidance` is a scale or rule in place of the experiment's: 0 is "zero guidance" (the prompt does not act on the latents), a
    negative number opposite guidance from the first step to the last. No picture is decoded. Each prompt and seed is kept as soon as its batch
    is done.
    """
    x, embedding = group.experiment, group.embedding
    recipe = x.keyed(guidance)
    rows = [digest(states.float()) for states in embedding.states]
    keys = [{"trace": VERSION, **recipe, "cond": row, "seed": seed} for row in rows for seed in x.seeds]
    pairs = [(row, seed) for row in range(len(rows)) for seed in x.seeds]

    def compute(absent: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        yield from zip(absent, _recorded(x, embedding, guidance, [pairs[i] for i in absent]), strict=True)

    values = np.stack(x.store.scores(keys, compute)).reshape(len(rows), len(x.seeds), len(QUANTITIES), -1)
    times = x.substrate.scheduler(x.scheduler, x.steps).timesteps.cpu().numpy()
    return Traces(**dict(zip(QUANTITIES, np.moveaxis(values, 2, 0), strict=True)), times=times)


def _recorded(x: Settings, embedding: Embedding, guidance: float | Rule | None, pairs: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Yield the quantities [Q, T] of each (row, seed) in the order given."""
    steps: list[np.ndarray] = []
    for _ in x.batches(embedding, guidance, pairs=pairs, keep=lambda rows, seeds, step: steps.append(_quantities(step)), latents_only=True):
        yield from np.stack(steps, axis=-1)
        steps.clear()


def _quantities(step: Step) -> np.ndarray:
    """QUANTITIES of one step, float32 [B, Q]."""

    def norm(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.flatten(1).norm(dim=1)

    # Neighbouring latents are nearly parallel: in single precision 1 - cos would be rounding.
    before, after = (latents.flatten(1).double().cpu() for latents in (step.latents, step.next_latents))
    turn = 1 - torch.nn.functional.cosine_similarity(before, after, dim=1)
    values = [step.magnitude, norm(step.epsilon_cond), norm(step.epsilon_uncond), norm(step.noise_cond - step.noise_uncond), turn, step.guidance]
    return torch.stack([value.float().cpu() for value in values], dim=1).numpy()


# What each reading of the transition point looks at; see `transition_step`.
VARIANTS: Mapping[str, str] = {"text": "difference", "as_published": "raw_difference", "as_published_opposite": "turn"}


def transition_step(magnitudes: np.ndarray, variant: str = "text") -> np.ndarray:
    """Return the step from which guidance is on, int [...], for traces [..., T]; -1 where there is no transition.

    - "text" (`basin`, Algorithm 1): the first step whose squared norm is above that of the step before, which is itself below
      that of the step before it. So it comes one step after the first strict local minimum, at step 2 at the earliest.
    - "as_published": the authors' program for a dynamic transition point makes the same test with the norm and a memory that
      starts at -1; on a given trace this decides alike. It differs in the trace: of the model's raw output (velocity in models
      that predict it), under guidance 1 before the transition where the text has 0.
    - "as_published_opposite": their program for opposite guidance takes the first strict local minimum of the turn of the latents,
      or the second if the first is at step 1 and there is a second; without any it takes step 5, so -1 never occurs. The step is that of
      the minimum and not the one after it.

    Raises InputError for another variant, no step, or values that are not finite.
    """
    _refuse_unknown(variant)
    values = _checked(magnitudes)
    if variant == "as_published_opposite":
        minima = _minima(values)
        first = _first(minima)
        later = minima & (np.arange(minima.shape[-1]) > 1)
        return np.where(first < 0, 5, np.where((first == 1) & later.any(-1), _first(later), first))
    if variant == "text":
        values = values**2
    minima = _minima(values)
    first = _first(minima)
    return np.where(first < 0, -1, first + 1)


def steepest_fall(magnitudes: np.ndarray, window: float = 0.1) -> np.ndarray:
    """Return the largest fall between two steps at most `window` of the schedule apart, over the trace's highest value.

    For traces [..., T] the result is [...], from 0 (never falls) to 1 (falls from its height to nothing within the window). Being a share of the
    trace's own height it does not depend on the size of the latents or of the model, and divided by the height and not by the value at the
    fall it does not count what a flat, low trace does; an even fall to zero over the whole run gives about `window`. `basin` speaks of
    a steep fall and does not define one; this definition is ours. A window counts at least one step.
    """
    if not 0 < window <= 1:
        raise InputError(f"A window of {window!r} is not possible: give a share of the schedule above 0 and at most 1.")
    values = _checked(magnitudes)
    steps = values.shape[-1]
    largest = np.zeros(values.shape[:-1])
    for apart in range(1, min(max(1, round(window * steps)), steps - 1) + 1):
        largest = np.maximum(largest, (values[..., :-apart] - values[..., apart:]).max(-1))
    height = np.abs(values).max(-1)
    return largest / np.where(height > 0, height, 1)


def fall_step(magnitudes: np.ndarray) -> np.ndarray:
    """Return the step that ends the largest fall between neighbouring steps, int [...], for traces [..., T]; -1 where nothing falls."""
    values = _checked(magnitudes)
    if values.shape[-1] < 2:
        return np.full(values.shape[:-1], -1)
    falls = values[..., :-1] - values[..., 1:]
    return np.where(falls.max(-1) > 0, falls.argmax(-1) + 1, -1)


def _minima(values: np.ndarray) -> np.ndarray:
    """Which steps [..., T] are strict local minima; the two ends are none."""
    inside = (values[..., 1:-1] < values[..., :-2]) & (values[..., 1:-1] < values[..., 2:])
    edge = np.zeros((*values.shape[:-1], 1), dtype=bool)
    return np.concatenate([edge, inside, edge], axis=-1)[..., : values.shape[-1]]


def _first(flags: np.ndarray) -> np.ndarray:
    return np.where(flags.any(-1), flags.argmax(-1), -1)


def _checked(magnitudes: Any) -> np.ndarray:
    values = np.asarray(magnitudes, dtype=float)
    if values.ndim == 0 or values.shape[-1] == 0 or not np.isfinite(values).all():
        raise InputError(f"A trace of shape {values.shape} is not usable: give finite values with steps along the last axis, at least one.")
    return values


def _refuse_unknown(variant: str) -> None:
    if variant not in VARIANTS:
        raise InputError(f"Unknown variant {variant!r} of the transition point: use one of {', '.join(VARIANTS)}.")
