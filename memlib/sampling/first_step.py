"""The first step of sampling: what the text adds to the predicted noise there, as a function of the embedding and of the initial noise.

The difference of conditional and unconditional noise at the noisiest time is what several mitigations make small and detectors read; its norm is the
magnitude. Each sample is on its own: its own norm, its own place in an optimizer, its own end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from memlib.base.errors import InputError
from memlib.models.protocol import Substrate
from memlib.sampling.batches import Batch
from memlib.sampling.loop import Cost, to_epsilon

# A backward pass holds the activations of every layer: so many times fewer rows than in sampling are done at once.
GRADIENT_SHARE = 8
# Gradients of a norm are small numbers, and half precision has none below 6e-8; powers of two are exact.
HALF_SCALE = 1024.0
NO_SIGNAL = 1e-6  # a share of the clean latents in the variance below this is none; diffusers' Euler scheduler has 6e-8 for zero
SD1_ELEMENTS = 4 * 64 * 64


def norm_scale(substrate: Substrate) -> float:
    """Return by how much norms of this model's latents are larger than those of Stable Diffusion 1's: sqrt(elements / 16384)."""
    return math.sqrt(math.prod(substrate.latent_shape) / SD1_ELEMENTS)


def gradient_scale(substrate: Substrate) -> float:
    """Return what losses are multiplied by while their gradients are taken: more than 1 in half precision."""
    return HALF_SCALE if substrate.dtype == torch.float16 else 1.0


def norms(values: Tensor) -> Tensor:
    """Return the L2 norm [B] of each sample of [B, C, h, w]."""
    return values.flatten(1).norm(dim=1)


def directions(values: Tensor) -> Tensor:
    """Return each sample of [B, C, h, w] divided by its own norm."""
    return values / norms(values).clamp_min(1e-12).view(-1, 1, 1, 1)


def without_signal(substrate: Substrate, scheduler: str = "ddim", steps: int = 50) -> str:
    """Return a sentence where a schedule begins with noise alone, so that the noise in it is known without the text; else an empty text."""
    solver = substrate.scheduler(scheduler, steps)
    if solver.config.prediction_type == "epsilon" or float(solver.alphas_cumprod[int(solver.timesteps[0])]) > NO_SIGNAL:
        return ""
    return (
        f"The {scheduler} schedule of {substrate.name} begins without any signal (zero terminal SNR), where the predicted noise does not depend on "
        "the text: what acts at the first step is not possible, so use a mitigation of another kind."
    )


class FirstStep:
    """The noisiest step of a batch of B samples; `t` is its time, `solver` the schedule.

    `difference` is a function of the embedding at the batch's own noise, `gap` one of the noise under the batch's own embeddings: conditional minus
    unconditional noise [A, C, h, w], float32, in noise whatever the model predicts, with gradients. `cost` is added to: a U-Net row for each
    row of a forward pass, and another for each that a gradient is taken through (the weights need none, so that going back costs about
    what going forward does): `difference` counts those by itself, those of `gap` are counted by `count_gradient`. Raises InputError for a schedule
    that begins without any signal.
    """

    def __init__(self, substrate: Substrate, batch: Batch, cost: Cost):
        self.substrate, self.cost, self._batch = substrate, cost, batch
        if lacking := without_signal(substrate, batch.scheduler, batch.steps):
            raise InputError(lacking)
        self.solver = substrate.scheduler(batch.scheduler, batch.steps)
        self.t = self.solver.timesteps[0]
        self.noise = batch.latents.to(substrate.device, torch.float32)

    @property
    def at_once(self) -> int:
        """How many samples are done at once where gradients are taken."""
        return max(1, self.substrate.batch_size() // GRADIENT_SHARE)

    def _outputs(self, noise: Tensor, states: Tensor, times: int = 1) -> tuple[Tensor, Tensor]:
        """The U-Net's outputs for noise, given to it `times` in a row, and the latents of one turn."""
        latents = noise * float(self.solver.init_noise_sigma)
        inputs = self.solver.scale_model_input(latents, self.t).to(self.substrate.dtype)
        states = states.to(self.substrate.device, self.substrate.dtype)
        output = self.substrate.unet(torch.cat([inputs] * times), self.t, encoder_hidden_states=states, return_dict=False)[0].float()
        self.cost.evaluations += len(output)
        return output, latents

    def _epsilon(self, states: Tensor, rows: Sequence[int]) -> Tensor:
        output, latents = self._outputs(self.noise[list(rows)], states)
        if output.requires_grad:
            output.register_hook(lambda gradient: self._count(len(gradient)))
        return to_epsilon(output, latents, self.t, self.solver)

    def _count(self, rows: int) -> None:
        self.cost.evaluations += rows

    @cached_property
    def uncond(self) -> Tensor:
        """The unconditional predictions [B, C, h, w] at the batch's own noise: B U-Net rows, once."""
        size, rows = self.substrate.batch_size(), range(len(self.noise))
        uncond = self._batch.uncond.expand(len(rows), -1, -1)
        with torch.no_grad():
            return torch.cat([self._epsilon(uncond[start : start + size], rows[start : start + size]) for start in range(0, len(rows), size)])

    def difference(self, states: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the difference for the samples `rows` under `states` [A, 77, d], which may be float32 whatever the model's precision."""
        return self._epsilon(states, rows) - self.uncond[list(rows)]

    def gap(self, noise: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the difference for the samples `rows` at `noise` [A, C, h, w]: standard normal, float32, before the scheduler's scaling."""
        rows, uncond = list(rows), self._batch.uncond
        text = torch.cat([uncond[[0] * len(rows) if len(uncond) == 1 else rows], self._batch.embedding.states[rows]])
        output, latents = self._outputs(noise, text, times=2)
        without, with_text = (to_epsilon(half, latents, self.t, self.solver) for half in output.chunk(2))
        return with_text - without

    def count_gradient(self, samples: int, calls: int = 1) -> None:
        """Count the way back through `calls` gaps of `samples` samples."""
        self.cost.evaluations += 2 * samples * calls

    @torch.no_grad()
    def magnitudes(self, states: Tensor, rows: Sequence[int], masks: Tensor | None = None) -> Tensor:
        """Return the L2 norm [A] of the difference for each sample, under `masks` [B, h, w] as `weighted` applies them."""
        size, found = self.substrate.batch_size(), []
        for start in range(0, len(rows), size):
            part = list(rows[start : start + size])
            difference = self.difference(states[start : start + size], part)
            found.append(norms(weighted(difference, None if masks is None else masks[part])))
        return torch.cat(found)


def weighted(difference: Tensor, masks: Tensor | None, over_batch: bool = False) -> Tensor:
    """Return differences [A, C, h, w] times masks [A, h, w] over the mean of each mask, or unchanged without masks.

    With `over_batch` the mean is that of all the masks together. Source: Chen et al. 2025 (bright ending), program.
    """
    if masks is None:
        return difference
    means = masks.mean() if over_batch else masks.flatten(1).mean(1).view(-1, 1, 1, 1)
    return difference * masks[:, None] / means


def first_magnitudes(substrate: Substrate, batch: Batch, cost: Cost) -> Tensor:
    """Return the magnitude at the first step [B], per sample: the L2 norm of conditional minus unconditional noise."""
    return FirstStep(substrate, batch, cost).magnitudes(batch.embedding.states, range(len(batch.rows)))


# From leaves stacked [A, ...] and their numbers to the loss [A] of each, which depends on its own leaf alone.
Loss = Callable[[Tensor, list[int]], Tensor]


def as_leaves(values: Sequence[Tensor]) -> list[Tensor]:
    """Return a float32 copy of each tensor that gradients may be taken by: an optimizer leaves those alone that have none."""
    return [value.detach().float().clone().requires_grad_() for value in values]


def losses_and_gradients(
    loss: Loss, leaves: Sequence[Tensor], which: Sequence[int], enough: float, *, at_once: int, scale: float = 1.0,
    counted: Callable[[int], None] = lambda samples: None,
) -> tuple[list[float], list[Tensor | None]]:  # fmt: skip
    """Return the loss of each leaf, and its gradient, or None where the loss is at most `enough`.

    `at_once` leaves are differentiated together; losses are multiplied by `scale` meanwhile (`gradient_scale`), and `counted` is told for how many a
    gradient was taken. Raises InputError for a gradient that is not finite.
    """
    found: list[float] = []
    gradients: list[Tensor | None] = []
    for start in range(0, len(leaves), at_once):
        part = slice(start, start + at_once)
        with torch.enable_grad():
            stacked = torch.stack([leaf.detach() for leaf in leaves[part]]).requires_grad_()
            values = loss(stacked, list(which[part]))
            # "not below" rather than "above", so that a loss that is no number ends in an error and not in silence.
            wanted = ~(values.detach() <= enough)
            back = None
            if wanted.any():
                (back,) = torch.autograd.grad(scale * values[wanted].sum(), stacked)
                counted(int(wanted.sum()))
        if back is not None and not torch.isfinite(back[wanted]).all():
            raise InputError("The gradient at the first step is not finite in this precision: load the model with dtype='float32'.")
        found += values.tolist()
        gradients += [back[place] / scale if back is not None and wanted[place] else None for place in range(len(stacked))]
    return found, gradients


def move(optimizer: torch.optim.Optimizer, leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """One step of the optimizer in which only the leaves with a gradient take part."""
    for leaf, gradient in zip(leaves, gradients, strict=True):
        leaf.grad = gradient
    optimizer.step()


def descend(
    loss: Loss, leaves: Sequence[Tensor], enough: float, optimizer: torch.optim.Optimizer, iterations: int, *, at_once: int, scale: float = 1.0,
    counted: Callable[[int], None] = lambda samples: None,
) -> None:  # fmt: skip
    """Move leaves in place until the loss of each is at most `enough`, or for `iterations` steps of the optimizer.

    A leaf is tested before each step and moves no more once it has reached it: no gradient, momentum or weight decay. What the last step
    gave is not tested.
    """
    live = list(range(len(leaves)))
    for _ in range(iterations):
        _, found = losses_and_gradients(loss, [leaves[place] for place in live], live, enough, at_once=at_once, scale=scale, counted=counted)
        gradients = dict(zip(live, found, strict=True))
        live = [place for place in live if gradients[place] is not None]
        if not live:
            break
        move(optimizer, leaves, [gradients.get(place) for place in range(len(leaves))])
