"""Scores by name: the metric behind each, and what the pictures of a group's prompts are judged against.

Values are kept in the store prompt by prompt, under the keys of the pictures and of what they were judged against.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.experiment.settings import Edit, Settings
from memlib.prompts.sets import PromptSet

SCORES = ("similarity to original", "similarity to training", "alignment", "quality")
# Scores that are known by name and shown where a notebook asks for them.
FURTHER_SCORES = ("diversity", "alignment with prompt")
# The metric's role behind a score, where it is not the copy descriptor; those that judge against a text.
ROLE_OF = {"alignment": "alignment", "alignment with prompt": "alignment", "quality": "quality", "diversity": "diversity"}
TEXTS = ("alignment", "alignment with prompt")
SCORED_AT_ONCE = 64  # Prompts whose pictures are held together while they are scored.


class Scored(Protocol):
    """What scores ask of a group of prompts: its pictures by edit, and what these are judged against (`memlib.experiment.group.Group`)."""

    @property
    def experiment(self) -> Settings: ...

    @property
    def prompts(self) -> PromptSet: ...

    @property
    def descriptions(self) -> list[str]: ...

    @property
    def training(self) -> list[np.ndarray] | None: ...

    def __len__(self) -> int: ...

    def keys(self, edit: Edit = "none") -> list[list[str]]: ...

    def pictures(self, edit: Edit = "none") -> np.ndarray: ...

    def some_pictures(self, edit: Edit, rows: Sequence[int], n_seeds: int | None = None) -> np.ndarray: ...


def score(group: Scored, name: str, edit: Edit = "none") -> np.ndarray | None:
    """One of SCORES or FURTHER_SCORES of a group's pictures under an edit: see `memlib.experiment.group.Group.score`."""
    metric = _metric(group, name)
    if metric is None:
        return None
    pictures, made_with = group.keys(edit), _compared_with(group, name)
    keys = [{"score": _stored_as(name), "metric": metric.fingerprint, "pictures": made, "with": other}
            for made, other in zip(pictures, made_with, strict=True)]  # fmt: skip

    def compute(absent: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(absent), SCORED_AT_ONCE):
            rows = absent[start : start + SCORED_AT_ONCE]
            yield from zip(rows, _judge(group, metric, name, group.some_pictures(edit, rows), rows), strict=True)

    return np.stack(group.experiment.store.scores(keys, compute))


def score_of(group: Scored, name: str, pictures: np.ndarray) -> np.ndarray | None:
    """A score of any pictures of a group's prompts and seeds, uint8 [N, S, H, W, 3]: see `memlib.experiment.group.Group.score_of`."""
    metric = _metric(group, name)
    if metric is None:
        return None
    made_from: list[Any] = [digest(pictures)]
    if name == "similarity to original":
        made_from.append(digest(group.pictures()))
    elif name == "similarity to training":
        made_from.append([digest(t) for t in group.training or ()])
    elif name in TEXTS:
        made_from.append(_texts(group, name))
    key = {"score": _stored_as(name), "metric": metric.fingerprint, "of": made_from}
    return group.experiment.store.score(key, lambda: _judge(group, metric, name, pictures, range(len(group))))


def nearest_training(metric: Any, pictures: np.ndarray, training: Sequence[np.ndarray]) -> np.ndarray:
    """Copy similarity [N, S] of pictures [N, S, H, W, 3] to the nearest of each prompt's training pictures [K, H, W, 3]."""
    vectors = metric(pictures)
    return np.stack([(vectors[i] @ metric(t).T).max(1) for i, t in enumerate(training)])


def _metric(group: Scored, name: str) -> Any | None:
    """The metric behind a score, or None where it cannot be measured; raises InputError for an unknown score."""
    if name not in (*SCORES, *FURTHER_SCORES):
        raise InputError(f"Unknown score {name!r}: use one of {', '.join((*SCORES, *FURTHER_SCORES))}.")
    metric = group.experiment.metrics[ROLE_OF.get(name, "copy")]
    if not metric.available or (name == "diversity" and len(group.experiment.seeds) < 2):
        return None
    return None if name == "similarity to training" and group.training is None else metric


def _stored_as(name: str) -> str:
    """How the store calls a score: the same texts give the same alignment under either name."""
    return "alignment" if name in TEXTS else name


def _compared_with(group: Scored, name: str) -> list[Any]:
    """What each prompt's pictures are compared with under a score, as a part of the store's key."""
    if name == "similarity to original":
        return group.keys()
    if name == "similarity to training":
        return [digest(pictures) for pictures in group.training or ()]
    if name in TEXTS:
        return _texts(group, name)
    return [None] * len(group)


def _texts(group: Scored, name: str) -> list[str]:
    return group.descriptions if name == "alignment" else list(group.prompts.prompts)


def _judge(group: Scored, metric: Any, name: str, pictures: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """A score of the pictures of prompts `rows`, [R, S] or [R]."""
    if name == "similarity to original":
        return metric.similarity(pictures, group.some_pictures("none", rows, pictures.shape[1]))
    if name == "similarity to training" and group.training is not None:
        return nearest_training(metric, pictures, [group.training[row] for row in rows])
    if name in TEXTS:
        texts = _texts(group, name)
        return metric(pictures, [texts[row] for row in rows])
    return metric(pictures)
