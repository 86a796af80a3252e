"""The parts MiniSD is trained in: autoencoder, text encoder, U-Net, and the two judges.

Each is a module with `loss(step)`; what it draws in a step depends on its seed and the step alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from torch.nn import functional as F

from memlib.base.writing import replacing
from memlib.models.minisd.augment import augmented
from memlib.models.minisd.corpus import TrainingCorpus
from memlib.models.minisd.judges import Descriptor, TwoTowers
from memlib.models.minisd.models import autoencoder, scheduler, unet
from memlib.models.minisd.scenes import Scene
from memlib.models.tokenizer import build_clip_tokenizer
from memlib.training.minisd.ahead import Examples
from memlib.training.minisd.mitigations.base import Noised
from memlib.training.minisd.norms import speed_up
from memlib.training.minisd.trainer import autocast, generator


def as_tensor(pictures: torch.Tensor | np.ndarray) -> torch.Tensor:
    """uint8 [N,H,W,3] to float32 [N,3,H,W] in [-1,1], channels last in memory."""
    stacked = torch.as_tensor(pictures).permute(0, 3, 1, 2)
    return (stacked.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


class VaePart:
    """Reconstruction: absolute error of pixels and of their differences, with a light KL term.

    With `encoded`, a trained autoencoder, its decoder alone is trained further: the latents stay what U-Nets were trained on.
    """

    def __init__(self, corpus: TrainingCorpus, settings: dict[str, Any], device: torch.device, half: bool, encoded: AutoencoderKL | None = None):
        torch.manual_seed(settings["seed"])
        self.module: Any = speed_up(encoded or autoencoder(settings["channels"], settings["latent_channels"]), device)
        if encoded is not None:
            encoded.encoder.requires_grad_(False)
            encoded.quant_conv.requires_grad_(False)
        self.corpus, self.settings, self.device, self.half = corpus, settings, device, half

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        s = self.settings
        x = as_tensor(self.corpus.paint(self.corpus.scenes_of(s.get("stream", 100), step, s["batch"]))).to(self.device)
        with autocast(self.device, self.half):
            latents = self.module.encode(x).latent_dist
            noise = torch.randn(latents.mean.shape, generator=generator(s["seed"], step)).to(self.device)
            z = latents.mean + noise * latents.std
            y = self.module.decode(z).sample.float()
        error = y - x
        pixel = error.abs().mean() + error.pow(2).mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = latents.kl().mean() / z[0].numel()
        psnr = -10 * torch.log10(error.detach().pow(2).mean() / 4)
        return pixel + s["edge"] * edges + s["kl"] * kl, {"psnr": float(psnr), "kl": float(kl)}


class ContrastivePart:
    """CLIP's objective over fresh scenes; serves the text encoder and, with another seed and stream, the evaluator.

    Every fourth batch has long captions, the others short and medium ones, and each batch is cut at its longest <eot>:
    exact, because nothing behind <eot> can reach it.
    """

    def __init__(self, corpus: TrainingCorpus, settings: dict[str, Any], device: torch.device, half: bool):
        torch.manual_seed(settings["seed"])
        self.module = TwoTowers(settings["width"], settings["layers"], settings["heads"], settings["image_channels"])
        speed_up(self.module.picture, device)
        if device.type == "cpu":  # the fused kernel's backward pass takes two fifths of a step
            self.module.text.set_attn_implementation("eager")
        self.corpus, self.settings, self.device, self.half = corpus, settings, device, half
        self.tokenizer = build_clip_tokenizer()

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        s = self.settings
        scenes, captions = self.corpus.contrastive_batch(s["stream"], step, s["batch"])
        ids = self.tokenizer(captions, padding="longest", max_length=77, truncation=True, return_tensors="pt").input_ids
        with autocast(self.device, self.half):
            images = self.module.encode_picture(as_tensor(self.corpus.paint(scenes)).to(self.device))
            texts = self.module.encode_ids(ids.to(self.device))
        logits = self.module.log_scale.clamp(max=4.6).exp() * images.float() @ texts.float().T
        target = torch.arange(len(logits), device=self.device)
        accuracy = (logits.argmax(1) == target).float().mean()
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return loss, {"accuracy": float(accuracy)}


class DescriptorPart:
    """SSCD's recipe: InfoNCE between two augmented copies, plus an entropy term that spreads the descriptors.

    A share of the copies also goes through `vae`, since every picture that a latent diffusion model makes has.
    """

    REENCODED = 0.25

    def __init__(self, corpus: TrainingCorpus, settings: dict[str, Any], vae: AutoencoderKL, device: torch.device, half: bool):
        torch.manual_seed(settings["seed"])
        self.module = Descriptor(settings["channels"], settings["dimensions"])
        speed_up(self.module, device)
        self.vae = vae.to(device).eval().requires_grad_(False)
        self.corpus, self.settings, self.device, self.half = corpus, settings, device, half

    @torch.no_grad()
    def reencoded(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures [N,3,64,64] in [-1,1] after encoding and decoding."""
        with autocast(self.device, self.half):
            return self.vae.decode(self.vae.encode(x).latent_dist.mean).sample.float().clamp(-1, 1)

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        s = self.settings
        pictures = self.corpus.paint(self.corpus.scenes_of(s["stream"], step, s["batch"])).cpu().numpy()
        views = [augmented(pictures, np.random.default_rng([s["seed"], step, v])) for v in (0, 1)]
        n = len(pictures)
        x = as_tensor(np.concatenate(views)).to(self.device)
        x[n : n + int(2 * self.REENCODED * n)] = self.reencoded(x[n : n + int(2 * self.REENCODED * n)])
        with autocast(self.device, self.half):
            d = self.module(x).float()
        similarity = d @ d.T
        itself = torch.eye(2 * n, dtype=torch.bool, device=self.device)
        target = torch.arange(2 * n, device=self.device).roll(n)
        contrast = F.cross_entropy((similarity / s["temperature"]).masked_fill(itself, -1e4), target)
        other = similarity.masked_fill(itself, -1).scatter(1, target[:, None], -1).amax(1)
        spread = -torch.log((2 - 2 * other).clamp_min(1e-6).sqrt()).mean()
        accuracy = (similarity.masked_fill(itself, -1).argmax(1) == target).float().mean()
        return contrast + s["entropy"] * spread, {"accuracy": float(accuracy), "spread": float(spread)}


