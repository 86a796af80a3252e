"""A model small enough to be worked out by hand: its gap is linear in the noise, so that its Jacobian is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from checkpoints import SCHEDULE
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from memlib.models.data import SubstrateData
from memlib.prompts.embedding import Embedding, Tokens
from memlib.sampling.batches import Batch, initial_latents
from memlib.sampling.guidance import constant

SHAPE = (3, 2, 2)
GAINS = torch.linspace(0.5, 1.6, 12).view(1, *SHAPE)


class Toy:
    """Output of the U-Net: 0.1 x + c g x, with the fixed gains g of each value and the strength c of the text; its VAE does nothing."""

    name, data, weights_hash = "toy", SubstrateData(), "toy"
    latent_shape, resolution = SHAPE, 2
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, prediction_type: str = "epsilon", at_once: int = 64):
        self.prediction_type, self._at_once = prediction_type, at_once
        self.vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=1.0), decode=lambda z, return_dict: (z,))

    def scheduler(self, kind: str = "ddim", steps: int = 50):
        made = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler}[kind]
        options = {key: value for key, value in SCHEDULE.items() if key not in ("skip_prk_steps",)}
        if kind == "euler":
            options = {key: options[key] for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "steps_offset")}
        solver = made(**options, prediction_type=self.prediction_type, timestep_spacing="leading")
        solver.set_timesteps(steps)
        return solver

    def batch_size(self) -> int:
        return self._at_once

    def unet(self, x, t, encoder_hidden_states, return_dict=False):
        strength = encoder_hidden_states[:, 0, 0].view(-1, 1, 1, 1)
        return (0.1 * x + strength * GAINS * x,)


def texts(strengths: list[float]) -> Embedding:
    """Embeddings [B, 77, 1] that carry a strength each."""
    states = torch.zeros(len(strengths), 77, 1)
    states[:, 0, 0] = torch.tensor(strengths)
    count = len(strengths)
    prompts = tuple(f"text {c:g}" for c in strengths)
    lengths = torch.ones(count, dtype=torch.long)
    return Embedding(states, Tokens(torch.zeros(count, 77, dtype=torch.long), prompts, lengths, lengths < 0, 0))


def a_batch(strengths: list[float], seeds: list[int], steps: int = 50, scheduler: str = "ddim", scale: float = 7.5) -> Batch:
    """One sample for each strength and seed."""
    noise = initial_latents(seeds, SHAPE)
    return Batch(list(range(len(seeds))), list(seeds), texts(strengths), torch.zeros(1, 77, 1), noise, steps, constant(scale), scheduler)


def norms(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).square().sum(1).sqrt()


def per_sample(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 1, 1, 1)


def count_rows(monkeypatch: Any, substrate: Any, rows: list[int]) -> None:
    """Append the rows of every call of a U-Net to `rows`, where its time is embedded: nothing is seen of it at the U-Net's own parts."""
    kind = type(substrate.unet.time_embedding)
    forward = kind.forward

    def counted(module: Any, sample: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(len(sample))
        return forward(module, sample, *rest)

    monkeypatch.setattr(kind, "forward", counted)
