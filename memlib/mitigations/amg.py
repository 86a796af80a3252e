"""Anti-memorization guidance, Chen et al. 2024 (CVPR): guidance away from the nearest picture of a reference set.

At each step the predicted clean picture is decoded and compared with the reference set by the copy descriptor. Constants are similarities of
SSCD; for another descriptor they are multiplied by one factor (see `AntiMemorizationGuidance`). Everything is per sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from memlib.base.declared import Positive, Share
from memlib.base.errors import InputError, NotMeasured
from memlib.metrics.reference import Reference, copy_metric, fingerprint, no_reference, ordinary_similarity, reference_for
from memlib.mitigations.base import Difference, Mitigation, register
from memlib.models.protocol import Substrate
from memlib.prompts.embedding import encode_prompts
from memlib.sampling.batches import Batch
from memlib.sampling.first_step import gradient_scale, norm_scale
from memlib.sampling.guidance import StepInfo
from memlib.sampling.loop import Cost, to_epsilon

FLAT, LATE, FALL = 0.3, 0.4, 0.005  # The threshold rises from FLAT at t = 1000 to LATE at t = 0.
DESPECIFY, DEDUPLICATE = 0.5, 0.3  # Similarities at which these two have their full strength.
REPEATS, STEPS_ON = 20, 10
TEMPERATURE = 170.0
UNGUIDED = 21  # Pictures of a fresh folder that the program leaves alone.
DECODE_PIXELS = 2**18


@register
@dataclass(frozen=True)
class AntiMemorizationGuidance(Mitigation):
    """Three guidances away from the nearest reference picture, whose similarity to the predicted clean picture is sim:

    - despecification, wherever sim > 0: the scale s is lowered by g2 = (s - 1) clip(sim / 0.5, 0, 1);
    - caption de-duplication, once sim exceeds lambda(t) = 0.3 + 0.1 exp(-0.005 t) and the nearest picture's caption comes more than 20
      times: g3 (eps_uncond - eps_caption) is added for ten steps, g3 = (s - 1 - g2) clip(sim / 0.3, 0, 1);
    - dissimilarity, where sim, taken anew with the two before, exceeds lambda(t): the noise moves by
      sqrt(1 - abar) `strength` dsim/dx (sim - 0.3) exp((1000 - t) / 170). The gradient goes through decoder and descriptor,
      and takes the noise as given, so that it does not go through the U-Net.

    The similarities are multiplied by a factor for other descriptors than SSCD: `level` / 0.4, where `level` stands in place of
    lambda(0); None takes the `quantile` of the similarity of real pictures of prompts that are not memorized to the set. `strength` belongs
    to latents of 4 x 64 x 64 and is scaled by elements / 16384.

    `reference` is a folder of pictures, or one with `descriptors.npy` [R, D] (see `memlib.metrics.reference`); empty on MiniSD stands for all that
    the model was trained on repeatedly, which makes this the row of an oracle there. Elsewhere a folder must be given.

    `as_published` leaves the first 21 pictures of a prompt alone (seeds 0 to 20: the program counts what is in a fresh
    folder), gives the descriptor the predicted picture in [-1, 1] and the references in [0, 1], both without its own
    pre-processing (224 pixels for SSCD), and scales nothing. Source: Chen et al. 2024, Section 4; program.
    """

    reference: str = ""
    strength: float = 100.0
    level: Positive | None = None
    quantile: Share = 0.95
    as_published: bool = False

    name: ClassVar[str] = "amg"
    label: ClassVar[str] = "guided away from training"
    summary: ClassVar[str] = "Each step is guided away from the nearest picture of a known reference set."
    source: ClassVar[str] = "Chen et al., 2024"
    family: ClassVar[str] = "guidance"
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("the first 21 pictures of a folder are not guided; pictures reach the descriptor unprepared", {"as_published": True}),
    )
    cost: ClassVar[str] = "3 decodes and descriptors a step (one of two with a gradient), and a U-Net row where a caption is avoided"
    sampled: ClassVar[bool] = True

    @property
    def key(self) -> dict[str, Any]:
        # What the folder holds, and not where it lies.
        return {**super().key, "reference": fingerprint(self.reference)}

    def missing(self, substrate: Substrate) -> str:
        try:
            copy_metric(substrate)
        except NotMeasured as error:
            return f"amg needs the copy descriptor: {error}"
        return no_reference(substrate, self.reference)

    @contextmanager
    def around(self, substrate: Substrate, batch: Batch, cost: Cost) -> Iterator[Batch]:
        if lacking := self.missing(substrate):
            raise InputError(lacking)
        metric = copy_metric(substrate)
        reference = reference_for(substrate, metric, self.reference, self.as_published)
        yield replace(batch, rule=Steered(self, substrate, batch, metric, reference, cost))

    def factor(self, substrate: Substrate, metric: Any, reference: Reference) -> float:
        """By what similarities of SSCD are multiplied for this descriptor."""
        if self.level is not None:
            return self.level / LATE
        if self.as_published or metric.fingerprint.startswith("sscd"):
            return 1.0
        return ordinary_similarity(substrate, metric, reference, self.quantile) / LATE


def limit(t: float) -> float:
    """The similarity from which two of the guidances act, lambda(t), for SSCD."""
    return FLAT - (FLAT - LATE) * math.exp(-FALL * t)


class Steered:
    """The rule of a batch under anti-memorization guidance, around the rule that the batch had."""

    name = "amg"

    def __init__(self, amg: AntiMemorizationGuidance, substrate: Substrate, batch: Batch, metric: Any, reference: Reference, cost: Cost):
        self.amg, self.substrate, self.batch, self.metric, self.reference, self.cost = amg, substrate, batch, metric, reference, cost
        self.factor = amg.factor(substrate, metric, reference)
        self.strength = amg.strength * (1.0 if amg.as_published else norm_scale(substrate) ** 2)
        self.schedule = substrate.scheduler("ddim", batch.steps)

    @property
    def params(self) -> dict[str, Any]:
        return self.amg.params

    def start(self, batch: int) -> Steering:
        return Steering(self, batch)

    def abar(self, t: float) -> float:
        return float(self.schedule.alphas_cumprod[round(t)])

    def preserving(self, latents: Tensor, t: float) -> Tensor:
        """Latents [B, C, h, w] in the scaling of DDIM, which is also that of the U-Net's input."""
        return latents * self.abar(t) ** 0.5 if self.batch.scheduler == "euler" else latents

    def described(self, latents: Tensor, epsilon: Tensor, t: float) -> Tensor:
        """Descriptors [B, D] of the clean pictures that these latents and this noise predict."""
        abar = self.abar(t)
        clean = (latents - (1 - abar) ** 0.5 * epsilon) / abar**0.5
        vae = self.substrate.vae
        scaled = clean / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        pictures = vae.decode(scaled.to(self.substrate.dtype), return_dict=False)[0].float()
        if self.amg.as_published:
            pictures = self.reference.published_size(pictures)
        return self.metric.describe(pictures, prepared=self.amg.as_published)

    def nearest(self, latents: Tensor, epsilon: Tensor, t: float, bound: float | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return similarity [B] to the nearest reference, which one [B], and, where it exceeds `bound`, the gradient by the latents."""
        size = max(1, DECODE_PIXELS // self.substrate.resolution**2)
        scale = gradient_scale(self.substrate)
        values, places, gradients = [], [], []
        for x, e in zip(latents.split(size), epsilon.split(size), strict=True):
            with torch.set_grad_enabled(bound is not None):
                x = x.detach().requires_grad_(bound is not None)
                found, place = (self.described(x, e, t) @ self.reference.vectors.T.to(x.device)).max(1)
                self.cost.decodes += len(x)
                back = torch.zeros_like(x)
                if bound is not None and (over := found.detach() > bound).any():
                    (back,) = torch.autograd.grad(scale * found[over].sum(), x)
                    self.cost.decodes += int(over.sum())
            values.append(found.detach())
            places.append(place)
            gradients.append(back / scale)
        return torch.cat(values), torch.cat(places), None if bound is None else torch.cat(gradients)

    def caption_noise(self, latents: Tensor, t: float, captions: list[str]) -> Tensor:
        """Noise [b, C, h, w] predicted under these captions; one U-Net row each."""
        states = encode_prompts(self.substrate, captions).states.to(self.substrate.device, self.substrate.dtype)
        output = self.substrate.unet(latents.to(self.substrate.dtype), round(t), encoder_hidden_states=states, return_dict=False)[0]
        self.cost.evaluations += len(captions)
        return to_epsilon(output.float(), latents, round(t), self.schedule)


class Steering:
    """The scales of one trajectory, step by step, and the noise that is added to the guided noise."""

    def __init__(self, rule: Steered, batch: int):
        self.rule = rule
        self._inner = rule.batch.rule.start(batch)
        self._caption: list[str | None] = [None] * batch
        self._left = [0] * batch
        self._shift = torch.zeros(0)

    def __call__(self, info: StepInfo) -> Tensor:
        rule, f = self.rule, self.rule.factor
        scales = self._inner(info).to(info.latents).clone()
        self._shift = torch.zeros_like(info.latents)
        bound = f * limit(info.t)
        difference = info.epsilon_cond - info.epsilon_uncond
        latents = rule.preserving(info.latents, info.t)
        guided = [not rule.amg.as_published or seed >= UNGUIDED for seed in rule.batch.seeds]
        rows = [row for row, on in enumerate(guided) if on]
        if not rows:
            return scales
        plain = info.epsilon_uncond + scales.view(-1, 1, 1, 1) * difference
        similarity, place, _ = rule.nearest(latents[rows], plain[rows], info.t)
        self._remember(rows, place)
        on = similarity > 0
        rows, similarity = [row for row, yes in zip(rows, on.tolist(), strict=True) if yes], similarity[on]
        if not rows:
            return scales

        room = (scales[rows] - 1).clamp_min(0)
        lowered = room * (similarity / (DESPECIFY * f)).clamp(0, 1)
        scales[rows] = scales[rows] - lowered
        self._avoid_captions(info, latents, rows, similarity, (room - lowered) * (similarity / (DEDUPLICATE * f)).clamp(0, 1), bound)

        steered = info.epsilon_uncond + scales.view(-1, 1, 1, 1) * difference + self._shift
        again, place, gradient = rule.nearest(latents[rows], steered[rows], info.t, bound)
        self._remember(rows, place)
        push = rule.strength * (1 - rule.abar(info.t)) ** 0.5 * math.exp((1000 - info.t) / TEMPERATURE)
        # The gradient is zero where the similarity is within bounds.
        self._shift[rows] += push * (again / f - FLAT).view(-1, 1, 1, 1) * gradient
        return scales

    def shift(self, info: StepInfo) -> Tensor:
        """The noise [B, C, h, w] to be added at the step for which the scales were asked last."""
        return self._shift

    def _remember(self, rows: list[int], places: Tensor) -> None:
        for row, place in zip(rows, places.tolist(), strict=True):
            if self.rule.reference.copies[place] > REPEATS:
                self._caption[row] = self.rule.reference.captions[place]

    def _avoid_captions(self, info: StepInfo, latents: Tensor, rows: list[int], similarity: Tensor, weights: Tensor, bound: float) -> None:
        acting = []
        for position, (row, near) in enumerate(zip(rows, (similarity > bound).tolist(), strict=True)):
            if near and self._caption[row] is not None:
                self._left[row] = STEPS_ON
            if self._left[row]:
                self._left[row] -= 1
                acting.append(position)
        if not acting:
            return
        own = [rows[position] for position in acting]
        avoided = self.rule.caption_noise(latents[own], info.t, [self._caption[row] or "" for row in own])
        self._shift[own] += weights[acting].view(-1, 1, 1, 1) * (info.epsilon_uncond[own] - avoided)
