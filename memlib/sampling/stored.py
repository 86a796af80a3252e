"""Pictures through the store: those that it holds are read, the others are sampled and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.base.store import Store
from memlib.models.protocol import Substrate
from memlib.prompts.embedding import Embedding
from memlib.sampling.batches import check_batch_size, sample_batches, uncond_states
from memlib.sampling.loop import Cost
from memlib.sampling.recipe import SAMPLER_VERSION, USUAL, Recipe, picture_recipe


@dataclass(frozen=True)
class Asked:
    """Pictures asked for: their `keys` [N][S], and the first (row, seed) of each key in `places`.

    `shared` is the part of the recipe that all have, `rows` the hash of each prompt's embedding.
    """

    keys: list[list[str]]
    places: dict[str, tuple[int, int]]
    shared: dict[str, Any]
    rows: list[str]

    def recipe(self, key: str) -> dict[str, Any]:
        """What the picture of `key` is made of: the key is the hash of this."""
        row, seed = self.places[key]
        return {**self.shared, "cond": self.rows[row], "seed": seed}


class PictureStore(Store):
    """A store whose absent pictures are sampled; `sampler` and its `version` stand in for `sample_batches`."""

    def __init__(self, root: str | Path | None = None, sampler: Callable[..., Iterator] = sample_batches, version: int = SAMPLER_VERSION):
        super().__init__(root)
        self.sampler, self.version = sampler, version

    def pictures(self, substrate: Substrate, embedding: Embedding, seeds: Sequence[int], recipe: Recipe = USUAL, **options: Any) -> np.ndarray:
        """Return uint8 pictures [N, S, H, W, 3] of every prompt row with every seed, sampling what is absent; options as in `ensure`."""
        shown: dict[str, np.ndarray] = {}
        keys = self.ensure(substrate, embedding, seeds, recipe, into=shown, **options)
        return np.stack([np.stack([shown[key] for key in row]) for row in keys])

    def ensure(
        self,
        substrate: Substrate,
        embedding: Embedding,
        seeds: Sequence[int],
        recipe: Recipe = USUAL,
        *,
        uncond: Embedding | Tensor | None = None,
        mitigation: Any = None,
        batch_size: int | None = None,
        progress: bool = False,
        cost: Cost | None = None,
        into: dict[str, np.ndarray] | None = None,
    ) -> list[list[str]]:
        """Make sure that all these pictures are stored and return their keys [N][S].

        For runs whose pictures together do not fit into memory: read them with `read_picture`. Those that pass through are put into
        `into` by key, where one is given. `uncond` is the unconditional embedding ([1, 77, d]); by default that of the empty prompt.
        `mitigation` is one that acts while sampling (see `memlib.mitigations.base`): its `key` joins the key. Each batch is saved as soon
        as it is sampled; `cost` counts the work.
        """
        check_batch_size(batch_size)  # also where nothing is left to be sampled
        uncond = uncond_states(substrate, uncond)
        asked = self.asked(substrate, embedding, seeds, recipe, uncond=uncond, mitigation=mitigation)

        def make(absent: list[str]) -> Iterator[list[tuple[str, np.ndarray]]]:
            acts = {} if mitigation is None else {"around": mitigation.around}
            batches = self.sampler(
                substrate, embedding, [int(seed) for seed in seeds], recipe, batch_size=batch_size, uncond=uncond,
                pairs=[asked.places[key] for key in absent], cost=cost, **acts,
            )  # fmt: skip
            coming = iter(absent)
            for _, _, pictures in batches:
                yield [(next(coming), picture) for picture in pictures]

        self.fill("pictures", [key for row in asked.keys for key in row], asked.recipe, make, into, progress)
        return asked.keys

    def asked(
        self, substrate: Substrate, embedding: Embedding, seeds: Sequence[int], recipe: Recipe = USUAL, *,
        uncond: Embedding | Tensor | None = None, mitigation: Any = None,
    ) -> Asked:  # fmt: skip
        """Return the keys and recipes of these pictures, whether they are stored or not; nothing is sampled or read."""
        seeds = [int(seed) for seed in seeds]
        if not seeds or not len(embedding.states):
            raise InputError("Sampling needs at least one prompt and one seed: pass some of each.")
        shared = picture_recipe(substrate, uncond_states(substrate, uncond), recipe, self.version)
        if mitigation is not None:
            shared["mitigation"] = mitigation.key
        rows = [digest(states.float()) for states in embedding.states]
        keys = [[digest({**shared, "cond": row, "seed": seed}) for seed in seeds] for row in rows]
        # Of equal keys the first place counts; the order stays that of the rows.
        places = {key: (row, seed) for row, row_keys in reversed(list(enumerate(keys))) for seed, key in zip(seeds, row_keys)}
        return Asked(keys, places, shared, rows)
