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

from memlib.base.declared import Positive, Share, Whole
from memlib.mitigations.base import Difference, Mitigation, register
from memlib.models.protocol import Substrate
from memlib.sampling.batches import Batch
from memlib.sampling.calibration import target_of
from memlib.sampling.first_step import FirstStep, as_leaves, descend, directions, gradient_scale, norm_scale, norms
from memlib.sampling.guidance import Rule
from memlib.sampling.loop import Cost
from memlib.sampling.rules import StaticTransition

PUBLISHED_TARGET = 0.9


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
    rounds: Whole = 2
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
    first_step: ClassVar[bool] = True

    def guidance(self, scale: float | Rule) -> Rule:
        return StaticTransition(self.own_scale(scale), None, 0.0, float(self.time))

    @contextmanager
    def around(self, substrate: Substrate, batch: Batch, cost: Cost) -> Iterator[Batch]:
        first = FirstStep(substrate, batch, cost)
        reach = self.rho * (1.0 if self.as_published else norm_scale(substrate))
        with torch.no_grad():
            noise = adjusted(first, first.noise, reach, self.gamma, self.rounds)
        yield replace(batch, latents=noise.cpu())


def adjusted(first: FirstStep, noise: Tensor, reach: float, gamma: float, rounds: int) -> Tensor:
    """Return the noise [B, C, h, w] of a whole batch after `rounds` moves against D(x + reach D / ||D||) - D(x)."""
    rows = range(len(noise))
    for _ in range(rounds):
        here = first.gap(noise, rows)
        noise = noise - gamma * (first.gap(noise + reach * directions(here), rows) - here)
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
    quantile: Share = 0.5
    lr: Positive = 0.01
    iterations: Whole = 1000

    name: ClassVar[str] = "han-sample"
    label: ClassVar[str] = "noise optimized to a small gap"
    summary: ClassVar[str] = "The initial noise is optimized until conditional and unconditional prediction at the first step are close."
    source: ClassVar[str] = "Han et al., 2025, per sample"
    family: ClassVar[str] = "noise"
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = ("quantile", (0.9, 0.5))
    cost: ClassVar[str] = "4 U-Net rows an iteration (a pair, forward and backward), until the target is reached"
    sampled: ClassVar[bool] = True
    first_step: ClassVar[bool] = True

    def full_run(self) -> Mitigation:
        return replace(self, target=-1.0, iterations=10)

    @contextmanager
    def around(self, substrate: Substrate, batch: Batch, cost: Cost) -> Iterator[Batch]:
        yield replace(batch, latents=self.optimized(FirstStep(substrate, batch, cost), self.target_on(substrate, batch)))

    def target_on(self, substrate: Substrate, batch: Batch) -> float:
        """The target for this model."""
        return target_of(self, substrate, batch, PUBLISHED_TARGET)

    def optimized(self, first: FirstStep, target: float) -> Tensor:
        """Return the noise [B, C, h, w] (CPU) of a whole batch, each sample optimized until it has reached `target`."""
        leaves = as_leaves(list(first.noise))
        descend(
            lambda noise, rows: norms(first.gap(noise, rows)), leaves, target, torch.optim.AdamW(leaves, lr=self.lr), self.iterations,
            at_once=first.at_once, scale=gradient_scale(first.substrate), counted=first.count_gradient,
        )  # fmt: skip
        return torch.stack([leaf.detach() for leaf in leaves]).cpu()
