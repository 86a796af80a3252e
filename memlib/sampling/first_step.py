"""The first step of sampling: what the text adds to the predicted noise, as a function of the embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memlib.sampling.batches import Batch
from memlib.sampling.loop import Cost, to_epsilon

GRADIENT_SHARE = 8  # A row with gradients needs about so many times the memory of one without.


class FirstStep:
    """The noisiest step of a batch of B samples; their unconditional predictions are computed once (B U-Net rows).

    `cost` is added to: one row for each row of a forward pass, and one more for each row that a gradient is taken through (the
    weights need none, so that a backward pass costs about as much as a forward pass).
    """

    def __init__(self, substrate: Any, batch: Batch, cost: Cost):
        self.substrate, self.cost = substrate, cost
        self.solver = substrate.scheduler(batch.scheduler, batch.steps)
        self.t = self.solver.timesteps[0]
        self.latents = batch.latents.to(substrate.device, torch.float32) * float(self.solver.init_noise_sigma)
        self.inputs = self.solver.scale_model_input(self.latents, self.t).to(substrate.dtype)
        size = substrate.batch_size()
        self.with_gradient = max(1, size // GRADIENT_SHARE)
        uncond = batch.uncond.expand(len(self.latents), -1, -1)
        with torch.no_grad():
            rows = range(len(self.latents))
            parts = [self._epsilon(uncond[start : start + size], rows[start : start + size]) for start in range(0, len(rows), size)]
        self.uncond = torch.cat(parts)

    def _epsilon(self, states: Tensor, rows: Sequence[int]) -> Tensor:
        rows = list(rows)
        states = states.to(self.substrate.device, self.substrate.dtype)
        output = self.substrate.unet(self.inputs[rows], self.t, encoder_hidden_states=states, return_dict=False)[0].float()
        self.cost.evaluations += len(rows)
        if output.requires_grad:
            output.register_hook(lambda gradient: self._count(len(gradient)))
        return to_epsilon(output, self.latents[rows], self.t, self.solver)

    def _count(self, rows: int) -> None:
        self.cost.evaluations += rows

    def difference(self, states: Tensor, rows: Sequence[int]) -> Tensor:
        """Return conditional minus unconditional noise [A, C, h, w], float32, of the samples `rows` under `states` [A, 77, d].

        It can be differentiated by `states`, which may be float32 whatever the model's precision.
        """
        return self._epsilon(states, rows) - self.uncond[list(rows)]

    @torch.no_grad()
    def magnitudes(self, states: Tensor, rows: Sequence[int], masks: Tensor | None = None) -> Tensor:
        """Return the L2 norm [A] of that difference for each sample, under `masks` [B, h, w] as `weighted` applies them."""
        size, found = self.substrate.batch_size(), []
        for start in range(0, len(rows), size):
            part = list(rows[start : start + size])
            difference = self.difference(states[start : start + size], part)
            found.append(weighted(difference, None if masks is None else masks[part]).flatten(1).norm(dim=1))
        return torch.cat(found)


def weighted(difference: Tensor, masks: Tensor | None, over_batch: bool = False) -> Tensor:
    """Return differences [A, C, h, w] times masks [A, h, w] over the mean of each mask, or unchanged without masks.

    With `over_batch` the mean is that of all the masks together. Source: Chen et al. 2025 (bright ending), program.
    """
    if masks is None:
        return difference
    means = masks.mean() if over_batch else masks.flatten(1).mean(1).view(-1, 1, 1, 1)
    return difference * masks[:, None] / means


def first_magnitudes(substrate: Any, batch: Batch, cost: Cost) -> Tensor:
    """Return the magnitude at the first step [B], per sample: the L2 norm of conditional minus unconditional noise."""
    return FirstStep(substrate, batch, cost).magnitudes(batch.embedding.states, range(len(batch.rows)))
