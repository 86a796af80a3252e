"""The figures of premises: each takes a `Case` and returns an Estimate, or raises NotMeasured with what is missing."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from memlib.base.errors import NotMeasured
from memlib.judging.estimates import Estimate, bootstrap, mean_interval, share_interval
from memlib.metrics import metrics_for
from memlib.metrics.alignment import load_minisd_evaluator
from memlib.metrics.distribution import kernel_distance
from memlib.metrics.similarity import load_minisd_descriptor
from memlib.models.minisd.drawn import background_right
from memlib.models.minisd.judges import pool_at_eot
from memlib.models.minisd2.data import World
from memlib.models.minisd2.drawn import concept_ranks, nearest_grounds, nearest_things
from memlib.models.minisd2.judges import load_picture_tower
from memlib.models.minisd2.paths import minisd2_folder
from memlib.probes.reproduced import NEEDED, SEEDS, reconstructed
from memlib.prompts.embedding import encode_prompts
from memlib.prompts.sets import load_prompts
from memlib.sampling.recipe import Recipe
from memlib.sampling.stored import PictureStore

CAPTIONS = 1000  # among which a held-out caption's picture must come first
SATURATED = (2, 253)  # a pixel is saturated if one of its channels lies below or above


class Case:
    """A substrate with its judges, and the pictures that several figures look at: `prompts` of each kind with `seeds` each."""

    def __init__(self, substrate: Any, prompts: int = 60, seeds: int = 2, store: PictureStore | None = None, world: World | None = None):
        self.substrate, self.prompts, self.seeds = substrate, prompts, tuple(range(seeds))
        self.store = store or PictureStore()
        self._world = world

    @property
    def world(self) -> World:
        if self._world is None:
            raise NotMeasured(f"{self.substrate.name} brings no world of which it is known what is on a picture.")
        return self._world

    @cached_property
    def copy(self) -> Any:
        return load_minisd_descriptor(self.world.judges / "descriptor", self.substrate.device) if self.has_world else metrics_for(self.substrate).copy

    @cached_property
    def alignment(self) -> Any:
        if self.has_world:
            return load_minisd_evaluator(self.world.judges / "evaluator", self.substrate.device)
        return metrics_for(self.substrate).alignment

    @property
    def has_world(self) -> bool:
        return self._world is not None

    def real(self, count: int) -> np.ndarray:
        """Real pictures that training did not show, uint8 [N, H, W, 3]."""
        if self.has_world:
            return self.world.pictures([scene for scene, _ in self.world.held_out(count, seed=1)])
        if self.substrate.data.held_out is None:
            raise NotMeasured(f"{self.substrate.name} has no real pictures at hand that it was not trained on.")
        return self.substrate.data.held_out(count)

    def draw(self, texts: list[str], guidance: float = 7.5, seeds: tuple[int, ...] | None = None) -> np.ndarray:
        """Pictures [N, S, H, W, 3] of N prompts."""
        return self.store.pictures(self.substrate, encode_prompts(self.substrate, texts), seeds or self.seeds, Recipe(guidance=guidance))

    @cached_property
    def one(self) -> list:
        return self.world.held_out(self.prompts, several=False)

    @cached_property
    def several(self) -> list:
        return self.world.held_out(self.prompts, several=True)

    def ranks(self, held: list) -> np.ndarray:
        """Ranks of every thing of every held-out scene, int [things, S]."""
        pictures = self.draw([text for _, text in held])
        return np.concatenate(
            [
                [concept_ranks(self.copy, self.world.corpus.painter, drawn, scene, k) for k in range(len(scene.things))]
                for drawn, (scene, _) in zip(pictures, held)
            ]
        )

    @cached_property
    def ranks_of_one(self) -> np.ndarray:
        return self.ranks(self.one)

    @cached_property
    def ranks_of_several(self) -> np.ndarray:
        return self.ranks(self.several)

    @cached_property
    def unconditional(self) -> np.ndarray:
        """Pictures without a prompt: the unconditional half alone, uint8 [N, H, W, 3]."""
        return self.draw([""], guidance=1.0, seeds=tuple(range(self.prompts)))[0]

    @cached_property
    def reproduced(self) -> np.ndarray:
        """Copy similarity of each duplicated pair's pictures to its training picture after the autoencoder, [P, 10]."""
        pictures = self.draw([pair.caption for pair in self.world.pairs], seeds=SEEDS)
        targets = reconstructed(self.substrate, self.world.pictures([pair.scene for pair in self.world.pairs]))
        return np.einsum("psd,pd->ps", self.copy(pictures), self.copy(targets))

    @property
    def found(self) -> np.ndarray:
        """Which pairs are reproduced with nine of ten seeds, bool [P]."""
        return (self.reproduced >= self.copy.threshold).sum(1) >= NEEDED


