"""Initial-noise adjustment, Han et al. 2025 (NeurIPS): noise from which the attraction basin is left sooner.

Both forms change the initial noise alone, from the gap D(x) = eps_cond - eps_uncond at the first time of the schedule, and both treat
each sample by itself; what the authors call batch-wise is so in their program too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from memlib.base.errors import InputError
from memlib.base.numbers import is_number, is_whole
from memlib.mitigations.base import Difference, Mitigation, register
from memlib.sampling.batches import Batch
from memlib.sampling.calibration import checked_quantile, published_applies, reference_quantile
from memlib.sampling.first_gap import FirstGap, as_leaves, directions, first_gaps, losses_and_gradients, move, norm_scale, norms
from memlib.sampling.guidance import Rule
from memlib.sampling.loop import Cost
from memlib.sampling.rules import StaticTransition

PUBLISHED_TARGET = 0.9


def _check_count(what: str, value: Any, mitigation: str, least: int) -> None:
    if not is_whole(value, least):
        raise InputError(f"The {what} of {mitigation} is {value!r}: use a whole number from {least} on.")


@register
@dataclass(frozen=True)
class HanBatch(Mitigation):
    """Twice x <- x - gamma [D(x + rho D / ||D||) - D(x)], then no guidance for the first steps. No gradients.

    `rho` 50 belongs to latents of 4 x 64 x 64, whose noise has norm 128: it is scaled by sqrt(elements / 16384), unless `as_published`.
    `time`: the prompt is ignored while the scheduler's time is above it; 900 are the first five of 50 steps.
    Source: Han et al. 2025, batch-wise; program.
    """

    rho: float = 50.0
    gamma: float = 0.7
    rounds: int = 2
    time: float = 900.0
    as_published: bool = False

    name: ClassVar[str] = "han-batch"
    label: ClassVar[str] = "noise moved, late guidance"
    summary: ClassVar[str] = "The initial noise is moved against the sharpness of the gap, and guidance starts after a tenth of the schedule."
    source: ClassVar[str] = "Han et al., 2025, batch-wise"
    family: ClassVar[str] = "noise"
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = ("gamma", (0.7, 1.4))
    differences: ClassVar[tuple[Difference, ...]] = (Difference("the reach of 50 is taken as it is, whatever the size of the latents", {"as_published": True}),)
    cost: ClassVar[str] = "8 U-Net rows a picture (two pairs, twice)"
    sampled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("rho", "gamma", "time"):
            if not is_number(getattr(self, name)):
                raise InputError(f"The {name} of {self.name} is {getattr(self, name)!r}: give a finite number.")
        _check_count("rounds", self.rounds, self.name, least=0)

    def guidance(self, scale: float | Rule) -> Rule:
        if not is_number(scale):
            raise InputError(f"{self.name} chooses the guidance of each step itself: give it a number as guidance, not a rule.")
        return StaticTransition(float(scale), None, 0.0, float(self.time))

    @contextmanager
    def around(self, substrate: Any, batch: Batch, cost: Cost) -> Iterator[Batch]:
        gap = FirstGap(substrate, batch, cost)
        reach = self.rho * (1.0 if self.as_published else norm_scale(substrate))
        noise = batch.latents.to(substrate.device, torch.float32)
        with torch.no_grad():
            noise = adjusted(gap, noise, reach, self.gamma, self.rounds)
        yield replace(batch, latents=noise.cpu())


def adjusted(gap: FirstGap, noise: Tensor, reach: float, gamma: float, rounds: int) -> Tensor:
    """Return the noise [B, C, h, w] of a whole batch after `rounds` moves against D(x + reach D / ||D||) - D(x)."""
    rows = range(len(noise))
    for _ in range(rounds):
        here = gap(noise, rows)
        noise = noise - gamma * (gap(noise + reach * directions(here), rows) - here)
    return noise


@register
@dataclass(frozen=True)
class HanSample(Mitigation):
    """AdamW on the initial noise until ||D(x)|| is at most `target`, or for `iterations` steps; guidance as usual.

    A sample that has reached the target moves no more; the last move is not looked at, as in the program. `target` None is the
    published 0.9 where it belongs, latents of 4 x 64 x 64, and elsewhere the `quantile` of ||D|| over prompts that are not
    memorized: the median, since 0.9 is stricter than the targets of the related methods. AdamW's weight decay is PyTorch's, 0.01.
    Source: Han et al. 2025, per sample; program.
    """

    target: float | None = None
    quantile: float = 0.5
    lr: float = 0.01
    iterations: int = 1000

    name: ClassVar[str] = "han-sample"
    label: ClassVar[str] = "noise optimized to a small gap"
    summary: ClassVar[str] = "The initial noise is optimized until conditional and unconditional prediction at the first step are close."
    source: ClassVar[str] = "Han et al., 2025, per sample"
    family: ClassVar[str] = "noise"
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = ("quantile", (0.9, 0.5))
    cost: ClassVar[str] = "4 U-Net rows an iteration (a pair, forward and backward), until the target is reached"
    sampled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checked_quantile(self.quantile)
        if not (self.target is None or is_number(self.target)) or not is_number(self.lr) or self.lr <= 0:
            raise InputError(f"{self.name} takes a finite target (or None) and a learning rate above 0, not {self.target!r} and {self.lr!r}.")
        _check_count("iterations", self.iterations, self.name, least=0)

    def full_run(self) -> Mitigation:
        return replace(self, target=-1.0, iterations=10)

    @contextmanager
    def around(self, substrate: Any, batch: Batch, cost: Cost) -> Iterator[Batch]:
        gap = FirstGap(substrate, batch, cost)
        yield replace(batch, latents=self.optimized(gap, batch.latents, self.target_on(substrate, batch)))

    def target_on(self, substrate: Any, batch: Batch) -> float:
        """The target for this model."""
        if self.target is not None:
            return self.target
        if published_applies(substrate, self):
            return PUBLISHED_TARGET
        return reference_quantile(substrate, "first gap", first_gaps, self.quantile, batch.scheduler, batch.steps)

    def optimized(self, gap: FirstGap, noise: Tensor, target: float) -> Tensor:
        """Return the noise [B, C, h, w] (CPU) of a whole batch, each sample optimized until it has reached `target`."""
        leaves = as_leaves(noise, gap.substrate.device)
        optimizer = torch.optim.AdamW(leaves, lr=self.lr)
        live = list(range(len(leaves)))
        for _ in range(self.iterations):
            _, found = losses_and_gradients(lambda x, rows: norms(gap(x, rows)), [leaves[row] for row in live], live, target, gap)
            gradients = dict(zip(live, found, strict=True))
            live = [row for row in live if gradients[row] is not None]
            if not live:
                break
            move(optimizer, leaves, [gradients.get(row) for row in range(len(leaves))])
        return torch.stack([leaf.detach() for leaf in leaves]).cpu()
