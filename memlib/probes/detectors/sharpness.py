"""Sharpness of the conditional density, by one Jacobian-vector product (Jeon et al. 2025)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from memlib.base.declared import Whole
from memlib.experiment.group import Group
from memlib.models.protocol import Substrate
from memlib.probes.detectors.base import Detector, Scores, register
from memlib.probes.detectors.runs import first_steps, per_sample
from memlib.sampling.batches import Batch
from memlib.sampling.loop import Cost, trajectory

AT_ONCE = 16  # Samples in one product: it holds values and derivatives in float32.
JVP_EVALUATIONS = 2  # A row that carries a derivative along counts as two rows: one for the value, one for the derivative.


@register
@dataclass(frozen=True)
class Sharpness(Detector):
    """Norm of the gap's Jacobian times the gap, mean over the first `steps` steps of a guided DDIM run (0: all), per prompt and seed.

    With scores s = -eps / sqrt(1 - abar_t), gap v = s_cond - s_uncond: ``||(ds_cond/dx - ds_uncond/dx) v||``, one forward-mode
    product in float32 with the plain attention processor, since fused kernels have no forward derivative. A velocity model's outputs
    are converted, which for the gap is a factor -sqrt(abar / (1 - abar)).

    `as_published` takes the program's formula for velocity models, which is that for a prediction of the clean sample: its score is
    larger by 1 / (1 - abar). It changes nothing for models that predict noise, nor the ranking at a single step.
    `squared` squares the norm at each step, as the paper is remembered to do.

    Each step costs two rows for the gap and two rows with derivatives, six U-Net evaluations in all. Source: Jeon et al. 2025.
    """

    steps: Whole = 1
    squared: bool = False
    as_published: bool = False

    name = "sharpness"
    label = "sharpness, first step"
    summary = "norm of the Jacobian of the score gap times the gap, at the first step"
    source = "Jeon et al. 2025"
    published = "norm in the program, squared norm in the paper (squared); wrong factor for velocity models (as_published)"

    def measure(self, group: Group) -> Scores:
        steps = first_steps(group, self.steps, "ddim")
        measure = {"measure": self.name, "first steps": steps, "as published": self.as_published}
        run = per_sample(group, measure, partial(_sharpness, steps=steps, as_published=self.as_published))
        values = run["norm"] ** 2 if self.squared else run["norm"]
        return Scores.priced(values.mean(-1), run["evaluations"])


def gap_factor(kind: str, abar: float, as_published: bool = False) -> float:
    """Return what turns a difference of raw outputs into a difference of scores, for a model that predicts `kind`."""
    signal, noise = abar**0.5, (1 - abar) ** 0.5
    if kind == "v_prediction":
        return signal / noise**2 if as_published else -signal / noise
    return signal / noise**2 if kind == "sample" else -1 / noise


def product_norm(unet: Any, text: Tensor, latents: Tensor, t: Any, difference: Tensor) -> Tensor:
    """Return ``||J d||`` [B] for `difference` d [B, C, h, w] and J the Jacobian at `latents` of the difference of raw outputs.

    `text` [2B, 77, d] holds the unconditional and then the conditional states of the B samples, which do not touch each other.
    The U-Net must run in float32 and with attention that has a forward derivative.
    """

    def gap(x: Tensor) -> Tensor:
        uncond, cond = unet(torch.cat([x, x]), t, encoder_hidden_states=text, return_dict=False)[0].chunk(2)
        return cond - uncond

    product = torch.func.jvp(gap, (latents,), (difference,))[1]
    return product.flatten(1).norm(dim=1)


def differentiable(substrate: Substrate) -> Any:
    """Return a copy of `substrate` with a U-Net of its own that runs in float32 with plain attention; the substrate's is left as it is."""
    exact: Any = copy.copy(substrate)
    exact.dtype, exact.pipe = torch.float32, copy.copy(exact.pipe)
    exact.pipe.unet = copy.deepcopy(substrate.unet)
    exact.unet.set_attn_processor(AttnProcessor())
    torch.nn.Module.to(exact.unet, torch.float32)  # diffusers' own `to` warns of a change of precision
    return exact


@torch.no_grad()
def _sharpness(substrate: Substrate, batch: Batch, cost: Cost, *, steps: int, as_published: bool) -> dict[str, np.ndarray]:
    parts = []
    exact = differentiable(substrate)
    schedule = exact.scheduler("ddim", batch.steps)
    for start in range(0, len(batch.rows), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        cond, latents = batch.embedding.states[part], batch.latents[part]
        text = torch.cat([batch.uncond.expand(len(cond), -1, -1), cond]).to(exact.device, torch.float32)
        norms = []
        for step in islice(trajectory(exact, cond, batch.uncond, latents, batch.steps, batch.rule, "ddim", cost=cost), steps):
            factor = gap_factor(schedule.config.prediction_type, float(schedule.alphas_cumprod[int(step.t)]), as_published)
            difference = step.noise_cond - step.noise_uncond
            # The factor enters twice: the Jacobian is that of the gap, and so is the direction.
            norms.append(factor**2 * product_norm(exact.unet, text, step.latents, step.t, difference).cpu())
            cost.evaluations += 2 * JVP_EVALUATIONS * len(cond)
        parts.append(torch.stack(norms, 1))
    return {"norm": torch.cat(parts).numpy()}