def _point(value: float, count: int) -> Estimate:
    """A figure that is known exactly."""
    return Estimate(float(value), float("nan"), float("nan"), count, 1)


def _psnr(case: Case) -> Estimate:
    real = case.real(200)
    error = ((reconstructed(case.substrate, real).astype(float) - real) ** 2).mean((1, 2, 3)) / 255**2
    return mean_interval(-10 * np.log10(np.maximum(error, 1e-10)))


def _reconstruction_copy(case: Case) -> Estimate:
    real = case.real(200)
    return mean_interval((case.copy(real) * case.copy(reconstructed(case.substrate, real))).sum(-1))


def _background(case: Case) -> Estimate:
    held = case.one + case.several
    grounds = [scene.background for scene, _ in held]
    pictures = case.draw([text for _, text in held])
    return share_interval(background_right(pictures, [g.kind for g in grounds], ["; ".join(g.colours) for g in grounds]))


def _alignment(case: Case) -> Estimate:
    held = case.one + case.several
    texts = [text for _, text in held]
    reached = case.alignment(case.world.pictures([scene for scene, _ in held]), texts)
    return mean_interval(case.alignment(case.draw(texts), texts) / reached.mean())


def _unconditional_background(case: Case) -> Estimate:
    # A border agrees as well as all but one in a hundred of real pictures' do after the autoencoder.
    least = np.quantile(nearest_grounds(reconstructed(case.substrate, case.real(300)))[1], 0.01)
    return share_interval(nearest_grounds(case.unconditional)[1] >= least)


def _unconditional_thing(case: Case) -> Estimate:
    held = case.world.held_out(40, several=False, seed=2)
    real = reconstructed(case.substrate, case.world.pictures([scene for scene, _ in held]))
    painter = case.world.corpus.painter
    others = nearest_things(case.copy, painter, real, [{scene.main.concept} for scene, _ in held])
    return share_interval(nearest_things(case.copy, painter, case.unconditional) >= np.quantile(others, 0.95))


def _unconditional_kid(case: Case) -> Estimate:
    describe = case.alignment.pictures
    held = case.world.held_out(case.prompts, seed=3)
    real = describe(case.world.pictures([scene for scene, _ in case.world.held_out(max(200, case.prompts), seed=4)]))
    conditional = describe(case.draw([text for _, text in held], guidance=1.0, seeds=(0,))[:, 0])
    free = describe(case.unconditional)
    rng = np.random.default_rng(0)

    def ratio(first: np.ndarray, second: np.ndarray) -> float:
        width = np.sqrt(real.shape[1])  # unit vectors to unit variance, which the kernel expects
        top, bottom = (kernel_distance(x * width, real * width, rng, subsets=1, subset_size=10**6)[0] for x in (first, second))
        return top / bottom if bottom > 0 else float("inf")

    rows = np.random.default_rng(1).integers(len(free), size=(200, 2, len(free)))
    drawn = np.array([ratio(free[a], conditional[b]) for a, b in rows])
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(ratio(free, conditional), float(low), float(high), len(free), 1)


def eot_states(substrate: Any, texts: list[str]) -> np.ndarray:
    """The text encoder's state at the first <eot> of each text, float32 [N, d]."""
    ids = substrate.tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    encoder = substrate.text_encoder
    with torch.no_grad():
        parts = [pool_at_eot(encoder(part.to(substrate.device)).last_hidden_state.float().cpu(), part) for part in ids.split(128)]
    return torch.cat(parts).numpy()


