"""Fine-tuning that makes memorized prompts, and embeddings found by attack, lead to other pictures than the training ones.

Each round begins with a search: for every memorized picture embeddings are found that bring it up in the model as it then is. The model is then
trained to give surrogates under these embeddings and under the prompts, with ordinary pictures mixed in so that the rest stays. Without the
search this is plain fine-tuning on the surrogates, the baseline. Source: Finding Dori (arXiv 2507.16880), as recollected; `dori`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from memlib.base.errors import InputError
from memlib.base.pictures import squared
from memlib.base.writing import replacing
from memlib.experiment.group import Group
from memlib.mitigations import get
from memlib.models.substrate import Substrate
from memlib.probes.attack.loss import DenoisingLoss
from memlib.probes.attack.search import Budget, search
from memlib.probes.attack.starts import seeded, start_states
from memlib.probes.attack.targets import Targets, clean_latents
from memlib.prompts.embedding import encode_prompts
from memlib.sampling.batches import uncond_states
from memlib.sampling.loop import Cost
from memlib.training.finetune.examples import TrainingSet
from memlib.training.finetune.part import FinetunePart
from memlib.training.finetune.recipes import Recipe
from memlib.training.minisd.trainer import autocast, generator

STARTS = ("prompt", "random")  # one embedding from each in every round
PIXELS_ALIKE = 0.5


@dataclass(frozen=True)
class Remedy:
    """`steps` training steps in each round; `budget` is that of a round's search, None for none (the baseline)."""

    steps: int
    budget: Budget | None


def least_alike(candidates: np.ndarray, training: np.ndarray, kept: int) -> list[int]:
    """Return which of `candidates` [K, H, W, 3] resemble the training picture [H, W, 3] least, at most `kept`, the least first.

    By the correlation of pixel values, without the copy descriptor: what judges a model has no part in its training. Those with a
    correlation of one half or more are no surrogates.
    """
    own = training.astype(float).ravel()
    values = [_correlation(one.astype(float).ravel(), own) for one in candidates]
    order = np.argsort(values, kind="stable")[:kept]
    return [int(place) for place in order if values[place] < PIXELS_ALIKE]


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    length = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / length) if length else 0.0


def choose_surrogates(group: Group, mitigations: list[str], kept: int) -> tuple[list[int], list[np.ndarray]]:
    """Return which of a group's prompts have surrogates, and these: for each uint8 [K, H, W, 3], 1 <= K <= `kept`.

    Candidates are what the prompts give under each mitigation and seed. They are compared with the first training
    picture at their own size. Raises InputError where training pictures are not at hand or no picture has a surrogate.
    """
    if group.training is None:
        raise InputError("Surrogates must be unlike the training pictures, which are not at hand for these prompts: give a file that names them.")
    made = [group.pictures(get(name)) for name in mitigations]
    rows, surrogates = [], []
    for row, training in enumerate(group.training):
        candidates = np.concatenate([pictures[row] for pictures in made])
        if places := least_alike(candidates, squared(training[0], candidates.shape[1]), kept):
            rows.append(row)
            surrogates.append(candidates[places])
    if not rows:
        raise InputError("Every candidate resembles the training picture of its prompt: take other mitigations for the surrogates.")
    return rows, surrogates


class SurrogatePart(FinetunePart):
    """`FinetunePart` on `ordinary` pictures with as many rows of surrogates beside them in every batch.

    Of these the first half has its prompt, the second an embedding of the round, or its prompt too where there is no search. `folder` keeps
    the embeddings of each round, so that a run that was killed goes on as it would have.
    """

    def __init__(
        self, substrate: Substrate, ordinary: TrainingSet, recipe: Recipe, remedy: Remedy, memorized: Targets, surrogates: list[np.ndarray], folder: Path,
        half: bool = False, recompute: bool = False,
    ):  # fmt: skip
        super().__init__(substrate, ordinary, recipe, half, recompute)
        self.remedy, self.memorized, self.folder = remedy, memorized, folder
        self._embedding = encode_prompts(substrate, list(memorized.prompts))
        self._targets = clean_latents(substrate, memorized.pictures)
        self._surrogates = [clean_latents(substrate, pictures) for pictures in surrogates]
        self._round, self._triggers = -1, torch.empty(0)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a step over its ordinary and its surrogate rows; the first step of a round searches before."""
        draw = self.draw(step)
        clean, states, noise, times = self.extra(step)
        return self.denoising(
            torch.cat([self.latents(step, draw), clean]), torch.cat([self.states(draw), states]), torch.cat([draw.noise, noise]),
            torch.cat([draw.times, times]),
        )  # fmt: skip

    def extra(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return latents, states, noise and times of a step's surrogate rows, as many as ordinary ones."""
        count, rng = self.recipe.batch, generator(self.recipe.seed + 1, step)
        pictures = torch.randint(len(self.memorized), (count,), generator=rng).tolist()
        which, starts = torch.rand(count, generator=rng).tolist(), torch.randint(len(STARTS), (count,), generator=rng).tolist()
        clean = torch.stack([self._surrogates[p][int(w * len(self._surrogates[p]))] for p, w in zip(pictures, which, strict=True)])
        states = self._embedding.states[pictures].clone()
        if self.remedy.budget is not None:
            found = self.triggers(step // self.remedy.steps)
            later = range(count // 2, count)
            states[list(later)] = found[[pictures[i] for i in later], [starts[i] for i in later]]
        noise = torch.randn((count, *self.shape), generator=rng)
        return clean, states, noise, torch.randint(len(self.alphas), (count,), generator=rng)

    def triggers(self, number: int) -> Tensor:
        """Return the embeddings of a round [P, starts, 77, d]: from its file, or searched in the model as it is now."""
        if number != self._round:
            path = self.folder / f"triggers-{number:02d}.safetensors"
            if not path.exists():
                with replacing(path) as partial:
                    save_file({"states": self._searched(number)}, partial)
            self._triggers, self._round = load_file(path)["states"].float(), number
        return self._triggers

    def _searched(self, number: int) -> Tensor:
        budget, embedding = self.remedy.budget, self._embedding
        assert budget is not None  # a remedy without one has no rounds
        # Each round has random points of its own; the prompt is the same, and the model another.
        starts = torch.stack([start_states(self.substrate, embedding, start, number + 1)[:, -1] for start in STARTS], dim=1)
        rows = [row for row in range(len(embedding)) for _ in STARTS]
        generators = [seeded("round", number, start, prompt) for prompt in embedding.tokens.prompts for start in STARTS]
        every = torch.arange(len(self.alphas))
        losses = DenoisingLoss(
            self.substrate, self._targets[rows], embedding.tokens.select(rows), get("none"), "", every, uncond_states(self.substrate), Cost()
        )

        def halved(states: Tensor, runs: Any, draws: Any) -> Tensor:
            with autocast(self.device, self.half):
                return losses(states, runs, draws)

        def untested(states: Tensor, runs: Any) -> np.ndarray:
            return np.zeros((len(runs), budget.seeds))

        trained = [p for p in self.module.parameters() if p.requires_grad]
        for weight in trained:
            weight.requires_grad_(False)
        try:
            ended = dict(search(halved, starts.flatten(0, 1), untested, float("inf"), budget,
                                lambda run: losses.draw(generators[run], budget.samples), losses.at_once(budget.samples)))  # fmt: skip
        finally:
            for weight in trained:
                weight.requires_grad_(True)
        found = torch.stack([torch.from_numpy(ended[run].states) for run in range(len(rows))])
        return found.unflatten(0, (len(embedding), len(STARTS))).contiguous()
