"""Anisotropy: the magnitude at the first time and an angle near the last, both on pure noise (Asthana et al. 2026)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from memlib.experiment.group import Group
from memlib.models.protocol import Substrate
from memlib.probes.detectors.base import Detector, Scores, register
from memlib.probes.detectors.runs import need_signal, noise_pair, per_sample
from memlib.sampling.batches import Batch
from memlib.sampling.first_step import norm_scale
from memlib.sampling.loop import Cost

COSINE_WEIGHT = {"v_prediction": 0.1}  # Stable Diffusion 2's; 2.0, Stable Diffusion 1's, for all others.


@register
@dataclass(frozen=True)
class Anisotropy(Detector):
    """``norm_weight * ||d|| + cosine_weight * cos``, per prompt and seed, from two pairs of U-Net rows and no run.

    d is the conditional minus the unconditional noise, the norm is taken at the first time of a DDIM schedule; cos is the mean over
    pixels of the cosine, across channels, between unconditional noise and d at the third time from the end (41 of 50 steps). Both are
    taken on the same pure noise. The weights are the published ones, the cosine's by what the model predicts (None).

    They belong to latents of 4 x 64 x 64: here the norm is scaled by sqrt(16384 / elements), which is 1 there; `as_published`
    leaves it as it is. Source: Asthana et al. 2026 (ICLR), program.
    """

    norm_weight: float = 1.0
    cosine_weight: float | None = None
    as_published: bool = False

    name = "anisotropy"
    label = "anisotropy"
    summary = "weighted sum of the magnitude at the first time and of the cosine between unconditional noise and difference near the last"
    source = "Asthana et al. 2026"
    published = "weights belong to Stable Diffusion's latents; the norm is scaled to their size (as_published: not scaled)"

    def measure(self, group: Group) -> Scores:
        x = group.experiment
        schedule = x.substrate.scheduler("ddim", x.steps)
        need_signal(x.substrate, schedule, schedule.timesteps[0])
        found = per_sample(group, {"measure": self.name}, _norm_and_cosine)
        weight = COSINE_WEIGHT.get(x.substrate.prediction_type, 2.0) if self.cosine_weight is None else self.cosine_weight
        scale = 1.0 if self.as_published else 1 / norm_scale(x.substrate)
        values = self.norm_weight * scale * found["norm"] + weight * found["cosine"]
        return Scores.priced(values, found["evaluations"])


def mean_cosine(uncond: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
    """Return [B]: the cosine across the channels of [B, C, h, w], mean over pixels."""
    return torch.nn.functional.cosine_similarity(uncond, difference, dim=1).mean((1, 2))


def _norm_and_cosine(substrate: Substrate, batch: Batch, cost: Cost) -> dict[str, np.ndarray]:
    schedule = substrate.scheduler("ddim", batch.steps)
    times = schedule.timesteps
    uncond, cond = noise_pair(substrate, batch, batch.latents, times[0], schedule, cost)
    norm = (cond - uncond).flatten(1).norm(dim=1)
    uncond, cond = noise_pair(substrate, batch, batch.latents, times[-min(3, len(times))], schedule, cost)
    return {"norm": norm.cpu().numpy(), "cosine": mean_cosine(uncond, cond - uncond).cpu().numpy()}
