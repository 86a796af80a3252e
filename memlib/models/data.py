"""What a substrate brings beside its weights: its prompt sets, what is known of its training, and which metrics judge its pictures.

Everything that depends on the kind of a model is asked here, so that a new kind is one object, or one YAML file (`memlib.models.catalogue`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from memlib.base.pictures import read_pictures

# Published networks (memlib.metrics.METRICS), which apply to any model of photographs and paintings.
PUBLISHED_METRICS = ("sscd", "clip-l14", "clip-b32", "aesthetic", "lpips", "inception")
PUBLISHED_SETS = {"memorized": "webster-mv86", "not memorized": "nonmem-coco"}


@dataclass(frozen=True)
class Rows:
    """Those rows of the prompt set `prompts` (a name or a file) whose columns have the values of `where`; all, for an empty one."""

    prompts: str
    where: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Repeated:
    """K training pictures that a model must not copy, uint8 [K, H, W, 3], with the caption of each and how often that came."""

    pictures: np.ndarray
    captions: tuple[str, ...]
    copies: tuple[int, ...]

    @classmethod
    def counted(cls, pictures: np.ndarray, captions: Sequence[str], copies: Sequence[int]) -> Repeated:
        """The pictures with what is given of each; a caption of several pictures comes as often as all of them together."""
        totals: Counter[str] = Counter()
        for caption, times in zip(captions, copies, strict=True):
            totals[caption] += times
        return cls(pictures, tuple(captions), tuple(totals[caption] for caption in captions))


def pictures_of_files(entry: str) -> np.ndarray:
    """Return the pictures of an entry of the column `training_picture`, uint8 [K, 512, 512, 3]: paths of files or folders, " | " between them."""
    return read_pictures([Path(path) for path in entry.split(" | ")])


@dataclass(frozen=True)
class SubstrateData:
    """The data of one substrate; what is not known of a model stays at its default.

    - `sets`: the prompt set (a name or a file) behind the roles "memorized" and "not memorized";
    - `seen_once`: prompts of the memorized ones' kind whose pictures came once in training, or None;
    - `metrics`: names of memlib.metrics.METRICS, one for a role, those that others are made from first;
    - `free`: whether pages may show its pictures, training pictures included, in full (book/policy.md);
    - `training_pictures`: from an entry of the column `training_picture` of its prompt sets to uint8 [K, H, W, 3];
    - `held_out`: real pictures of the set "not memorized", in its order, the first so many (None: all), uint8 [N, H, W, 3]; None if there are none;
    - `repeated`: the training pictures that its memorized prompts bring back, or None where they are not at hand;
    - `small`: whether a CPU samples a picture in seconds;
    - `retrained`: whether trainings of the same kind with one thing changed are kept as tables (`memlib.results.trainings`).
    """

    sets: Mapping[str, str] = field(default_factory=lambda: dict(PUBLISHED_SETS))
    seen_once: Rows | None = None
    metrics: tuple[str, ...] = PUBLISHED_METRICS
    free: bool = False
    training_pictures: Callable[[str], np.ndarray] = pictures_of_files
    held_out: Callable[[int | None], np.ndarray] | None = None
    repeated: Callable[[], Repeated] | None = None
    small: bool = False
    retrained: bool = False
