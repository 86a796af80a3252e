"""NeMo (Hintersdorf et al. 2024): neurons of cross-attention's value projections without which the noise of a prompt is no longer alike.

A neuron is an output channel of `to_v` in the down and mid blocks. It is a candidate where its activation by the prompt, the mean of its
absolute values over the 77 positions, stands out among prompts that are not memorized. A memorized prompt shows in noise
differences (the conditional prediction at the first step minus the noise it was made from) that resemble each other across seeds; blocking is enough
once each seed's difference no longer resembles its own unblocked one. What resembles is measured by structural similarity
(`memlib.mitigations.weights.ssim`) against a limit, a quantile of the same quantity over prompts that are not memorized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.base.store import Store
from memlib.mitigations.weights.ssim import ms_ssim, published_ms_ssim
from memlib.mitigations.weights.weight_sets import WeightSet, pruned
from memlib.models.protocol import Substrate
from memlib.prompts.embedding import Embedding, encode_prompts
from memlib.prompts.sets import choose_prompts
from memlib.sampling.attention.taps import cross_attention_layers
from memlib.sampling.batches import initial_latents
from memlib.sampling.calibration import published_applies, reference_prompts
from memlib.sampling.loop import Cost, to_epsilon

VERSION = 1
PUBLISHED_LIMIT = 0.428  # of published_ms_ssim, on latents of Stable Diffusion 1
FIRST_THETA, LAST_THETA, THETA_STEP = 5.0, 1.0, 0.25
STATISTICS_PROMPTS = 1000


Alike = Callable[[Tensor, Tensor], Tensor]  # ms_ssim or published_ms_ssim


@dataclass(frozen=True)
class Neurons:
    """Neurons found for one prompt: output channels by layer, the weights they stand for, and the seeds (of those given) that took part.

    No seed takes part where the prompt's noise differences resemble each other no more than those of other prompts: the prompt is then
    not taken for a memorized one, and nothing is found.
    """

    channels: dict[str, tuple[int, ...]]
    weights: WeightSet
    seeds: tuple[int, ...]
    target: float

    def __len__(self) -> int:
        return sum(map(len, self.channels.values()))


def value_layers(model: Any) -> dict[str, nn.Linear]:
    """Return the value projections of cross-attention in the down and mid blocks by path, in the order they run."""
    found = {f"{name}.to_v": layer.to_v for name, layer in cross_attention_layers(model).items() if not name.startswith("up_blocks")}
    if any(not isinstance(layer, nn.Linear) for layer in found.values()):
        raise InputError("The value projections of this U-Net are not plain linear layers: unload adapters and unfuse projections first.")
    return found


@torch.no_grad()
def activations(model: Any, states: Tensor) -> dict[str, Tensor]:
    """Return the activation [N, channels] of each neuron by states [N, 77, d]: mean over positions of the absolute value; float32, CPU."""
    layers = value_layers(model)
    return {name: layer(states.to(layer.weight)).abs().float().mean(1).cpu() for name, layer in layers.items()}


def statistics(substrate: Substrate, store: Store | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return mean and standard deviation [channels] of activations over up to 1,000 prompts that are not memorized, by layer."""
    prompts = sorted({*reference_prompts(substrate), *choose_prompts("not memorized", substrate.data, STATISTICS_PROMPTS).prompts})

    def compute() -> dict[str, np.ndarray]:
        found = activations(substrate, encode_prompts(substrate, prompts).states)
        return {name: np.stack([values.mean(0).numpy(), values.std(0).numpy()]) for name, values in found.items()}

    key = {"nemo": VERSION, "what": "statistics", "weights": substrate.weights_hash, "dtype": str(substrate.dtype), "prompts": digest(list(prompts))}
    return {name: (pair[0], pair[1]) for name, pair in (store or Store()).score(key, compute).items()}


@torch.no_grad()
def differences(substrate: Substrate, states: Tensor, seeds: Sequence[int], cost: Cost, step: int = 0) -> Tensor:
    """Return noise differences [S, C, h, w] of states [77, d] for each seed, each channel stretched to 0..1.

    The conditional prediction at the first step of a schedule of 50, in noise whatever the model predicts, minus the noise given
    to it. `step` 1 is the public program, which gives the second step's time with the first step's latents.
    """
    solver = substrate.scheduler("ddim", 50)
    t = solver.timesteps[step]
    noise = initial_latents(seeds, substrate.latent_shape).to(substrate.device)
    size, parts = substrate.batch_size(), []
    for start in range(0, len(noise), size):
        x = noise[start : start + size]
        text = states.to(substrate.device, substrate.dtype).expand(len(x), -1, -1)
        output = substrate.unet(x.to(substrate.dtype), t, encoder_hidden_states=text, return_dict=False)[0].float()
        parts.append(to_epsilon(output, x, t, solver) - x)
    cost.evaluations += len(noise)
    maps = torch.cat(parts)
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-12)


def alike_across_seeds(maps: Tensor, alike: Alike = ms_ssim) -> Tensor:
    """Return each seed's largest similarity [S] to another seed's map of [S, C, h, w]."""
    first, second = torch.triu_indices(len(maps), len(maps), 1)
    values = alike(maps[first], maps[second])
    table = torch.full((len(maps), len(maps)), -1.0)
    table[first, second] = table[second, first] = values.cpu()
    return table.amax(1)


