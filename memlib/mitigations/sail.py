"""SAIL, Jeon et al. 2025 (ICML): initial noise that lies where the conditional density is not sharp.

The loss of a noise x is ||D(x + d)|| + alpha ||x||, with the gap D = eps_cond - eps_uncond at the first time and d = D / ||D||, both of each
sample by itself: the authors' program, which calls it a proxy of the paper's difference of gaps, ||D(x + d) - D(x)||
(`objective` "difference", a finite difference of the Jacobian along d). Gradients go through d as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from memlib.base.declared import Count, Positive, Share
from memlib.mitigations.base import Difference, Mitigation, register
from memlib.mitigations.sail_search import PUBLISHED_PICTURES, RISE, Owner, Search, sharpness_loss
from memlib.models.protocol import Substrate
from memlib.sampling.batches import Batch
from memlib.sampling.calibration import has_sd1_latents, is_default, reference_quantile
from memlib.sampling.first_step import FirstStep, norm_scale
from memlib.sampling.loop import Cost

PUBLISHED_THRESHOLD = 8.2
SD2_LATENTS = (4, 96, 96)  # Of its model of velocity, for which the program has settings as well.


@register
@dataclass(frozen=True)
class Sail(Mitigation):
    """Optimize the initial noise with Adam for at most `steps` steps a round, and take it once its loss is at most the threshold.

    Each picture starts from the noise of its own seed and ends by itself; with `candidates` above 1, further noises of the same seed are
    optimized beside it and the first to be accepted is taken. A round that fails is followed by one from other noise, and
    after every third the threshold rises. After `rounds` rounds the noise with the lowest loss is taken; the program goes on for ever.

    `threshold` None is the published 8.2 for Stable Diffusion 1 and 2.1, and elsewhere the `quantile` of the loss over prompts that are not
    memorized, so that so many of them are left alone; `alpha` None is 0.05, or 0.01 for models that predict velocity. The rise
    of 0.1 is scaled by sqrt(elements / 16384).

    `as_published` does what the program does: eight candidates for four pictures of a prompt (here: seeds 4k to 4k + 3); an accepted
    noise is a view, which later steps go on moving until the round ends; d is computed at the first noise of the round
    throughout; three rounds in turn repeat the same noise; and velocity models are read with the formula for a prediction of the
    clean sample, which turns d round. Source: Jeon et al. 2025, Algorithm 2; program.
    """

    threshold: float | None = None
    quantile: Share = 0.9
    alpha: float | None = None
    lr: Positive = 0.05
    steps: Count = 10
    candidates: Count = 1
    rounds: Count = 12
    objective: Literal["gap", "difference"] = "gap"
    as_published: bool = False

    name: ClassVar[str] = "sail"
    label: ClassVar[str] = "noise chosen by sharpness"
    summary: ClassVar[str] = "The initial noise is optimized until the density around it is not sharp for this prompt."
    source: ClassVar[str] = "Jeon et al., 2025, Algorithm 2"
    family: ClassVar[str] = "noise"
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = ("quantile", (0.99, 0.9))
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("the difference of two gaps, as in the paper, in place of one gap", {"objective": "difference"}, "13"),
        Difference("accepted noise is moved on, the direction is not computed anew, and failed rounds repeat their noise", {"as_published": True}, "21"),
    )
    cost: ClassVar[str] = "8 U-Net rows a step (two pairs, forward and backward), until the threshold is reached"
    sampled: ClassVar[bool] = True
    first_step: ClassVar[bool] = True

    def full_run(self) -> Mitigation:
        return replace(self, threshold=-1.0, rounds=1)

    @contextmanager
    def around(self, substrate: Substrate, batch: Batch, cost: Cost) -> Iterator[Batch]:
        rise = RISE * (1.0 if self.as_published else norm_scale(substrate))
        search = Search(
            FirstStep(substrate, batch, cost), substrate.latent_shape, self.threshold_on(substrate, batch), rise,
            alpha=self.alpha_on(substrate), objective=self.objective, lr=self.lr, steps=self.steps, candidates=self.candidates,
            rounds=self.rounds, as_published=self.as_published,
        )  # fmt: skip
        if self.as_published:
            groups = [(row, seed // PUBLISHED_PICTURES) for row, seed in zip(batch.rows, batch.seeds, strict=True)]
            chosen = search.run({group: Owner(groups.index(group), PUBLISHED_PICTURES, group[1]) for group in dict.fromkeys(groups)})
            picked = [chosen[group][seed % PUBLISHED_PICTURES] for group, seed in zip(groups, batch.seeds, strict=True)]
        else:
            picked = [own for [own] in search.run({place: Owner(place, 1, seed, batch.latents[place]) for place, seed in enumerate(batch.seeds)}).values()]
        yield replace(batch, latents=torch.stack(picked).cpu())

    def alpha_on(self, substrate: Substrate) -> float:
        """The weight of the noise's norm for this model."""
        if self.alpha is not None:
            return self.alpha
        return 0.01 if substrate.prediction_type == "v_prediction" else 0.05

    def threshold_on(self, substrate: Substrate, batch: Batch) -> float:
        """The first round's threshold for this model."""
        if self.threshold is not None:
            return self.threshold
        second = substrate.prediction_type == "v_prediction" and tuple(substrate.latent_shape) == SD2_LATENTS
        if (has_sd1_latents(substrate) or second) and is_default(self, "quantile"):
            return PUBLISHED_THRESHOLD
        alpha = self.alpha_on(substrate)

        @torch.no_grad()
        def losses(model: Substrate, others: Batch, spent: Cost) -> Tensor:
            noise = others.latents.to(model.device, torch.float32)
            return sharpness_loss(FirstStep(model, others, spent).gap, noise, range(len(noise)), alpha, self.objective)

        name = f"sail {self.objective}, alpha {alpha:g}"
        return reference_quantile(substrate, name, losses, self.quantile, batch.scheduler, batch.steps)
