"""Wen et al. 2024: the prompt's embedding is optimized at the first step until the magnitude has fallen to a target.

The variable is the conditional embedding, the loss the L2 norm of conditional minus unconditional noise, the optimizer AdamW. Every
picture has an embedding of its own here, its own loss, and is left alone once it has reached the target, so that it does not
depend on what is sampled with it. The public program has one embedding and one loss for all pictures that it makes at once; see
`as_published`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from memlib.base.errors import InputError
from memlib.base.numbers import is_number, is_whole
from memlib.mitigations.base import Difference, Mitigation, register
from memlib.sampling.batches import Batch, initial_latents
from memlib.sampling.calibration import checked_quantile, published_applies, reference_quantile
from memlib.sampling.first_step import FirstStep, first_magnitudes, weighted
from memlib.sampling.loop import Cost

WEIGHT_DECAY = 0.01  # AdamW's own default, which the program leaves as it is.
HALF_SCALE = 2.0**8  # Half precision loses small gradients; powers of two are exact.

Loss = Callable[[Tensor, list[int]], Tensor]


def optimize(
    loss: Loss, starts: Tensor, target: float, *, iterations: int = 10, lr: float = 0.05,
    decay_sot: bool = False, at_once: int = 8, scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """Return embeddings [G, 77, d] moved by AdamW until the loss of each is at most `target`, or for `iterations` updates.

    `loss(states, which)` gives the losses [A] of the embeddings with the numbers `which` at `states` [A, 77, d]. Each embedding is
    tested before each update and moves no more once it has reached the target: no gradient, momentum or weight
    decay. The state of ``<sot>`` stays as it is; with `decay_sot` its gradient alone is zero, as in the program, and weight decay
    shrinks it. `at_once` embeddings are differentiated together, and losses are multiplied by `scale` meanwhile. Raises
    InputError where a gradient is not finite.
    """
    fixed = 0 if decay_sot else 1
    moving = [start[fixed:].detach().clone().float().requires_grad_() for start in starts]
    optimizer = torch.optim.AdamW(moving, lr=lr, weight_decay=WEIGHT_DECAY)
    active = list(range(len(moving)))
    for _ in range(iterations):
        optimizer.zero_grad(set_to_none=True)
        above: list[int] = []
        for begin in range(0, len(active), at_once):
            which = active[begin : begin + at_once]
            with torch.enable_grad():
                states = torch.stack([torch.cat([starts[i, :fixed].float(), moving[i]]) for i in which])
                losses = loss(states, which)
                # "not below" rather than "above", so that a loss that is no number ends in an error and not in silence.
                kept = [k for k, value in enumerate(losses.tolist()) if not value <= target]
                if kept:
                    (scale * losses[kept].sum()).backward()
            for k in set(range(len(which))) - set(kept):
                moving[which[k]].grad = None
            above += [which[k] for k in kept]
        if not above:
            break
        for i in above:
            gradient = moving[i].grad.div_(scale)
            if not torch.isfinite(gradient).all():
                raise InputError("The gradient of the magnitude by the embedding is not finite in this precision: load the model with dtype='float32'.")
            if decay_sot:
                gradient[0] = 0
        optimizer.step()
        active = above
    return torch.stack([torch.cat([start[:fixed].float(), moved.detach()]) for start, moved in zip(starts, moving, strict=True)])


def blocks(batch: Batch, images: int, latent_shape: Sequence[int]) -> tuple[Batch, list[list[int]], list[int]]:
    """Return the samples that the program makes together with those of `batch`: pictures of one prompt, `images` at once.

    A call of the program is taken to make the seeds 0 to `images` - 1, the next one the next seeds, so that a sample's block does
    not depend on the batch. Given back: a batch of all members of these blocks, their numbers by block, and the block of each
    sample of `batch`.
    """
    places: dict[tuple[int, int], int] = {}
    of, origins, seeds = [], [], []
    for position, (row, seed) in enumerate(zip(batch.rows, batch.seeds, strict=True)):
        block = (row, seed // images)
        if block not in places:
            places[block] = len(places)
            origins += [position] * images
            seeds += range(seed // images * images, seed // images * images + images)
        of.append(places[block])
    uncond = batch.uncond if len(batch.uncond) == 1 else batch.uncond[origins]
    together = replace(
        batch, rows=[batch.rows[i] for i in origins], seeds=seeds, embedding=batch.embedding.select(origins), uncond=uncond,
        latents=initial_latents(seeds, latent_shape),
    )  # fmt: skip
    return together, [list(range(b * images, (b + 1) * images)) for b in range(len(places))], of


def check_target(name: str, target: Any) -> None:
    """Raise InputError for a target that is neither None nor a finite number from 0 on."""
    if target is not None and (not is_number(target) or target < 0):
        raise InputError(f"The target of {name} is {target!r}: give a magnitude from 0 on, or None for the published one or its quantile.")


@register
@dataclass(frozen=True)
class OptimizedEmbedding(Mitigation):
    """At most `iterations` updates of AdamW with learning rate `lr` at the first step, until the magnitude is at most the target.

    The target is `target` where it is given; else the published one on the latents that it belongs to (4 x 64 x 64, models of
    noise), and elsewhere, or where another quantile than the default is asked for, the `quantile` of the magnitude at the first step over
    prompts that are not memorized (`memlib.sampling.calibration`). A target of 3 lies above what such prompts show on Stable Diffusion 1 (about 1),
    hence a high quantile.

    `as_published` does what the public program does: one embedding for `images` pictures of a prompt made at once (seeds 0 to 3,
    4 to 7, ...), whose loss is the norm over all of them together, about sqrt(images) times that of one, and weight
    decay that shrinks ``<sot>`` although its gradient is set to zero. Source: Wen et al. 2024, Section 5; `clip` Table 4.
    """

    target: float | None = None
    quantile: float = 0.99
    lr: float = 0.05
    iterations: int = 10
    as_published: bool = False
    images: int = 4

    name: ClassVar[str] = "wen-3"
    label: ClassVar[str] = "optimized embedding, target 3"
    summary: ClassVar[str] = "The embedding is optimized at the first step until the magnitude is at most 3, or its counterpart on other models."
    source: ClassVar[str] = "Wen et al., 2024"
    cost: ClassVar[str] = "one U-Net row, and one for each forward and each backward pass, of which there are up to ten"
    reported: ClassVar[tuple[str, ...]] = ("wen", "wen_l3")
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = ("quantile", (0.99, 0.5, 0.1))
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("one embedding and one norm for four pictures made at once, and weight decay on <sot>", {"as_published": True}, "9"),
    )
    sampled: ClassVar[bool] = True
    published_target: ClassVar[float] = 3.0

    def __post_init__(self) -> None:
        check_target(self.name, self.target)
        checked_quantile(self.quantile)
        if not is_number(self.lr) or self.lr <= 0:
            raise InputError(f"The learning rate of {self.name} is {self.lr!r}: give a number above 0.")
        for what, value in (("iterations", self.iterations), ("images", self.images)):
            if not is_whole(value, 1):
                raise InputError(f"The number of {what} of {self.name} is {value!r}: give a whole number of at least 1.")

    def threshold(self, substrate: Any, batch: Batch) -> float:
        """The target on this substrate, in units of the loss."""
        if self.target is not None:
            return self.target
        if published_applies(substrate, self):
            return self.published_target
        return self.reference(substrate, batch)

    def reference(self, substrate: Any, batch: Batch) -> float:
        """The quantile that stands for the published target on other models."""
        return reference_quantile(substrate, "first magnitude", first_magnitudes, self.quantile, batch.scheduler, batch.steps)

    def full_run(self) -> Mitigation:
        """The same with a target that is never reached, for timing its full cost."""
        return replace(self, target=0.0)

    def masks(self, substrate: Any, batch: Batch, cost: Cost) -> Tensor | None:
        """Weights [B, h, w] of the magnitude's pixels, or None for all alike."""
        return None

    def optimized(self, substrate: Any, batch: Batch, cost: Cost) -> Tensor:
        """Return the optimized embeddings [B, 77, d], float32 on the CPU."""
        samples, groups, of = batch, [[i] for i in range(len(batch.rows))], list(range(len(batch.rows)))
        if self.as_published:
            samples, groups, of = blocks(batch, self.images, substrate.latent_shape)
        target = self.threshold(substrate, batch)
        masks = self.masks(substrate, samples, cost)
        first = FirstStep(substrate, samples, cost)

        def loss(states: Tensor, which: list[int]) -> Tensor:
            members = [groups[i] for i in which]
            rows = [row for group in members for row in group]
            repeats = torch.tensor([len(group) for group in members], device=states.device)
            difference = first.difference(states.repeat_interleave(repeats, 0), rows)
            parts = difference.split([len(group) for group in members])
            mask = (lambda group: None) if masks is None else (lambda group: masks[group].to(difference))
            # One norm over all pictures of a group; a group is one picture unless as_published.
            return torch.stack([weighted(p, mask(g), over_batch=True).norm() for p, g in zip(parts, members, strict=True)])

        starts = samples.embedding.states[[group[0] for group in groups]].to(substrate.device)
        states = optimize(
            loss, starts, target, iterations=self.iterations, lr=self.lr, decay_sot=self.as_published,
            at_once=max(1, first.with_gradient // len(groups[0])), scale=HALF_SCALE if substrate.dtype == torch.float16 else 1.0,
        )  # fmt: skip
        return states.cpu()[of]

    @contextmanager
    def around(self, substrate: Any, batch: Batch, cost: Cost) -> Iterator[Batch]:
        yield replace(batch, embedding=batch.embedding.replace(self.optimized(substrate, batch, cost)))


@register
@dataclass(frozen=True)
class OptimizedEmbeddingStrict(OptimizedEmbedding):
    """The same with a target of 1, about the magnitude of ordinary prompts on Stable Diffusion 1: their median elsewhere."""

    quantile: float = 0.5

    name: ClassVar[str] = "wen-1"
    label: ClassVar[str] = "optimized embedding, target 1"
    summary: ClassVar[str] = "The embedding is optimized at the first step until the magnitude is at most 1, or its counterpart on other models."
    source: ClassVar[str] = "Wen et al., 2024; basin Tables 3 and 4"
    reported: ClassVar[tuple[str, ...]] = ("wen_l1",)
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = None  # Its strengths are those of wen-3.
    published_target: ClassVar[float] = 1.0
