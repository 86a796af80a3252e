"""The beginning of a trajectory in which the prompt does not count yet: done once for all prompts and methods, and kept.

Where a rule is known ahead to give guidance 0 in the first k steps (a static transition, an interval with nothing before it, no guidance at
all), the latents before step k follow from the noise, the model, the unconditional embedding and the schedule. So every prompt with that
seed, and every other rule that begins with 0, passes the same latents, each as far as it stays unguided.

Beginnings with another scale are not kept: they hang on the prompt, so that only methods on the same prompt could share them, at the price of all
steps of all their pictures in memory. A dynamic transition looks at the conditional prediction and cannot leave it out.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0
from torch import Tensor

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.models.protocol import Substrate
from memlib.models.speed import speed_of
from memlib.sampling.guidance import Rule
from memlib.sampling.loop import SINGLE_STEP, Cost, trajectory
from memlib.sampling.recipe import Batch, Recipe, picture_recipe

# Latents kept for a model, in main memory: about 80 seeds of 50 steps at 512 x 512.
KEPT_BYTES = 2**28


class Kept:
    """Unguided latents [K, C, h, w] before steps 1 to K by recipe and seed, float32 in main memory, for a U-Net with these very weights."""

    def __init__(self, unet: Any):
        weights: list[Any] = list(unet.parameters())
        self._weights = [(ref(weight), weight._version) for weight in weights]
        self.passed: OrderedDict[tuple[str, int], Tensor] = OrderedDict()

    def belongs_to(self, unet: Any) -> bool:
        """Whether the U-Net has the weights that it had, none replaced and none written to since."""
        now: list[Any] = list(unet.parameters())
        return len(now) == len(self._weights) and all(
            version == weight._version and known() is weight for (known, version), weight in zip(self._weights, now, strict=True)
        )

    def trim(self) -> None:
        """Drop what was used longest ago, down to KEPT_BYTES."""
        size = sum(latents.nbytes for latents in self.passed.values())
        while size > KEPT_BYTES:
            size -= self.passed.popitem(last=False)[1].nbytes


_KEPT: WeakKeyDictionary[Any, Kept] = WeakKeyDictionary()


def forget(substrate: Substrate) -> None:
    """Drop all that is kept for a substrate."""
    _KEPT.pop(substrate.unet, None)


def unshared(substrate: Substrate) -> Any:
    """The same substrate, each of whose pictures is made from its noise on: for timing what a method takes by itself."""
    speed = speed_of(substrate)
    loaded: Any = substrate  # which is a dataclass, where it has such a speed
    return dataclasses.replace(loaded, speed=dataclasses.replace(speed, shared_prefix=False)) if speed.shared_prefix else substrate


def unguided_steps(rule: Rule, solver: Any) -> int:
    """The number of first steps of a schedule in which a rule is known ahead to give every sample guidance 0."""
    ahead, times = getattr(rule, "ahead", None), solver.timesteps.tolist()
    if ahead is None:
        return 0
    return next((index for index, t in enumerate(times) if ahead(index, len(times), float(t)) != 0), len(times))


def untouched(unet: Any) -> bool:
    """Whether no part of the U-Net has a hook, a replaced `forward` or an attention of another kind: nobody looks, edits or counts."""
    return not any(
        part._forward_pre_hooks or part._forward_hooks or "forward" in vars(part)
        or (isinstance(part, Attention) and type(part.processor) not in (AttnProcessor2_0, FusedAttnProcessor2_0))
        for part in unet.modules()
    )  # fmt: skip


def begun(substrate: Substrate, batch: Batch, cost: Cost) -> tuple[int, Tensor]:
    """Return the step to begin a batch at and its latents before that step, [B, C, h, w]; 0 and its noise where nothing is shared.

    For batches of `sample_batches` that nobody looks at or changes, whose latents are their seeds' noise. What the batch is spared is added to
    `cost` all the same, so that a method's cost is that of its pictures made alone, whatever was sampled before. A step equal to the number of
    steps means that the trajectory is over.
    """
    if not speed_of(substrate).shared_prefix or batch.scheduler not in SINGLE_STEP or not untouched(substrate.unet):
        return 0, batch.latents
    length = unguided_steps(batch.rule, substrate.scheduler(batch.scheduler, batch.steps))
    if not length:
        return 0, batch.latents
    try:
        recipe = digest(picture_recipe(substrate, batch.uncond, Recipe(batch.steps, 0.0, batch.scheduler)))
    except InputError:  # a model without a name, for a hook on another part of it: pictures are made, and nothing is kept
        return 0, batch.latents
    cost.evaluations += length * len(batch.latents)
    return length, _passed(substrate, batch, length, recipe)


def _passed(substrate: Substrate, batch: Batch, length: int, recipe: str) -> Tensor:
    """Unguided latents of a batch before step `length`, each seed's continued from where it was left under `recipe`."""
    unet, full = substrate.unet, len(batch.latents)
    if unet not in _KEPT or not _KEPT[unet].belongs_to(unet):
        _KEPT[unet] = Kept(unet)
    passed = _KEPT[unet].passed
    nothing = torch.empty(0, *batch.latents.shape[1:])
    own = {seed: passed.get((recipe, seed), nothing) for seed in batch.seeds}
    for start in sorted({len(latents) for latents in own.values() if len(latents) < length}):
        seeds = [seed for seed, latents in own.items() if len(latents) == start]
        # A compiled U-Net knows one size of batch.
        rows = seeds + seeds[-1:] * (full - len(seeds) if speed_of(substrate).compile else 0)
        latents = torch.stack([own[seed][-1] if start else batch.latents[batch.seeds.index(seed)] for seed in rows])
        text = batch.uncond.expand(len(rows), -1, -1)
        steps = trajectory(substrate, text, batch.uncond, latents, batch.steps, 0.0, batch.scheduler, start=start, lean=True)
        further = torch.stack([step.next_latents for step in islice(steps, length - start)], dim=1).cpu()
        for seed, new in zip(seeds, further, strict=False):
            own[seed] = torch.cat([own[seed], new])  # a copy of its own, so that dropping one seed frees its memory
    for seed, latents in own.items():
        passed[recipe, seed] = latents
        passed.move_to_end((recipe, seed))
    _KEPT[unet].trim()
    found = [own[seed][length - 1] for seed in batch.seeds]
    return torch.stack(found + found[-1:] * (full - len(found)))
