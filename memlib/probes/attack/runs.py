"""Attacks on many pictures through the store: each run is kept as it ends, so that a killed one loses little."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memlib.base.errors import InputError, NotMeasured
from memlib.base.hashing import digest
from memlib.base.numbers import is_whole
from memlib.experiment.run import Experiment
from memlib.experiment.settings import forget_other_models
from memlib.mitigations import Mitigation, get
from memlib.probes.attack.loss import DenoisingLoss
from memlib.probes.attack.reach import Reach, reach, times_with_guidance
from memlib.probes.attack.search import Budget, search
from memlib.probes.attack.starts import seeded, start_states
from memlib.probes.attack.targets import Targets, clean_latents
from memlib.prompts.embedding import Embedding, Tokens, encode_prompts
from memlib.sampling.batches import sample_batches, uncond_states
from memlib.sampling.first_step import gradient_scale
from memlib.sampling.recipe import Recipe, picture_recipe

VERSION = 1  # Part of the store's keys: raise it when the same attack gives other embeddings.
SIDE_BY_SIDE = 64  # runs


@dataclass(frozen=True)
class Attacked:
    """R runs on each of P pictures: `steps` [P, R] until success (-1: never), `similarities` [P, R, K, S] at the tests `tests` (NaN after
    the end), `states` [P, R, 77, d] of the last test and `starts` of the first, float32, and the copy threshold."""

    targets: Targets
    steps: np.ndarray
    similarities: np.ndarray
    states: np.ndarray
    starts: np.ndarray
    tests: tuple[int, ...]
    threshold: float

    @property
    def succeeded(self) -> np.ndarray:
        """Whether a run brought the picture up, [P, R]."""
        return self.steps >= 0

    @property
    def brought_back(self) -> np.ndarray:
        """Whether any run of a picture did, [P]."""
        return np.any(self.succeeded, axis=1)

    @property
    def at_once(self) -> np.ndarray:
        """Whether a run's start brings the picture up without any attack, [P, R]."""
        return self.steps == 0

    @property
    def best(self) -> np.ndarray:
        """The highest mean similarity at any test, [P, R]."""
        return np.nanmax(self.similarities.mean(-1), axis=-1)

    def of(self, rows: np.ndarray) -> Attacked:
        """The same for these pictures, a mask or places."""
        places = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows)
        cut = {name: getattr(self, name)[places] for name in ("steps", "similarities", "states", "starts")}
        return replace(self, targets=self.targets.select(places.tolist()), **cut)


