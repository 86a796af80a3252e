"""Entropy of cross-attention (Ren et al. 2024), in the form of the public program."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge

from memlib.base.errors import InputError
from memlib.experiment.group import Group
from memlib.models.protocol import Substrate
from memlib.probes.detectors.base import Detector, Scores, register
from memlib.probes.detectors.runs import per_sample, whole_run
from memlib.sampling.attention.record import cross_attention_layers, entropy, record
from memlib.sampling.batches import Batch
from memlib.sampling.loop import Cost

LAST_SHARE = 0.2  # The last ten of 50 steps.


@register
@dataclass(frozen=True)
class AttentionEntropy(Detector):
    """Entropy over the last steps, plus how much its end part has grown since the first step (mode D), per prompt and seed.

    H is the entropy of attention over the 77 positions, the mean over pixels, heads and layers taken first; H_end the part of its
    sum that comes from ``<eot>`` and padding, not renormalised. Score: mean of H over the last fifth of the steps (40 to 49 of 50) plus
    the mean of H_end over the same steps minus H_end at the first. The direction is the program's: larger means memorized.
    `absolute` takes the growth without its sign, as the paper is remembered to do.
    """

    absolute: bool = False

    name = "attention-entropy"
    label = "attention entropy, whole run"
    summary = "entropy of cross-attention over the last fifth of the steps, plus the growth of its <eot> and padding part since the first"
    source = "Ren et al. 2024 (attn), program"
    needs = "whole run with attention"
    published = "clip says that memorized prompts have lower entropy; the paper may take an absolute value (absolute)"

    def measure(self, group: Group) -> Scores:
        run = whole_run(group)
        values = combined_entropy(run["entropy"], run["entropy_end"], self.absolute)
        return Scores.priced(values, run["evaluations"][..., -1])


def combined_entropy(whole: np.ndarray, end: np.ndarray, absolute: bool = False) -> np.ndarray:
    """Return the score [...] of mode D from H and H_end [..., T]; see `AttentionEntropy`."""
    last = max(1, round(LAST_SHARE * whole.shape[-1]))
    growth = end[..., -last:].mean(-1) - end[..., 0]
    return whole[..., -last:].mean(-1) + (np.abs(growth) if absolute else growth)


@register
@dataclass(frozen=True)
class FirstAttentionEntropy(Detector):
    """Entropy at the first step in one layer (mode E), per prompt and seed; only the conditional row is computed.

    `layer` counts cross-attention layers in the order they run; -1 is the last one of the second block of the down path that has
    cross-attention, which in Stable Diffusion 1 is number 3, the one that the program takes. Source: Ren et al. 2024.
    """

    layer: Annotated[int, Ge(-1)] = -1

    name = "attention-entropy-first"
    label = "attention entropy, first step"
    summary = "entropy of cross-attention at the first step in one layer of the down path"
    source = "Ren et al. 2024 (attn), program"
    published = AttentionEntropy.published.split(";")[0]

    def measure(self, group: Group) -> Scores:
        chosen = chosen_layer(list(cross_attention_layers(group.experiment.substrate)), self.layer)
        found = per_sample(group, {"measure": "first attention", "layer": chosen}, partial(_first_entropy, layer=chosen))
        return Scores.priced(found["entropy"], found["evaluations"])


def chosen_layer(layers: list[str], layer: int) -> str:
    """Return the name of cross-attention layer number `layer`, or for -1 the last of the second such block of the down path.

    Raises InputError for a number that the model does not have; a model with one such block has its layer taken for -1.
    """
    if layer >= len(layers):
        raise InputError(f"There is no cross-attention layer {layer!r}: this model has 0 to {len(layers) - 1}, and -1 stands for the published one.")
    if layer >= 0:
        return layers[layer]
    blocks = sorted({int(name.split(".")[1]) for name in layers if name.startswith("down_blocks.")})
    if not blocks:
        return layers[0]
    return [name for name in layers if name.startswith(f"down_blocks.{blocks[:2][-1]}.")][-1]


@torch.no_grad()
def _first_entropy(substrate: Substrate, batch: Batch, cost: Cost, *, layer: str) -> dict[str, np.ndarray]:
    solver = substrate.scheduler(batch.scheduler, batch.steps)
    latents = batch.latents.to(substrate.device, torch.float32) * float(solver.init_noise_sigma)
    t = solver.timesteps[0]
    model_input = solver.scale_model_input(latents, t).to(substrate.dtype)
    with record(substrate, layers=[layer], guided=False, steps=1) as recording:
        substrate.unet(model_input, t, encoder_hidden_states=batch.embedding.states.to(substrate.device, substrate.dtype), return_dict=False)
    cost.evaluations += len(batch.rows)
    return {"entropy": entropy(recording.attention)[0]}
