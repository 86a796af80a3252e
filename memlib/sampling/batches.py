"""Sampling: from embeddings and seeds to pictures, in batches over prompts x seeds.

The loop itself is `trajectory` (in memlib.sampling.loop, also available here).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from memlib.base.errors import InputError
from memlib.base.numbers import is_whole
from memlib.models.protocol import Substrate
from memlib.models.speed import kernels, speed_of
from memlib.prompts.embedding import Embedding, encode_prompts
from memlib.sampling.guidance import as_rule
from memlib.sampling.loop import Cost, Step, to_epsilon, trajectory
from memlib.sampling.prefix import begun
from memlib.sampling.recipe import SAMPLER_VERSION, USUAL, Batch, Recipe

__all__ = [
    "SAMPLER_VERSION", "USUAL", "Batch", "Cost", "Recipe", "Step", "decode", "initial_latents", "sample", "sample_batches",
    "to_epsilon", "trajectory", "uncond_states",
]  # fmt: skip

DECODE_PIXELS = 2**20  # Pixels decoded at once; the VAE needs more memory per pixel than the U-Net.


def initial_latents(seeds: Sequence[int], latent_shape: Sequence[int]) -> Tensor:
    """Return standard normal noise [S, C, h, w] (float32, CPU), one generator per seed.

    The noise depends on the seed alone, not on the prompt or on the other seeds. Raises InputError for
    no seeds or a seed that is not a whole number from 0 to 2**64 - 1.
    """
    noise = []
    for seed in _checked_seeds(seeds):
        generator = torch.Generator("cpu").manual_seed(seed)
        noise.append(torch.randn(tuple(latent_shape), generator=generator))
    return torch.stack(noise)


@torch.no_grad()
def decode(substrate: Substrate, latents: Tensor) -> np.ndarray:
    """Decode latents [B, C, h, w] to pictures, uint8 [B, H, W, 3].

    The VAE's `scaling_factor` is honoured, and its `shift_factor` where it has one (which
    `StableDiffusionPipeline` itself ignores). Raises InputError if the result is not finite, which
    happens when a VAE overflows in half precision.
    """
    vae = substrate.vae
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    pictures = []
    for part in latents.split(speed_of(substrate).decode_batch or max(1, DECODE_PIXELS // substrate.resolution**2)):
        scaled = part.to(substrate.device, torch.float32) / vae.config.scaling_factor + shift
        decoded = vae.decode(scaled.to(substrate.dtype), return_dict=False)[0].float()
        if not torch.isfinite(decoded).all():
            raise InputError(f"{substrate.name} gave pictures with values that are not finite in {substrate.dtype}: load it with dtype='float32'.")
        values = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        pictures.append((values * 255).round().to(torch.uint8).cpu().numpy())
    return np.concatenate(pictures)


Observer = Callable[[list[int], list[int], Step], None]


Around = Callable[[Substrate, Batch, Cost], AbstractContextManager[Batch]]


def sample_batches(
    substrate: Substrate,
    embedding: Embedding,
    seeds: Sequence[int],
    recipe: Recipe = USUAL,
    *,
    batch_size: int | None = None,
    uncond: Embedding | Tensor | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
    keep: Observer | None = None,
    cost: Cost | None = None,
    around: Around | None = None,
    latents_only: bool = False,
) -> Iterator[tuple[list[int], list[int], np.ndarray]]:
    """Sample prompts x seeds and yield each finished batch as (rows, seeds, pictures uint8 [b, H, W, 3]).

    `rows` are prompt rows of `embedding`. `pairs` restricts the work to the (row, seed) pairs given, in
    that order, and `seeds` is then not used. `uncond` defaults to the empty prompt with the substrate's
    own padding. `keep(rows, seeds, step)` is called at every step. `around(substrate, batch, cost)` gives a context
    manager in which a batch is denoised and which may replace its tensors (see `memlib.mitigations.base`). With `latents_only` nothing is
    decoded, and the last latents, float32 [b, C, h, w], take the pictures' place. Without `keep` and `around` the substrate's `Speed`
    may leave out, or share between pictures, what guidance makes no use of. A (prompt, seed) gives the same
    picture, to float tolerance, whatever the batch. Raises InputError before any work for no prompts, no
    seeds, a bad batch size, steps out of range, or an unknown scheduler.
    """
    if len(embedding) == 0:
        raise InputError("There are no prompts to sample: give at least one.")
    if pairs is None:
        pairs = [(row, seed) for row in range(len(embedding)) for seed in _checked_seeds(seeds)]
    else:
        pairs = [(int(row), seed) for row, seed in pairs]
        if pairs:
            _checked_seeds([seed for _, seed in pairs])
        if any(not 0 <= row < len(embedding) for row, _ in pairs):
            raise InputError(f"A pair names a prompt row outside 0 to {len(embedding) - 1}.")
    check_batch_size(batch_size)
    if batch_size is None:
        batch_size = substrate.batch_size()
    rule, steps, scheduler = as_rule(recipe.guidance), recipe.steps, recipe.scheduler
    substrate.scheduler(scheduler, steps)
    uncond = uncond_states(substrate, uncond)
    speed, lean, cost = speed_of(substrate), keep is None and around is None, Cost() if cost is None else cost

    def batches() -> Iterator[tuple[list[int], list[int], np.ndarray]]:
        for start in range(0, len(pairs), batch_size):
            rows, seeds = map(list, zip(*pairs[start : start + batch_size], strict=True))
            # A compiled U-Net knows one size of batch: the last one is filled up, and what fills it is dropped.
            filling = batch_size - len(rows) if lean and speed.compile else 0
            filled = rows + rows[-1:] * filling
            latents = initial_latents(seeds + seeds[-1:] * filling, substrate.latent_shape)
            batch = Batch(rows, seeds, embedding.select(filled), uncond, latents, steps, rule, scheduler)
            with kernels(speed, substrate.device), nullcontext(batch) if around is None else around(substrate, batch, cost) as batch:
                first, last = begun(substrate, batch, cost) if lean else (0, batch.latents)
                if first < steps:
                    text = batch.embedding.states, batch.uncond
                    for step in trajectory(substrate, *text, last, steps, batch.rule, scheduler, cost=cost, start=first, lean=lean):
                        if keep is not None:
                            keep(rows, seeds, step)
                    last = step.next_latents
            last = last[: len(rows)]
            if latents_only:
                yield rows, seeds, last.cpu().numpy()
                continue
            with kernels(speed, substrate.device):
                pictures = decode(substrate, last)
            cost.pictures += len(rows)
            yield rows, seeds, pictures

    return batches()


def sample(substrate: Substrate, embedding: Embedding, seeds: Sequence[int], recipe: Recipe = USUAL, *, progress: bool = False, **options: Any) -> np.ndarray:
    """Return the pictures of N prompts x S seeds, uint8 [N, S, H, W, 3]; options as in `sample_batches`."""
    seeds = _checked_seeds(seeds)
    if len(set(seeds)) < len(seeds):
        raise InputError(f"Seeds repeat ({', '.join(map(str, seeds))}): give each once.")
    columns = {seed: column for column, seed in enumerate(seeds)}
    batches, pictures = sample_batches(substrate, embedding, seeds, recipe, **options), np.empty(0)
    with tqdm(total=len(embedding) * len(seeds), unit="picture", disable=not progress) as bar:
        for rows, batch_seeds, batch in batches:
            if not pictures.size:
                pictures = np.empty((len(embedding), len(seeds), *batch.shape[1:]), np.uint8)
            pictures[rows, [columns[seed] for seed in batch_seeds]] = batch
            bar.update(len(rows))
    return pictures


def check_batch_size(batch_size: int | None) -> None:
    """Raise InputError for a batch size that is neither None nor a whole number of at least 1."""
    if batch_size is not None and not is_whole(batch_size, 1):
        raise InputError(f"Batch size {batch_size!r} is not usable: give a whole number of at least 1.")


def uncond_states(substrate: Substrate, uncond: Embedding | Tensor | None = None) -> Tensor:
    """Return the unconditional states [1, 77, d]: those given, or the empty prompt's."""
    if uncond is None:
        uncond = encode_prompts(substrate, [""])
    states = uncond.states if isinstance(uncond, Embedding) else uncond
    if states.ndim != 3 or len(states) != 1:
        raise InputError(f"The unconditional embedding has shape {tuple(states.shape)}: give one for all prompts, [1, 77, d].")
    return states


def _checked_seeds(seeds: Sequence[int]) -> list[int]:
    found: list[Any] = [seed.item() if isinstance(seed, np.generic) else seed for seed in seeds]
    if not found:
        raise InputError("There are no seeds: give at least one.")
    for seed in found:
        if not is_whole(seed) or seed >= 2**64:
            raise InputError(f"Seed {seed!r} is not usable: give whole numbers from 0 to 2**64 - 1.")
    return found