def _caption_first(case: Case) -> Estimate:
    tower = load_picture_tower(case.world.judges / "picture-tower")
    held = case.world.held_out(CAPTIONS, seed=5)
    pictures = torch.from_numpy(case.world.pictures([scene for scene, _ in held])).permute(0, 3, 1, 2).float() / 127.5 - 1
    texts = tower.project(torch.from_numpy(eot_states(case.substrate, [text for _, text in held])))
    with torch.no_grad():
        cosines = texts @ torch.cat([tower(part) for part in pictures.split(128)]).T
    return share_interval((cosines.argmax(1) == torch.arange(len(held))).numpy())


def _distances(states: np.ndarray) -> np.ndarray:
    """Mean distance of each state [N, d] to all others, [N]."""
    squares = (states**2).sum(1)
    distance = np.sqrt(np.maximum(0, squares[:, None] + squares - 2 * states @ states.T))
    return distance.sum(1) / (len(states) - 1)


def _title_distance(case: Case) -> Estimate:
    titles, captions = _different_texts(case)
    up, down = (_distances(eot_states(case.substrate, texts))[:, None] for texts in (titles, captions))
    return bootstrap(lambda a, b: (a @ up[:, 0]) / (b @ down[:, 0]), [up, down], float(up.mean() / down.mean()))


def _different_texts(case: Case) -> tuple[list[str], list[str]]:
    if case.has_world:
        return [pair.caption for pair in case.world.pairs], [text for _, text in case.world.held_out(200, seed=6)]
    sets = case.substrate.data.sets
    return list(load_prompts(sets["memorized"]).unique().prompts), list(load_prompts(sets["not memorized"]).unique().prompts)


def _reproduced_once(case: Case) -> Estimate:
    return share_interval(case.found[np.array([pair.copies == 1 for pair in case.world.pairs])])


def _reproduced_rising(case: Case) -> Estimate:
    copies = np.array([pair.copies for pair in case.world.pairs])
    levels = np.unique(copies)
    return _point(spearmanr(levels, [case.found[copies == level].mean() for level in levels]).statistic, len(copies))


def _reproduced_lengths(case: Case) -> Estimate:
    lengths = np.array([pair.length for pair in case.world.pairs])
    return _point(min(case.found[lengths == length].sum() for length in np.unique(lengths)), len(lengths))


def _memorized_copy(case: Case) -> Estimate:
    if not case.found.any():
        raise NotMeasured("no prompt is reproduced with nine of ten seeds.")
    return mean_interval(case.reproduced[case.found])


def _saturated(case: Case) -> Estimate:
    held = case.one if case.has_world else None
    if held is None:
        raise NotMeasured("no real pictures of its prompts are at hand.")
    outside = [
        ((p < SATURATED[0]) | (p > SATURATED[1])).any(-1).mean((-2, -1)) for p in (case.draw([t for _, t in held]), case.world.pictures([s for s, _ in held]))
    ]
    return mean_interval(outside[0] - outside[1][:, None])


def _named(case: Case) -> Estimate:
    path = minisd2_folder() / "named.csv"
    if not path.exists():
        raise NotMeasured("nobody has looked at pictures and written down what they show.")
    with open(path, encoding="utf-8", newline="") as handle:
        right = [int(row["right"]) for row in csv.DictReader(handle)]
    return _point(sum(right), len(right))


FIGURES: dict[str, Callable[[Case], Estimate]] = {
    "psnr": _psnr,
    "reconstruction-copy": _reconstruction_copy,
    "one-thing-first": lambda case: share_interval(case.ranks_of_one < 1),
    "one-thing-five": lambda case: share_interval(case.ranks_of_one < 5),
    "several-first": lambda case: share_interval(case.ranks_of_several < 1),
    "several-five": lambda case: share_interval(case.ranks_of_several < 5),
    "background": _background,
    "alignment": _alignment,
    "unconditional-background": _unconditional_background,
    "unconditional-thing": _unconditional_thing,
    "unconditional-kid": _unconditional_kid,
    "caption-first": _caption_first,
    "title-distance": _title_distance,
    "duplicates": lambda case: _point(case.world.corpus.share_of_duplicates, case.world.corpus.epoch_length),
    "reproduced-once": _reproduced_once,
    "reproduced-rising": _reproduced_rising,
    "reproduced": lambda case: _point(case.found.sum(), len(case.found)),
    "reproduced-lengths": _reproduced_lengths,
    "memorized-copy": _memorized_copy,
    "saturated": _saturated,
    "named": _named,
}