class Attack:
    """An attack on the model of an experiment (`memlib.experiment.run.Experiment`) with a mitigation in place, known to the attacker.

    Weights that a mitigation prunes, and places that it masks, are those of a picture's own prompt, wherever the search starts. Raises
    NotMeasured where the copy descriptor is not at hand or the substrate lacks what the mitigation needs.
    """

    def __init__(self, experiment: Experiment, budget: Budget | None = None, mitigation: Mitigation | str = "none"):
        self.experiment, self.budget = experiment, budget or Budget()
        self.mitigation = get(mitigation) if isinstance(mitigation, str) else mitigation
        if not experiment.metrics.copy.available:
            raise NotMeasured("Whether a picture came back is judged by the copy descriptor, which is not at hand here.")
        if missing := self.mitigation.missing(experiment.substrate):
            raise NotMeasured(missing)

    @cached_property
    def reach(self) -> Reach:
        """How the attack treats the mitigation."""
        return reach(self.mitigation, self.experiment.guidance)

    @cached_property
    def threshold(self) -> float:
        """The copy similarity at which a picture has come back."""
        return float(self.experiment.metrics.copy.threshold)

    def run(self, targets: Targets, start: str = "prompt", restarts: int = 1) -> Attacked:
        """Attack every target `restarts` times from `start` (see `memlib.probes.attack.starts`); what was done before comes from the store."""
        if not is_whole(restarts, 1):
            raise InputError(f"{restarts!r} restarts are not possible: use a whole number of at least 1.")
        x, shape = self.experiment, (len(targets), restarts)
        forget_other_models(self, x.substrate)
        # One at a time, so that the last digits of states, and with them the keys, do not depend on the other prompts.
        parts = [encode_prompts(x.substrate, prompt) for prompt in targets.prompts]
        starts = torch.stack([start_states(x.substrate, part, start, restarts)[0] for part in parts])
        places = [(row, restart) for row in range(shape[0]) for restart in range(restarts)]
        keys = [self._key(targets, row, restart, starts[row, restart]) for row, restart in places]
        found = x.store.scores(keys, lambda absent: self._computed([places[i] for i in absent], absent, targets, parts, starts))
        return Attacked(
            targets,
            np.array([one["steps"] for one in found]).reshape(shape),
            np.stack([one["similarities"] for one in found]).reshape(*shape, len(self.budget.tests), self.budget.seeds),
            np.stack([one["states"] for one in found]).astype(np.float32).reshape(*shape, *starts.shape[2:]),
            starts.numpy(), self.budget.tests, self.threshold,
        )  # fmt: skip

    def similarities(self, states: Tensor, embedding: Embedding, pictures: np.ndarray) -> np.ndarray:
        """Return copy similarities [A, S] of what `states` [A, 77, d] give, under the mitigation, to pictures uint8 [A, H, W, 3].

        `embedding` has a row for each with the picture's own prompt.
        """
        metric = self.experiment.metrics.copy
        made = self.pictures(states, embedding)
        return metric.similarity(made, metric(pictures)[:, None])

    def pictures(self, states: Tensor, embedding: Embedding) -> np.ndarray:
        """Return what `states` [A, 77, d] give under the mitigation, uint8 [A, S, H, W, 3], with the budget's seeds and steps."""
        x, m = self.experiment, self.mitigation
        forget_other_models(self, x.substrate)
        given = embedding.replace(states.detach().float().cpu())
        given = given if self.reach.text else m.apply(x.substrate, given)
        recipe = Recipe(self.budget.sampling_steps, m.guidance(x.guidance), x.scheduler)
        batches = sample_batches(
            x.substrate, given, range(self.budget.seeds), recipe,
            batch_size=x.batch_size, uncond=self._uncond, cost=x.cost, around=m.around if m.sampled else None,
        )  # fmt: skip
        flat = np.concatenate([made for _, _, made in batches])
        return flat.reshape(len(states), self.budget.seeds, *flat.shape[1:])

    @cached_property
    def _uncond(self) -> Tensor:
        return uncond_states(self.experiment.substrate)

    @cached_property
    def _shared(self) -> dict[str, Any]:
        x, m = self.experiment, self.mitigation
        recipe = picture_recipe(x.substrate, self._uncond, Recipe(self.budget.sampling_steps, m.guidance(x.guidance), x.scheduler))
        return {"attack": VERSION, "mitigation": m.key, "budget": self.budget.to_json(), "metric": x.metrics.copy.fingerprint,
                "threshold": self.threshold, "checked with": recipe}  # fmt: skip

    def _key(self, targets: Targets, row: int, restart: int, start: Tensor) -> dict[str, Any]:
        return {**self._shared, "picture": digest(targets.pictures[row]), "prompt": targets.prompts[row], "restart": restart, "start": digest(start)}

    def _computed(
        self, places: list[tuple[int, int]], absent: list[int], targets: Targets, parts: list[Embedding], starts: Tensor
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for begin in range(0, len(places), SIDE_BY_SIDE):
            block = places[begin : begin + SIDE_BY_SIDE]
            for run, found in self._searched(block, targets, parts, starts):
                yield absent[begin + run], {"steps": found.steps, "similarities": found.similarities, "states": found.states}

    def _searched(self, block: list[tuple[int, int]], targets: Targets, parts: list[Embedding], starts: Tensor) -> Iterator[tuple[int, Any]]:
        x, rows = self.experiment, [row for row, _ in block]
        pictures = targets.pictures[rows]
        embedding = joined([parts[row] for row in rows])
        generators = [seeded("attack", targets.prompts[row], digest(targets.pictures[row]), restart) for row, restart in block]
        times = times_with_guidance(x.substrate, self.mitigation, x.guidance, self.budget.sampling_steps, x.scheduler)
        losses = DenoisingLoss(
            x.substrate, clean_latents(x.substrate, pictures), embedding.tokens, get("none") if self.reach.text else self.mitigation,
            self.reach.patch, times, self._uncond, x.cost,
        )  # fmt: skip
        return search(
            losses, torch.stack([starts[row, restart] for row, restart in block]),
            lambda states, runs: self.similarities(states, joined([parts[rows[run]] for run in runs]), pictures[list(runs)]),
            self.threshold, self.budget, lambda run: losses.draw(generators[run], self.budget.samples), losses.at_once(self.budget.samples),
            gradient_scale(x.substrate),
        )  # fmt: skip


def joined(parts: list[Embedding]) -> Embedding:
    """Return one embedding of several, which must have the same padding token."""
    tokens = [part.tokens for part in parts]
    together = Tokens(
        torch.cat([t.ids for t in tokens]), tuple(prompt for t in tokens for prompt in t.prompts), torch.cat([t.lengths for t in tokens]),
        torch.cat([t.truncated for t in tokens]), tokens[0].pad_id,
    )  # fmt: skip
    return Embedding(torch.cat([part.states for part in parts]), together)
