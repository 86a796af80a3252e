"""What the second miniature brings beside its weights: its data as a substrate, its corpus, held-out scenes, and the folder of its judges."""

from __future__ import annotations

import json
from functools import cached_property, lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from memlib.base.writing import write_text
from memlib.models.data import Repeated, Rows, SubstrateData
from memlib.models.minisd.corpus import Pair
from memlib.models.minisd.scenes import Scene
from memlib.models.minisd2.corpus import Corpus
from memlib.models.minisd2.language import reference, title
from memlib.models.minisd2.paths import minisd2_folder, training_settings
from memlib.models.minisd2.prompt_sets import HELD_OUT, held_out_pictures, training_pictures
from memlib.models.minisd2.prompt_sets import corpus as of_training
from memlib.models.minisd2.scenarios import SCENARIOS, pairs
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
    write_text(folder / WORLD, json.dumps(corpus) + "\n")


@lru_cache
def world_of(folder: Path) -> World | None:
    """The world of a model's folder, where one was written beside it, else None."""
    path = folder / WORLD
    return World(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def data_of(name: str) -> SubstrateData:
    """The data of the MiniSD `name`; what follows the last hyphen says what it was trained on: a scenario, "dedup", or anything else."""
    trained = name.rpartition("-")[2]

    def of(prompts: str) -> str:
        return str(minisd2_folder() / "prompts" / f"minisd-{prompts}.csv")

    return SubstrateData(
        sets={"memorized": of("memorized"), "not memorized": of("heldout"), "duplicated": of("duplicated"), "template": of("template")},
        # Memorized prompts are titles and held-out ones descriptions: what differs between them may be the wording alone.
        seen_once=Rows(of("once")),
        metrics=("minisd2-copy", "minisd2-clip", "realism", "descriptor-diversity"),
        free=True,
        training_pictures=training_pictures,
        held_out=_held_out,
        repeated=lambda: _repeated(trained),
        small=True,
        retrained=True,
    )


def _held_out(count: int | None = None) -> np.ndarray:
    return held_out_pictures(HELD_OUT if count is None else count)


def _repeated(trained: str) -> Repeated:
    """The repeated pictures; of a model fine-tuned for a scenario, the pictures that the scenario's prompts bring back."""
    found = pairs(of_training(), trained) if trained in SCENARIOS else of_training().repeated
    pictures = of_training().paint([pair.scene for pair in found]).cpu().numpy()
    return Repeated.counted(pictures, [pair.caption for pair in found], [1 if trained == "dedup" else pair.copies for pair in found])
