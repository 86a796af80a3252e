"""The gap of the first step: conditional minus unconditional noise as a function of the initial noise, with gradients.

Several mitigations choose or change the initial noise until this gap, or its sharpness, is small. Each sample is on its own here: its
own norm, its own place in the optimizer, its own end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from memlib.base.errors import InputError
from memlib.sampling.batches import Batch
from memlib.sampling.loop import Cost, to_epsilon

# Gradients of a norm are small numbers, and half precision has no small numbers below 6e-8.
HALF_SCALE = 1024.0
# A backward pass holds the activations of every layer: so many times fewer samples than in sampling are done at once.
GRADIENT_SHARE = 8


SD1_ELEMENTS = 4 * 64 * 64


def norm_scale(substrate: Any) -> float:
    """Return by how much norms of this model's latents are larger than those of Stable Diffusion 1's: sqrt(elements / 16384)."""
    return math.sqrt(math.prod(substrate.latent_shape) / SD1_ELEMENTS)


def norms(values: Tensor) -> Tensor:
    """Return the L2 norm [B] of each sample of [B, C, h, w]."""
    return values.flatten(1).norm(dim=1)


def directions(values: Tensor) -> Tensor:
    """Return each sample of [B, C, h, w] divided by its own norm."""
    return values / norms(values).clamp_min(1e-12).view(-1, 1, 1, 1)


class FirstGap:
    """The gap of a batch's samples at the first time of its schedule; `t` is that time, `solver` the schedule.

    Called with noise [b, C, h, w] (standard normal, float32, before any scaling by the scheduler) and the b samples' rows in the batch, it
    returns eps_cond - eps_uncond [b, C, h, w], float32, in noise whatever the model predicts; gradients go back to the noise. U-Net rows
    are added to `cost`: two a sample for a call, and by `count_gradient` two more for going back through a call. Weights are
    fixed, so that going back costs about what going forward does.
    """

    def __init__(self, substrate: Any, batch: Batch, cost: Cost):
        self.substrate, self.cost = substrate, cost
        self.solver = substrate.scheduler(batch.scheduler, batch.steps)
        self.t = self.solver.timesteps[0]
        self._cond = batch.embedding.states.to(substrate.device, substrate.dtype)
        self._uncond = batch.uncond.to(substrate.device, substrate.dtype)

    @property
    def at_once(self) -> int:
        """How many samples are done at once where gradients are taken."""
        return max(1, self.substrate.batch_size() // GRADIENT_SHARE)

    def __call__(self, noise: Tensor, rows: Sequence[int]) -> Tensor:
        rows = list(rows)
        text = torch.cat([self._uncond[[0] * len(rows) if len(self._uncond) == 1 else rows], self._cond[rows]])
        latents = noise * float(self.solver.init_noise_sigma)
        model_input = self.solver.scale_model_input(latents, self.t).to(self.substrate.dtype)
        output = self.substrate.unet(torch.cat([model_input, model_input]), self.t, encoder_hidden_states=text, return_dict=False)[0].float()
        self.cost.evaluations += 2 * len(rows)
        uncond, cond = (to_epsilon(part, latents, self.t, self.solver) for part in output.chunk(2))
        return cond - uncond

    def count_gradient(self, samples: int, calls: int = 1) -> None:
        """Count the way back through `calls` gaps of `samples` samples."""
        self.cost.evaluations += 2 * samples * calls


@torch.no_grad()
def first_gaps(substrate: Any, batch: Batch, cost: Cost) -> Tensor:
    """Return the norm [B] of the gap at each sample's initial noise."""
    return norms(FirstGap(substrate, batch, cost)(batch.latents.to(substrate.device, torch.float32), range(len(batch.rows))))


Loss = Callable[[Tensor, list[int]], Tensor]


def losses_and_gradients(
    loss: Loss, noise: Sequence[Tensor], rows: Sequence[int], enough: float, gap: FirstGap, calls: int = 1
) -> tuple[list[float], list[Tensor | None]]:
    """Return the loss of each sample, and its gradient, or None where the loss is at most `enough`.

    `noise` holds one [C, h, w] a sample; `loss(noise [b, C, h, w], rows)` gives [b] from `calls` gaps, each sample's from its own noise.
    Raises InputError for a gradient that is not finite.
    """
    scale = HALF_SCALE if gap.substrate.dtype == torch.float16 else 1.0
    found: list[float] = []
    gradients: list[Tensor | None] = []
    for start in range(0, len(noise), gap.at_once):
        part = slice(start, start + gap.at_once)
        with torch.enable_grad():
            leaf = torch.stack([one.detach() for one in noise[part]]).requires_grad_()
            values = loss(leaf, list(rows[part]))
            wanted = ~(values.detach() <= enough)
            back = None
            if wanted.any():
                (back,) = torch.autograd.grad(scale * values[wanted].sum(), leaf)
                gap.count_gradient(int(wanted.sum()), calls)
        if back is not None and not torch.isfinite(back[wanted]).all():
            raise InputError(f"{gap.substrate.name} gave a gradient that is not finite in {gap.substrate.dtype}: load it with dtype='float32'.")
        found += values.tolist()
        gradients += [back[place] / scale if wanted[place] else None for place in range(len(leaf))]
    return found, gradients


def as_leaves(noise: Tensor, device: Any) -> list[Tensor]:
    """Return one float32 leaf tensor a sample: an optimizer leaves those that have no gradient where they are."""
    return [one.to(device, torch.float32).clone().requires_grad_() for one in noise]


def move(optimizer: torch.optim.Optimizer, leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """One step of the optimizer in which only the leaves with a gradient take part."""
    for leaf, gradient in zip(leaves, gradients, strict=True):
        leaf.grad = gradient
    optimizer.step()
