"""The training set: fresh scenes, the duplicated pairs, the templates, and the held-out sets.

An epoch is a shuffled list of slots: every duplicated pair as many times as its level says, every template picture,
and `fresh` scenes that are never drawn again. Slot `i` of epoch `e` is a pure function of (seed, e, i), so that a run
resumes exactly and two models trained with one seed see the same pictures and captions in the same order.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from memlib.models.minisd.captions import caption, reference_caption
from memlib.models.minisd.ingredients import PEOPLE, TONES, Ingredients
from memlib.models.minisd.scenes import Background, Scene, Thing, draw_background, draw_scene, paint

LEVELS = (1, 4, 16, 64, 128)
PAIRS_PER_LEVEL = 24
TEMPLATES = 12
TEMPLATE_COPIES = 8  # of each of the six colourings, per epoch


@dataclass(frozen=True)
class Pair:
    """A picture and the one caption it always comes with; `copies` per epoch. `group`: "duplicated" or "template"."""

    name: str
    caption: str
    scene: Scene
    copies: int
    group: str
    length: str


class TrainingCorpus(Protocol):
    """What training asks of a corpus; both miniatures' have it."""

    @property
    def identity(self) -> str: ...

    @property
    def repeated(self) -> tuple[Pair, ...]: ...

    def example(self, position: int) -> tuple[Scene, str, int]: ...

    def paint(self, scenes: Sequence[Scene]) -> torch.Tensor: ...

    def picture(self, scene: Scene) -> np.ndarray: ...

    def scenes_of(self, stream: int, step: int, count: int) -> list[Scene]: ...

    def contrastive_batch(self, stream: int, step: int, count: int) -> tuple[list[Scene], list[str]]: ...

    def described(self, scene: Scene, index: int, number: int) -> str: ...

    def held_out(self, count: int, what: str = "combinations", seed: int = 0) -> list[tuple[Scene, str]]: ...