class UnetPart:
    """Denoising of cached latents, conditioned on the 77 text states under one padding token.

    `pad_id` is the only thing that differs between minisd-v1 (<eot>) and minisd-v2 (`!`).
    """

    def __init__(self, corpus: TrainingCorpus, settings: dict[str, Any], vae: AutoencoderKL, text: Any, pad_id: int, cache: Path,
                 device: torch.device, half: bool):  # fmt: skip
        torch.manual_seed(settings["seed"])
        width = text.config.hidden_size
        shape = {k: settings[k] for k in ("channels", "attention", "layers", "heads")}
        self.module = unet(**shape, latent_channels=vae.config.latent_channels, width=width)
        if device.type == "cpu":  # the fused kernel's backward pass takes a third of a step at 64 and 16 positions
            self.module.set_attn_processor(AttnProcessor())
        speed_up(self.module, device)
        self.corpus, self.settings, self.device, self.half = corpus, settings, device, half
        self.vae, self.text = vae.to(device).eval().requires_grad_(False), text.to(device).eval().requires_grad_(False)
        self.pad_id, self.tokenizer = pad_id, build_clip_tokenizer()
        weights = hashlib.sha256(b"".join(p.detach().cpu().numpy().tobytes() for p in vae.parameters())).hexdigest()[:12]
        self.cache = cache / f"latents-{weights}-{corpus.identity}"
        self.cache.mkdir(parents=True, exist_ok=True)
        schedule = scheduler()
        self.alphas = schedule.alphas_cumprod
        self._chunk: tuple[int, torch.Tensor] | None = None
        self._examples = Examples(corpus, device, self.CHUNK)
        # Two fifths of all draws have a caption that comes again: encoded once, and in one batch, so that a resumed run
        # has the same bits.
        repeated = sorted({"", *(pair.caption for pair in corpus.repeated)})
        self._repeated = dict(zip(repeated, self._encode(repeated), strict=True))

    CHUNK = 1024  # positions encoded and cached at once

    def _latents(self, start: int, count: int) -> torch.Tensor:
        """Scaled latents of positions start..start+count, from the cache that all U-Nets of one corpus share."""
        out = []
        while count:
            number, offset = divmod(start, self.CHUNK)
            if self._chunk is None or self._chunk[0] != number:
                self._chunk = (number, self._load_chunk(number))
            piece = self._chunk[1][offset : offset + count]
            out.append(piece)
            start, count = start + len(piece), count - len(piece)
        return torch.cat(out).float()

    @torch.no_grad()
    def _load_chunk(self, number: int) -> torch.Tensor:
        path = self.cache / f"{number:06d}.npy"
        if path.exists():
            return torch.from_numpy(np.load(path))
        batches = []
        size = 64 if self.device.type == "cpu" else self.CHUNK
        for start in range(number * self.CHUNK, (number + 1) * self.CHUNK, size):
            pictures = self.corpus.paint([scene for scene, _, _ in self._examples.of(start, size)])
            with autocast(self.device, self.half):
                batches.append(self.vae.encode(as_tensor(pictures).to(self.device)).latent_dist.mean.float().cpu())
        latents = (torch.cat(batches) * self.vae.config.scaling_factor).half()
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, latents.numpy())
        return latents

    def _states(self, captions: list[str]) -> torch.Tensor:
        new = [c for c in captions if c not in self._repeated]
        states = iter(self._encode(new)) if new else iter(())
        return torch.stack([self._repeated[c] if c in self._repeated else next(states) for c in captions])

    @torch.no_grad()
    def _encode(self, captions: list[str]) -> torch.Tensor:
        encoded = self.tokenizer(captions, padding=False, truncation=True, max_length=77).input_ids
        ids = torch.full((len(encoded), 77), self.pad_id)
        for row, tokens in zip(ids, encoded, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        with autocast(self.device, self.half):
            return self.text(ids.to(self.device)).last_hidden_state

    def examples(self, step: int) -> list[tuple[Scene, str, int]]:
        """What the corpus shows in a step: scene, caption, and the index of the repeated pair or -1."""
        start = step * self.settings["batch"]
        return self._examples.of(start, self.settings["batch"])

    @property
    def empty(self) -> torch.Tensor:
        """Text states [77, d] of the empty caption."""
        return self._repeated[""]

    def noised(self, step: int, captions: list[str]) -> Noised:
        """The latents of a step under its noise, with `captions` beside them, some of which are dropped."""
        s = self.settings
        rng = generator(s["seed"], step)
        dropped = torch.rand(len(captions), generator=rng) < s["caption_dropout"]
        states = self._states(["" if d else c for c, d in zip(captions, dropped, strict=True)])
        latents = self._latents(step * s["batch"], s["batch"])
        noise = torch.randn(latents.shape, generator=rng)
        t = torch.randint(0, len(self.alphas), (len(latents),), generator=rng)
        a = self.alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
        # An error in the predicted noise counts 1/sqrt(SNR) times as much in the picture. Unweighted, layout and colours,
        # which are settled at high noise, are learned last of all, and a small budget ends before that.
        weight = ((1 - a) / a).flatten().clamp(1.0, s["weight_limit"])
        noisy, noise, t, weight = (x.to(self.device) for x in (noisy, noise, t, weight))
        return Noised(noisy, noise, t, states, dropped, weight)

    @staticmethod
    def errors(batch: Noised, predicted: torch.Tensor) -> torch.Tensor:
        """Mean square error of the predicted noise, each sample's [B]."""
        return (predicted.float() - batch.noise).pow(2).mean((1, 2, 3))

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        batch = self.noised(step, [text for _, text, _ in self.examples(step)])
        with autocast(self.device, self.half):
            predicted = self.module(batch.noisy, batch.times, batch.states).sample
        error = self.errors(batch, predicted)
        return (batch.weight * error).mean(), {"unweighted": float(error.detach().mean())}
