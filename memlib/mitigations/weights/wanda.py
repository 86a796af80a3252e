"""Wanda-type pruning of memorized concepts (Chavhan et al. 2024): weights of the second feed-forward layer that a prompt uses more than others.

A weight counts by its size times the norm of its input (Sun et al. 2024). Each position's input is first divided by its own norm, squares are
averaged over positions, both halves of the guided batch and prompts, and the norm is the root, separately for each step of sampling. For
each output the largest weights of the target prompt are chosen where they also count more than with base prompts, at any of the
first steps. The weights themselves are the same in both, so that the comparison is one of input norms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.base.numbers import is_number
from memlib.base.store import Store
from memlib.mitigations.weights.weight_sets import WeightSet
from memlib.models.hooks import hooked
from memlib.models.protocol import Substrate
from memlib.prompts.embedding import Embedding, encode_prompts
from memlib.sampling.batches import SAMPLER_VERSION, initial_latents, trajectory, uncond_states
from memlib.sampling.calibration import reference_prompts
from memlib.sampling.loop import Cost

VERSION = 1
BASES = ("captions", "empty")
BASE_PROMPTS = 10  # as many as the published runs have target prompts

Norms = dict[str, np.ndarray]  # layer -> [T, in]


def feed_forward_layers(model: Any) -> dict[str, nn.Linear]:
    """Return the second linear layers of the transformer blocks' feed-forward parts by path; raises InputError where there are none."""
    unet = getattr(model, "unet", model)
    found = {name: m for name, m in unet.named_modules() if name.endswith("ff.net.2") and isinstance(m, nn.Linear)}
    if not found:
        raise InputError("This U-Net has no transformer blocks with feed-forward layers of diffusers: nothing can be pruned in it.")
    return found


@contextmanager
def _inputs(layers: Mapping[str, nn.Linear], take: Any) -> Iterator[None]:
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(hooked(layer.register_forward_pre_hook, lambda module, args, name=name: take(name, args[0])))
        yield


def input_norms(
    substrate: Substrate, embedding: Embedding, seeds: Sequence[int] = (0,), steps: int = 50, share: float = 0.2, guidance: Any = 7.5,
    scheduler: str = "ddim", cost: Cost | None = None,
) -> list[Norms]:  # fmt: skip
    """Return for each prompt the norms [T, in] of each layer's inputs in the first `share` of the steps of guided sampling.

    A norm is the root of the mean over positions, halves and `seeds` of the squares of inputs of unit length: float32.
    """
    first = max(1, round(share * steps))
    layers, uncond, found = feed_forward_layers(substrate), uncond_states(substrate), []
    noise = initial_latents(seeds, substrate.latent_shape)
    for states in embedding.states:
        squares: dict[str, list[Tensor]] = {name: [] for name in layers}

        def take(name: str, x: Tensor, squares: dict[str, list[Tensor]] = squares) -> None:
            unit = torch.nn.functional.normalize(x.detach().float(), dim=-1)
            squares[name].append(unit.square().flatten(0, -2).mean(0).cpu())

        with _inputs(layers, take):
            text = states.expand(len(noise), -1, -1)
            for step in trajectory(substrate, text, uncond, noise, steps, guidance, scheduler, cost=cost):
                if step.index + 1 == first:
                    break
        found.append({name: torch.stack(values).sqrt().numpy() for name, values in squares.items()})
    return found


def together(norms: Sequence[Norms]) -> Norms:
    """Return the norms of several prompts at once: the root of the mean of their squares."""
    return {name: np.sqrt(np.mean([np.square(one[name]) for one in norms], axis=0)) for name in norms[0]}


def base_norms(substrate: Substrate, base: str = "captions", store: Store | None = None, **sampling: Any) -> Norms:
    """Return the norms of the base: ten prompts that are not memorized ("captions"), or the empty one ("empty").

    `sampling` are arguments of `input_norms`. Raises InputError for another base.
    """
    if base not in BASES:
        raise InputError(f"Unknown base {base!r} to compare with: use one of {', '.join(BASES)}.")
    prompts = list(reference_prompts(substrate)[:BASE_PROMPTS]) if base == "captions" else [""]
    settings = {name: list(value) if isinstance(value, (tuple, range)) else value for name, value in sampling.items()}
    key = {"wanda": VERSION, "what": "base", "weights": substrate.weights_hash, "dtype": str(substrate.dtype), "prompts": digest(prompts),
           "sampler": SAMPLER_VERSION, **settings}  # fmt: skip
    return (store or Store()).score(key, lambda: together(input_norms(substrate, encode_prompts(substrate, prompts), **sampling)))


def weights(model: Any, target: Norms, base: Norms, ratio: float = 0.01, floor: bool = False) -> WeightSet:
    """Return the weights chosen: in each row the `ratio` with the highest size times norm, where the target's norm exceeds the base's,
    at any of the steps.

    Their number is rounded, or with `floor` cut off as in the program: 12 for 13 of 1,280. At least one weight of a row is looked at. Raises
    InputError for a ratio outside 0 to 1.
    """
    if not is_number(ratio) or not 0 < ratio <= 1:
        raise InputError(f"A ratio of {ratio!r} of the weights is not possible: use a number above 0, up to 1 (0.01 is published).")
    chosen = {}
    for name, layer in feed_forward_layers(model).items():
        size = layer.weight.detach().abs().float().cpu()
        count = max(1, int(ratio * size.shape[1]) if floor else round(ratio * size.shape[1]))
        picked = torch.zeros(size.shape, dtype=torch.bool)
        for own, other in zip(torch.from_numpy(target[name]), torch.from_numpy(base[name]), strict=True):
            highest = (size * own).topk(count, dim=1).indices
            picked |= torch.zeros_like(picked).scatter_(1, highest, True) & (own > other)
        chosen[name] = picked.flatten().nonzero().flatten().numpy()
    return WeightSet(chosen)