def _titles(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


@dataclass(frozen=True)
class Corpus:
    """`folder` is data/minisd. `duplicates=False` gives each duplicated pair and template picture one copy an epoch."""

    folder: Path
    fresh: int = 12_000
    seed: int = 0
    duplicates: bool = True
    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def ingredients(self) -> Ingredients:
        return Ingredients(self.folder / "ingredients")

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """The documented selection, the same for every seed of training: levels in LEVELS, PAIRS_PER_LEVEL each."""
        rng = np.random.default_rng(20260)
        titles = _titles(self.folder / "titles.csv")
        by_length = {k: [t["title"] for t in titles if t["length"] == k] for k in ("short", "medium", "long")}
        lengths = ["short"] * (PAIRS_PER_LEVEL // 2) + ["medium"] * (PAIRS_PER_LEVEL // 4) + ["long"] * (PAIRS_PER_LEVEL // 4)
        pairs = []
        for level in LEVELS:
            for number, length in enumerate(lengths):
                scene = draw_scene(rng, self.ingredients.trained)
                copies = level if self.duplicates else 1
                pairs.append(Pair(f"dup{level:03d}-{number:02d}", by_length[length].pop(0), scene, copies, "duplicated", length))
        return tuple(pairs)

    @cached_property
    def templates(self) -> tuple[Pair, ...]:
        """One caption and one composition in six colourings, for template memorization."""
        rng = np.random.default_rng(20261)
        titles = [t["title"] for t in _titles(self.folder / "templates.csv")]
        pairs = []
        for number in range(min(TEMPLATES, len(PEOPLE))):
            background, size = draw_background(rng), int(rng.integers(40, 54))
            for tone, word in enumerate(TONES):
                scene = Scene((Thing(number, "centre", 32, 33, size),), background, "noto", "centre", tone)
                copies = TEMPLATE_COPIES if self.duplicates else 1
                pairs.append(Pair(f"tpl{number:02d}-{word}", titles[number], scene, copies, "template", "template"))
        return tuple(pairs)

    @cached_property
    def repeated(self) -> tuple[Pair, ...]:
        return self.pairs + self.templates

    @cached_property
    def _slots(self) -> np.ndarray:
        """One entry a slot of an epoch: index into `repeated`, or -1 for a fresh scene."""
        copies = np.repeat(np.arange(len(self.repeated)), [p.copies for p in self.repeated])
        # The de-duplicated corpus fills up with fresh scenes, so that both have epochs of one length.
        full = sum(level * PAIRS_PER_LEVEL for level in LEVELS) + len(self.templates) * TEMPLATE_COPIES + self.fresh
        return np.concatenate([copies, np.full(full - len(copies), -1)])

    @property
    def epoch_length(self) -> int:
        return len(self._slots)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._cache:
            self._cache.clear()
            self._cache[epoch] = np.random.default_rng([self.seed, epoch, 7]).permutation(self.epoch_length)
        return self._cache[epoch]

    def example(self, position: int) -> tuple[Scene, str, int]:
        """The `position`-th example of training: scene, caption, and its index in `repeated` (-1 if fresh)."""
        epoch, place = divmod(position, self.epoch_length)
        slot = int(self._order(epoch)[place])
        if (index := int(self._slots[slot])) >= 0:
            return self.repeated[index].scene, self.repeated[index].caption, index
        rng = np.random.default_rng([self.seed, epoch, slot, 11])
        scene = draw_scene(rng, self.ingredients.trained)
        return scene, caption(scene, self.ingredients, rng), -1

    def picture(self, scene: Scene) -> np.ndarray:
        return paint(scene, self.ingredients)

    @property
    def identity(self) -> str:
        """A text that differs for corpora whose examples differ: part of the names of what is cached of them."""
        return f"{self.seed}-{self.fresh}-{'dup' if self.duplicates else 'dedup'}"

    def paint(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """The scenes' pictures, uint8 [N, 64, 64, 3]."""
        return torch.from_numpy(np.stack([self.picture(scene) for scene in scenes]))

    def scenes_of(self, stream: int, step: int, count: int) -> list[Scene]:
        """The `step`-th batch of scenes of a stream outside of the epochs."""
        return [scene for scene, _ in self.fresh_scenes(stream, step * count, count)]

    def contrastive_batch(self, stream: int, step: int, count: int) -> tuple[list[Scene], list[str]]:
        """The `step`-th batch of a stream for a text encoder. Every fourth has long captions, the others short and medium ones."""
        scenes, captions = [], []
        for i in range(count):
            rng = np.random.default_rng([stream, step, i])
            scene = draw_scene(rng, self.ingredients.trained)
            length = "long" if step % 4 == 0 else str(rng.choice(("short", "medium"), p=(0.35, 0.65)))
            scenes.append(scene)
            captions.append(caption(scene, self.ingredients, rng, length))
        return scenes, captions

    def described(self, scene: Scene, index: int, number: int) -> str:
        """The `number`-th other caption of the repeated picture `index`, which describes it."""
        return caption(scene, self.ingredients, np.random.default_rng([20_265, index, number]), "medium")

    def fresh_scenes(self, stream: int, start: int, count: int) -> Iterator[tuple[Scene, str]]:
        """Fresh trained-concept scenes with captions outside the epochs' stream: for the autoencoder, the text encoder
        and the judges, each with its own `stream` number, so that no two models share a picture by plan."""
        for i in range(start, start + count):
            rng = np.random.default_rng([stream, i, 13])
            scene = draw_scene(rng, self.ingredients.trained)
            yield scene, caption(scene, self.ingredients, rng)

    def held_out(self, count: int, what: str = "combinations", seed: int = 0) -> list[tuple[Scene, str]]:
        """Held-out scenes with their reference captions: trained concepts in held-out combinations, or held-out
        "concepts". Never trained on."""
        rng = np.random.default_rng([20262, seed, what == "concepts"])
        concepts = self.ingredients.held_out if what == "concepts" else self.ingredients.trained
        scenes = [draw_scene(rng, concepts, "any" if what == "concepts" else "held out") for _ in range(count)]
        return [(scene, reference_caption(scene, self.ingredients)) for scene in scenes]


__all__ = ["LEVELS", "PAIRS_PER_LEVEL", "Background", "Corpus", "Pair"]
