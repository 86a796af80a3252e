"""Chen et al. 2025 (bright ending): the magnitude is optimized where the last step attends to ``<eot>``, as memorized regions do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from memlib.base.declared import Count, Share
from memlib.mitigations.base import Difference, register
from memlib.mitigations.wen import OptimizedEmbedding
from memlib.models.protocol import Substrate
from memlib.sampling.attention.positions import eot_masks
from memlib.sampling.attention.record import cross_attention_layers, finest_down_layers, record
from memlib.sampling.batches import Batch
from memlib.sampling.calibration import target_of
from memlib.sampling.first_step import FirstStep
from memlib.sampling.loop import Cost, trajectory

CALIBRATED = 16  # Prompts for the target: each takes a whole run.


def bright_masks(substrate: Substrate, batch: Batch, cost: Cost) -> Tensor:
    """Return the attention to ``<eot>`` at the last step of an ordinary run of the batch, [B, h, w] on the CPU.

    The mean over heads and over the finest cross-attention layers of the down path, conditional half, resized to the
    latents. It costs the whole run. Source: Chen et al. 2025 (bright ending), program.
    """
    layers, masks, at_once = finest_down_layers(cross_attention_layers(substrate)), [], substrate.batch_size()
    calls = len(substrate.scheduler(batch.scheduler, batch.steps).timesteps)  # PNDM makes one more than it has steps
    for start in range(0, len(batch.rows), at_once):
        part = slice(start, start + at_once)
        uncond = batch.uncond if len(batch.uncond) == 1 else batch.uncond[part]
        embedding = batch.embedding.select(part)
        with record(substrate, layers=layers, maps=layers, steps=calls) as recording:
            for _ in trajectory(substrate, embedding.states, uncond, batch.latents[part], batch.steps, batch.rule, batch.scheduler, cost=cost):
                pass
        maps = torch.stack([torch.from_numpy(found) for found in recording.attention.maps.values()]).float().mean(0)
        masks.append(eot_masks(maps, embedding.tokens.lengths + 1, substrate.latent_shape[1:]))
    return torch.cat(masks)


def masked_magnitudes(substrate: Substrate, batch: Batch, cost: Cost) -> Tensor:
    """Return ``||difference * mask|| / mean(mask)`` at the first step [B], with each sample's own `bright_masks`."""
    masks = bright_masks(substrate, batch, cost).to(substrate.device)
    return FirstStep(substrate, batch, cost).magnitudes(batch.embedding.states, range(len(batch.rows)), masks)


@register
@dataclass(frozen=True)
class BrightEnding(OptimizedEmbedding):
    """The optimization of Wen et al. with the magnitude weighted by `bright_masks`, until it is at most 1.

    On other models than Stable Diffusion 1 the target is the median of that quantity over prompts that are not memorized. `as_published`
    divides by the mean mask of all `images` made at once, where the authors' detector divides by each picture's own.
    Source: Chen et al. 2025 (bright ending), program.
    """

    quantile: Share = 0.5
    images: Count = 1

    name: ClassVar[str] = "bright-ending"
    label: ClassVar[str] = "optimized embedding, bright-ending mask"
    summary: ClassVar[str] = "As wen-1, with the magnitude weighted by the last step's attention to <eot> in an ordinary run."
    source: ClassVar[str] = "Chen et al., 2025 (bright ending)"
    cost: ClassVar[str] = "a whole run for the mask, then that of wen-1"
    reported: ClassVar[tuple[str, ...]] = ()
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = None  # Each costs a whole run; those of wen-3 show what a target does.
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("four pictures made at once are divided by their common mean mask", {"as_published": True, "images": 4}, "25"),
    )
    published_target: ClassVar[float] = 1.0

    def masks(self, substrate: Substrate, batch: Batch, cost: Cost) -> Tensor:
        return bright_masks(substrate, batch, cost).to(substrate.device)

    def threshold(self, substrate: Substrate, batch: Batch) -> float:
        measured = ("first magnitude, bright ending", masked_magnitudes)
        return target_of(self, substrate, batch, self.published_target, *measured, seeds=(0,), count=CALIBRATED)
