"""Wen et al. 2024: the prompt's embedding is optimized at the first step until the magnitude has fallen to a target.

The variable is the conditional embedding, the loss the L2 norm of conditional minus unconditional noise, the optimizer AdamW. Every
picture has an embedding of its own here, its own loss, and is left alone once it has reached the target, so that it does not
depend on what is sampled with it. The public program has one embedding and one loss for all pictures that it makes at once; see
`as_published`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from memlib.base.declared import Count, NotNegative, Positive, Share
from memlib.mitigations.base import Difference, Mitigation, register
from memlib.models.protocol import Substrate
from memlib.sampling.batches import Batch, initial_latents
from memlib.sampling.calibration import target_of
from memlib.sampling.first_step import FirstStep, Loss, as_leaves, descend, gradient_scale, weighted
from memlib.sampling.loop import Cost

WEIGHT_DECAY = 0.01  # AdamW's own default, which the program leaves as it is.


def optimize(
    loss: Loss, starts: Tensor, target: float, *, iterations: int = 10, lr: float = 0.05,
    decay_sot: bool = False, at_once: int = 8, scale: float = 1.0,
) -> Tensor:  # fmt: skip
    """Return embeddings [G, 77, d] moved by AdamW until the loss of each is at most `target`, or for `iterations` updates.

    `loss(states, which)` gives the losses [A] of the embeddings with the numbers `which` at `states` [A, 77, d]. The state of ``<sot>``
    stays as it is; with `decay_sot` its gradient alone is zero, as in the program, and weight decay shrinks it. The rest is as in
    `memlib.sampling.first_step.descend`.
    """
    fixed = starts[:, :1].detach().float()
    leaves = as_leaves(list(starts if decay_sot else starts[:, 1:]))

    def of_moving(moving: Tensor, which: list[int]) -> Tensor:
        sot, rest = (moving[:, :1].detach(), moving[:, 1:]) if decay_sot else (fixed[which], moving)
        return loss(torch.cat([sot, rest], 1), which)

    optimizer = torch.optim.AdamW(leaves, lr=lr, weight_decay=WEIGHT_DECAY)
    descend(of_moving, leaves, target, optimizer, iterations, at_once=at_once, scale=scale)
    moved = torch.stack([leaf.detach() for leaf in leaves])
    return moved if decay_sot else torch.cat([fixed, moved], 1)


def blocks(batch: Batch, images: int, latent_shape: Sequence[int]) -> tuple[Batch, list[list[int]], list[int]]:
    """Return the samples that the program makes together with those of `batch`: pictures of one prompt, `images` at once.

    A call of the program is taken to make the seeds 0 to `images` - 1, the next one the next seeds, so that a sample's block does
    not depend on the batch. Given back: a batch of all members of these blocks, their numbers by block, and the block of each
    sample of `batch`.
    """
    places: dict[tuple[int, int], int] = {}
    of, origins, seeds = list[int](), list[int](), list[int]()
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

    target: NotNegative | None = None
    quantile: Share = 0.99
    lr: Positive = 0.05
    iterations: Count = 10
    as_published: bool = False
    images: Count = 4

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
    first_step: ClassVar[bool] = True
    published_target: ClassVar[float] = 3.0

    def threshold(self, substrate: Substrate, batch: Batch) -> float:
        """The target on this substrate, in units of the loss."""
        return target_of(self, substrate, batch, self.published_target)

    def full_run(self) -> Mitigation:
        """The same with a target that is never reached, for timing its full cost."""
        return replace(self, target=0.0)

    def masks(self, substrate: Substrate, batch: Batch, cost: Cost) -> Tensor | None:
        """Weights [B, h, w] of the magnitude's pixels, or None for all alike."""
        return None

    def optimized(self, substrate: Substrate, batch: Batch, cost: Cost) -> Tensor:
        """Return the optimized embeddings [B, 77, d], float32 on the CPU."""
        samples, groups, of = batch, [[i] for i in range(len(batch.rows))], list(range(len(batch.rows)))
        if self.as_published:
            samples, groups, of = blocks(batch, self.images, substrate.latent_shape)
        first = FirstStep(substrate, samples, cost)  # refuses a schedule without a signal before anything is looked up
        target = self.threshold(substrate, batch)
        masks = self.masks(substrate, samples, cost)

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
            at_once=max(1, first.at_once // len(groups[0])), scale=gradient_scale(substrate),
        )  # fmt: skip
        return states.cpu()[of]

    @contextmanager
    def around(self, substrate: Substrate, batch: Batch, cost: Cost) -> Iterator[Batch]:
        yield replace(batch, embedding=batch.embedding.replace(self.optimized(substrate, batch, cost)))


@register
@dataclass(frozen=True)
class OptimizedEmbeddingStrict(OptimizedEmbedding):
    """The same with a target of 1, about the magnitude of ordinary prompts on Stable Diffusion 1: their median elsewhere."""

    quantile: Share = 0.5

    name: ClassVar[str] = "wen-1"
    label: ClassVar[str] = "optimized embedding, target 1"
    summary: ClassVar[str] = "The embedding is optimized at the first step until the magnitude is at most 1, or its counterpart on other models."
    source: ClassVar[str] = "Wen et al., 2024; basin Tables 3 and 4"
    reported: ClassVar[tuple[str, ...]] = ("wen_l1",)
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = None  # Its strengths are those of wen-3.
    published_target: ClassVar[float] = 1.0
