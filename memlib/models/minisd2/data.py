"""What the second miniature brings beside its weights: its corpus, held-out scenes, and the folder of its judges."""

from __future__ import annotations

import json
from functools import cached_property, lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from memlib.models.minisd.corpus import Pair
from memlib.models.minisd.scenes import Scene
from memlib.models.minisd2.corpus import Corpus
from memlib.models.minisd2.language import reference, title
from memlib.models.minisd2.paths import minisd2_folder, training_settings
from memlib.models.minisd2.scenes import draw_scene, trained_concepts

WORLD = "corpus.json"  # in a model's folder: the settings of the corpus that it was trained on


class World:
    """The world that a model was trained on: its `corpus` (settings as in training.yml, which are the default), and what was held out of it."""

    def __init__(self, corpus: dict[str, Any] | None = None):
        self.corpus = Corpus(**(corpus or training_settings()["corpus"]))

    @property
    def judges(self) -> Path:
        """Folder of the copy descriptor, the evaluator and the text encoder's picture tower."""
        return minisd2_folder() / "judges"

    def held_out(self, count: int, several: bool | None = None, seed: int = 0) -> list[tuple[Scene, str]]:
        """`count` scenes in held-out combinations with their reference descriptions: of one thing, of `several`, or (None) of any number."""
        rng = Random(f"premises {several} {seed}")
        found: list[tuple[Scene, str]] = []
        while len(found) < count:
            scene = draw_scene(rng, trained_concepts(), "held out")
            if several is None or (len(scene.things) > 1) == several:
                found.append((scene, reference(scene)))
        return found

    def titles(self, count: int, seed: int = 0) -> list[str]:
        """Different titles that training did not show."""
        rng = Random(f"premises titles {seed}")
        found: set[str] = set()
        while len(found) < count:
            found.add(title(rng, trained_concepts()).text)
        return sorted(found)

    def pictures(self, scenes: list[Scene]) -> np.ndarray:
        """uint8 [N, 64, 64, 3]."""
        return np.concatenate([self.corpus.paint(scenes[i : i + 256]).cpu().numpy() for i in range(0, len(scenes), 256)])

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        return self.corpus.pairs


def write_world(folder: Path, corpus: dict[str, Any]) -> None:
    """Write the settings of the corpus that a model was trained on beside it."""
    (folder / WORLD).write_text(json.dumps(corpus) + "\n", encoding="utf-8")


@lru_cache
def world_of(folder: Path) -> World | None:
    """The world of a model's folder, where one was written beside it, else None."""
    path = folder / WORLD
    return World(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
