"""The U-Net to be fine-tuned as a part that `memlib.training.minisd.trainer.Trainer` trains.

All that is random in a step follows from the recipe's seed and the step's number (`FinetunePart.draw`), so that a run that was killed
and resumed makes the same weights as one that was not.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from memlib.base.errors import InputError
from memlib.base.pictures import squared
from memlib.metrics.pictures import centred
from memlib.models.substrate import Substrate as Loaded
from memlib.prompts.embedding import encode, tokenize
from memlib.training.finetune.examples import TrainingSet
from memlib.training.finetune.recipes import Recipe
from memlib.training.minisd.trainer import autocast, generator

ENCODED = 64  # pictures and captions encoded at once
READERS = 8  # threads that read pictures


@dataclass(frozen=True)
class Draw:
    """What step k draws for its B examples: indices, mirrored or not [B], crop places [B, 2] in 0..1, captions dropped [B],
    posterior noise and diffusion noise [B, C, h, w], and times [B]; all on the CPU."""

    indices: list[int]
    mirrored: Tensor
    places: Tensor
    dropped: Tensor
    posterior: Tensor
    noise: Tensor
    times: Tensor


class FinetunePart:
    """Denoising of pictures under their captions; the target is what the base predicts (noise or velocity).

    `substrate` is the base, loaded in float32; its U-Net is trained in place, with `recompute` in less memory and more time. The text
    states of examples that come more than once are computed once, and without mirroring, random crops and posterior noise their
    latents too. Raises InputError for a
    resolution that the autoencoder cannot halve, and for weights by 1/SNR on a model that does not predict noise.
    """

    def __init__(self, substrate: Loaded, examples: TrainingSet, recipe: Recipe, half: bool = False, recompute: bool = False):
        self.substrate, self.examples, self.recipe, self.half = substrate, examples, recipe, half
        self.device = substrate.device
        self.module = substrate.unet.train().requires_grad_(True)
        if self.device.type == "cpu":  # the fused kernel's backward pass is slow at few positions
            self.module.set_attn_processor(AttnProcessor())
        if recompute:
            self.module.enable_gradient_checkpointing()
        self.scheduler = DDPMScheduler.from_config(substrate.pipe.scheduler.config)
        self.alphas = self.scheduler.alphas_cumprod
        self.kind = self.scheduler.config.prediction_type
        if self.kind not in ("epsilon", "v_prediction"):
            raise InputError(f"{substrate.name} predicts {self.kind!r}: only models that predict epsilon or v_prediction can be fine-tuned.")
        if recipe.weight_limit is not None and self.kind != "epsilon":
            raise InputError(f"{recipe.name} weights the loss by 1/SNR, and {substrate.name} predicts {self.kind}: leave weight_limit out.")
        self.side = recipe.resolution or substrate.resolution
        factor = 2 ** (len(substrate.vae.config.block_out_channels) - 1)
        depth = factor * 2 ** (len(substrate.unet.config.block_out_channels) - 1)
        if self.side < depth or self.side % depth:
            raise InputError(f"A resolution of {self.side} pixels does not fit {substrate.name}: use a multiple of {depth}.")
        self.shape = (substrate.unet.config.in_channels, self.side // factor, self.side // factor)
        repeated = np.flatnonzero(examples.exposures(recipe.steps * recipe.batch) > 1)
        fixed = not (recipe.flip or recipe.crop == "random" or recipe.posterior)
        self._states = self._encode_captions(sorted({"", *(examples.examples[i].caption for i in repeated)}))
        self._latents = self._encode_pictures(repeated.tolist()) if fixed else {}
        self._readers, self._starter = ThreadPoolExecutor(READERS), ThreadPoolExecutor(1)
        self._ahead: tuple[int, Future] | None = None

    def draw(self, step: int) -> Draw:
        """Return everything random in a step."""
        r, rng = self.recipe, generator(self.recipe.seed, step)
        return Draw(
            indices=self.examples.indices(r.seed, step * r.batch, r.batch),
            mirrored=(torch.rand(r.batch, generator=rng) < 0.5) & r.flip,
            places=torch.rand(r.batch, 2, generator=rng) if r.crop == "random" else torch.full((r.batch, 2), 0.5),
            dropped=torch.rand(r.batch, generator=rng) < r.caption_dropout,
            posterior=torch.randn((r.batch, *self.shape), generator=rng) * r.posterior,
            noise=torch.randn((r.batch, *self.shape), generator=rng),
            times=torch.randint(0, len(self.alphas), (r.batch,), generator=rng),
        )

    def picture(self, index: int, mirrored: bool = False, place: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
        """Return an example's picture as it is trained on, uint8 [side, side, 3]."""
        found = squared(self.examples.read(self.examples.examples[index]), self.side, place)
        return found[:, ::-1] if mirrored else found

    def _read(self, draw: Draw) -> list[np.ndarray]:
        rows = zip(draw.indices, draw.mirrored.tolist(), draw.places.tolist(), strict=True)
        wanted = [row for row in rows if row[0] not in self._latents]
        return list(self._readers.map(lambda row: self.picture(row[0], row[1], tuple(row[2])), wanted))

    def _pictures(self, step: int, draw: Draw) -> list[np.ndarray]:
        """The pictures of a step whose latents are not at hand; the next step's are read while this one is computed."""
        if self._ahead is not None and self._ahead[0] == step:
            pictures = self._ahead[1].result()
        else:
            pictures = self._read(draw)
        if step + 1 < self.recipe.steps:
            self._ahead = (step + 1, self._starter.submit(self._read, self.draw(step + 1)))
        return pictures

    @torch.no_grad()
    def _encode(self, pictures: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [N, C, h, w] of the scaled latents' distribution, float32 on the CPU."""
        means, widths = [], []
        for start in range(0, len(pictures), ENCODED):
            x = centred(np.stack(pictures[start : start + ENCODED])).to(self.device)
            with autocast(self.device, self.half):
                found = self.substrate.vae.encode(x).latent_dist
            means.append(found.mean.float().cpu())
            widths.append(found.std.float().cpu())
        scale = self.substrate.vae.config.scaling_factor
        return torch.cat(means) * scale, torch.cat(widths) * scale

    def _encode_pictures(self, indices: list[int]) -> dict[int, Tensor]:
        return dict(zip(indices, self._encode([self.picture(i) for i in indices])[0], strict=True)) if indices else {}

    @torch.no_grad()
    def _encode_captions(self, captions: list[str]) -> dict[str, Tensor]:
        with autocast(self.device, self.half):
            states = encode(self.substrate, tokenize(self.substrate.tokenizer, captions), ENCODED).states
        return dict(zip(captions, states, strict=True))

    def latents(self, step: int, draw: Draw) -> Tensor:
        """Return the scaled clean latents [B, C, h, w] of a step, float32 on the CPU."""
        new = [row for row, index in enumerate(draw.indices) if index not in self._latents]
        if not new:
            return torch.stack([self._latents[index] for index in draw.indices])
        means, widths = self._encode(self._pictures(step, draw))
        encoded = dict(zip(new, means + widths * draw.posterior[new], strict=True))
        return torch.stack([encoded[row] if row in encoded else self._latents[index] for row, index in enumerate(draw.indices)])

    def states(self, draw: Draw) -> Tensor:
        """Return the text states [B, 77, d] of a step, the empty caption's where it is dropped, float32 on the CPU."""
        examples = self.examples.examples
        captions = ["" if dropped else examples[i].caption for i, dropped in zip(draw.indices, draw.dropped.tolist(), strict=True)]
        new = sorted({caption for caption in captions if caption not in self._states})
        known = self._states | self._encode_captions(new) if new else self._states
        return torch.stack([known[caption] for caption in captions])

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a step and, where it is weighted, the mean square beside it."""
        draw = self.draw(step)
        return self.denoising(self.latents(step, draw), self.states(draw), draw.noise, draw.times)

    def denoising(self, clean: Tensor, states: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the same for clean latents [B, C, h, w] under states [B, 77, d], noise and times [B], all on the CPU."""
        a = self.alphas[times].view(-1, 1, 1, 1)
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        target = noise if self.kind == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * clean
        with autocast(self.device, self.half):
            predicted = self.module(noisy.to(self.device), times.to(self.device), states.to(self.device)).sample
        error = (predicted.float() - target.to(self.device)).pow(2).mean((1, 2, 3))
        if self.recipe.weight_limit is None:
            return error.mean(), {}
        # As MiniSD was trained: an error in the noise counts 1/sqrt(SNR) times as much in the picture.
        weight = ((1 - a) / a).flatten().clamp(1.0, self.recipe.weight_limit).to(self.device)
        return (weight * error).mean(), {"unweighted": float(error.detach().mean())}
