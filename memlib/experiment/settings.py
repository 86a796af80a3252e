"""What groups of prompts share under a run: the model with its metrics, the store, and how pictures are sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from memlib.metrics import MetricSet
from memlib.mitigations import Mitigation
from memlib.models.protocol import Substrate
from memlib.prompts.embedding import Embedding
from memlib.sampling.batches import sample_batches, uncond_states
from memlib.sampling.guidance import Rule
from memlib.sampling.loop import Cost
from memlib.sampling.recipe import Recipe, picture_recipe
from memlib.sampling.stored import PictureStore

# What is done to a prompt: the key of an intervention (`memlib.prompts.interventions`), or a mitigation (`memlib.mitigations.get`).
Edit = str | Mitigation


@dataclass(eq=False)
class Settings:
    """A substrate with its metrics and store, seeds, and how pictures are sampled (`clip` Section 3: 50 steps, guidance 7.5).

    `cost` counts what is sampled under them.
    """

    substrate: Substrate
    store: PictureStore
    metrics: MetricSet
    seeds: tuple[int, ...]
    steps: int = 50
    guidance: float = 7.5
    scheduler: str = "ddim"
    batch_size: int | None = None
    progress: bool = False
    cost: Cost = field(default_factory=Cost)

    @property
    def thresholds(self) -> dict[str, float]:
        """The numbers that criteria name: `copy_threshold`; empty where the copy metric is not at hand."""
        copy = self.metrics.copy
        return {"copy_threshold": copy.threshold} if copy.available else {}

    def recipe(self, guidance: float | Rule | None = None) -> Recipe:
        """How a picture is sampled, with other guidance where it is given."""
        return Recipe(self.steps, self.guidance if guidance is None else guidance, self.scheduler)

    @property
    def calls(self) -> int:
        """How often a run calls the U-Net: once a step, and once more with PNDM."""
        return len(self.substrate.scheduler(self.scheduler, self.steps).timesteps)

    def keyed(self, guidance: float | Rule | None = None) -> dict[str, Any]:
        """What all pictures of a run share, as the store's keys have it (`memlib.sampling.recipe.picture_recipe`)."""
        return picture_recipe(self.substrate, uncond_states(self.substrate), self.recipe(guidance))

    def batches(
        self, embedding: Embedding, guidance: float | Rule | None = None, seeds: Sequence[int] | None = None, **options: Any
    ) -> Iterator[tuple[list[int], list[int], np.ndarray]]:
        """`memlib.sampling.batches.sample_batches` under these settings, with their seeds and counted in their `cost` unless others are given."""
        options = {"batch_size": self.batch_size, "cost": self.cost, **options}
        return sample_batches(self.substrate, embedding, self.seeds if seeds is None else seeds, self.recipe(guidance), **options)


def forget_other_models(holder: Any, substrate: Substrate) -> bool:
    """Drop the cached properties of `holder` where the model was changed since they were made, and say whether it was; InputError as for `weights_hash`."""
    now, held = substrate.weights_hash, vars(holder)
    if held.setdefault("_made_with", now) == now:
        return False
    for name in [name for name in held if isinstance(getattr(type(holder), name, None), cached_property)]:
        del held[name]
    held["_made_with"] = now
    return True