def limit(substrate: Substrate, quantile: float = 0.84, seeds: int = 10, step: int = 0, store: Store | None = None, alike: Alike = ms_ssim) -> float:
    """Return the `quantile` over prompts that are not memorized, and seeds, of `alike_across_seeds`.

    The published limit is the mean plus one standard deviation of such prompts, which is the 84th percentile of a normal distribution.
    """
    prompts = reference_prompts(substrate)

    def compute() -> np.ndarray:
        states = encode_prompts(substrate, prompts).states
        return np.stack([alike_across_seeds(differences(substrate, one, range(seeds), Cost(), step), alike).numpy() for one in states])

    key = {"nemo": VERSION, "what": "limit", "weights": substrate.weights_hash, "dtype": str(substrate.dtype), "prompts": digest(list(prompts)),
           "seeds": seeds, "step": step, **({} if alike is ms_ssim else {"alike": alike.__name__})}  # fmt: skip
    return float(np.quantile((store or Store()).score(key, compute), quantile))


def limit_of(substrate: Substrate, method: Any) -> float:
    """Return the limit of `method`: the published one where it belongs, its similarity on latents of Stable Diffusion 1, and else its counterpart."""
    if method.as_published and published_applies(substrate, method):
        return PUBLISHED_LIMIT
    return limit(substrate, method.quantile, method.seeds, method.step, alike=similarity(method.as_published))


def similarity(as_published: bool) -> Alike:
    """The likeness of maps, as published or with a range of 1 throughout."""
    return published_ms_ssim if as_published else ms_ssim


def neurons(
    substrate: Substrate, embedding: Embedding, bound: float, seeds: Sequence[int] = range(10), step: int = 0, cost: Cost | None = None,
    refine: bool = True, alike: Alike = ms_ssim,
) -> list[Neurons]:  # fmt: skip
    """Return the neurons for each prompt of `embedding`, found one prompt at a time: selection, then refinement (see `_select`, `_refine`)."""
    known, cost = statistics(substrate), Cost() if cost is None else cost
    return [_search(substrate, states, known, bound, list(seeds), step, cost, refine, alike) for states in embedding.states]


def _search(substrate: Substrate, states: Tensor, known: Any, bound: float, seeds: list[int], step: int, cost: Cost, refine: bool, alike: Alike) -> Neurons:
    plain = differences(substrate, states, seeds, cost, step)
    taking = (alike_across_seeds(plain, alike) > bound).nonzero().flatten().tolist() if len(seeds) > 1 else [0]
    if not taking:
        return Neurons({}, WeightSet({}), (), bound)
    kept, plain = [seeds[i] for i in taking], plain[taking]

    def left(chosen: dict[str, set[int]]) -> float:
        """How much the most stubborn seed's map still resembles its unblocked one."""
        with pruned(substrate, WeightSet.of_neurons(substrate, {name: sorted(c) for name, c in chosen.items()})):
            return float(alike(differences(substrate, states, kept, cost, step), plain).max())

    chosen, target = _select(candidates(substrate, states, known), left, bound)
    if refine:
        chosen = _refine(chosen, left, target)
    found = {name: tuple(sorted(c)) for name, c in chosen.items() if c}
    return Neurons(found, WeightSet.of_neurons(substrate, found), tuple(kept), target)


def candidates(substrate: Substrate, states: Tensor, known: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return for each layer how many standard deviations each neuron's activation by `states` [77, d] is from its mean, and the activation."""
    active = {name: values[0].numpy() for name, values in activations(substrate, states[None]).items()}
    return {name: (np.abs(a - known[name][0]) / np.maximum(known[name][1], 1e-12), a) for name, a in active.items()}


def _select(scores: dict[str, tuple[np.ndarray, np.ndarray]], left: Any, bound: float) -> tuple[dict[str, set[int]], float]:
    """Lower the deviation asked for from 5 to 1 by quarters, and take one more of each layer's most active neurons each time, until
    blocking them all brings similarity to the bound.

    Where it never does, the target of the refinement is what was reached. The program does not try its last selection; here it is tried.
    """
    theta, most = FIRST_THETA, 0
    while True:
        chosen = {name: {*np.flatnonzero(deviation > theta).tolist(), *np.argsort(-active)[:most].tolist()} for name, (deviation, active) in scores.items()}
        reached = left(chosen)
        if reached <= bound:
            return chosen, bound
        if theta <= LAST_THETA:
            return chosen, reached
        theta, most = max(LAST_THETA, theta - THETA_STEP), most + 1


def _refine(chosen: dict[str, set[int]], left: Any, target: float) -> dict[str, set[int]]:
    """Release whole layers from the last to the first, then single neurons, as long as similarity stays below the target."""
    for name in reversed(chosen):
        if chosen[name] and left({**chosen, name: set()}) < target:
            chosen = {**chosen, name: set()}
    for name in reversed(chosen):
        for channel in sorted(chosen[name]):
            fewer = {**chosen, name: chosen[name] - {channel}}
            if left(fewer) < target:
                chosen = fewer
    return chosen
