"""Pictures with captions to train on: sets in memory, folders, CSV and JSON files, and the order in which they are drawn."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from memlib.base.errors import InputError
from memlib.base.pictures import SUFFIXES, read_picture


@dataclass(frozen=True)
class Example:
    """A picture (a path, or a name that the set's `read` knows), its caption, and its copies in an epoch."""

    picture: str
    caption: str
    copies: int = 1


@dataclass(frozen=True)
class TrainingSet:
    """Examples and how their pictures are read: `read(example)` gives uint8 [H, W, 3].

    An epoch is every example as often as its copies say, shuffled anew for each epoch by seed. Raises InputError for no example at
    all, an empty caption and copies below 1.
    """

    name: str
    examples: tuple[Example, ...]
    read: Callable[[Example], np.ndarray]
    _orders: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.examples:
            raise InputError(f"The training set {self.name} holds no pictures: give at least one with its caption.")
        for example in self.examples:
            if not example.caption.strip() or example.copies < 1:
                raise InputError(
                    f"The picture {example.picture} of {self.name} has the caption {example.caption!r} and {example.copies} copies: "
                    "give it a caption and at least one copy."
                )

    @cached_property
    def slots(self) -> np.ndarray:
        """One entry per slot of an epoch: the index of its example."""
        return np.repeat(np.arange(len(self.examples)), [example.copies for example in self.examples])

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        if (seed, epoch) not in self._orders:
            self._orders.clear()
            self._orders[seed, epoch] = np.random.default_rng([seed, epoch, 17]).permutation(len(self.slots))
        return self._orders[seed, epoch]

    def indices(self, seed: int, start: int, count: int) -> list[int]:
        """Return which examples stand at positions start..start+count of the training under `seed`."""
        places = (divmod(position, len(self.slots)) for position in range(start, start + count))
        return [int(self.slots[self._order(seed, epoch)[place]]) for epoch, place in places]

    def exposures(self, draws: int) -> np.ndarray:
        """Return how often each example is drawn, on average, in `draws` draws: float [E]."""
        return np.array([example.copies for example in self.examples]) * draws / len(self.slots)

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 over pictures' names, captions and copies, in order."""
        rows = [[e.picture, e.caption, e.copies] for e in self.examples]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def read_training_set(path: Path, template: str | None = None, classes: Mapping[str, str] | None = None) -> TrainingSet:
    """Return the pictures and captions at `path`, which is one of these:

    - a CSV file with columns ``picture`` and ``caption`` and perhaps ``copies``, paths relative to it;
    - a JSON file of paths, each with a list of captions of which the first is taken (as somepago/DCR has them);
    - with `template`, a folder of class folders: the caption is the template with the class's name, which `classes` gives by
      folder or is the folder's own with underscores as blanks;
    - else a folder of pictures with a ``.txt`` file of the same name beside each.

    Raises InputError for anything missing: the path, a column, a caption, a picture.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"There is no training set at {path}: give a folder of pictures, or a CSV or JSON file that lists them.")
    if path.is_dir():
        found = _from_classes(path, template, classes or {}) if template else _from_captions(path)
    elif path.suffix.lower() == ".csv":
        found = _from_csv(path)
    elif path.suffix.lower() == ".json":
        found = _from_json(path)
    else:
        raise InputError(f"The training set {path} is neither a folder nor a CSV or JSON file: give one of these.")
    if absent := [example.picture for example in found if not Path(example.picture).is_file()]:
        raise InputError(f"{len(absent)} of {len(found)} pictures that {path} lists are missing, the first is {absent[0]}: correct its path.")
    return TrainingSet(path.stem, tuple(found), lambda example: read_picture(Path(example.picture)))


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)


def _from_classes(folder: Path, template: str, classes: Mapping[str, str]) -> list[Example]:
    kinds = sorted(p for p in folder.iterdir() if p.is_dir() and _pictures(p))
    if not kinds:
        raise InputError(f"{folder} has no class folders with pictures: put the pictures of each class into a folder of its own.")
    if classes and (unknown := [kind.name for kind in kinds if kind.name not in classes]):
        raise InputError(f"{folder} has a class folder {unknown[0]!r} that the recipe does not name: it names {', '.join(classes)}.")
    names = {kind: classes.get(kind.name, kind.name.replace("_", " ")) for kind in kinds}
    return [Example(str(p.resolve()), template.format(name=names[kind])) for kind in kinds for p in _pictures(kind)]


def _from_captions(folder: Path) -> list[Example]:
    found = []
    for picture in _pictures(folder):
        caption = picture.with_suffix(".txt")
        if not caption.is_file():
            raise InputError(f"The picture {picture} has no caption: put one into {caption.name} beside it, or list both in a CSV file.")
        found.append(Example(str(picture.resolve()), " ".join(caption.read_text(encoding="utf-8").split())))
    return found


def _from_csv(path: Path) -> list[Example]:
    with open(path, encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        if missing := [column for column in ("picture", "caption") if column not in (reader.fieldnames or ())]:
            raise InputError(f"The training set {path} has no column {missing[0]!r}: it needs picture and caption, and may have copies.")
        rows = list(reader)
    try:
        return [Example(str((path.parent / row["picture"]).resolve()), row["caption"] or "", int(row.get("copies") or 1)) for row in rows]
    except ValueError as error:
        raise InputError(f"The column copies of {path} holds something other than whole numbers ({error}): correct it.") from error


def _from_json(path: Path) -> list[Example]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return [Example(str((path.parent / name).resolve()), str(captions[0])) for name, captions in content.items()]
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise InputError(f"The training set {path} is not a JSON object of paths with lists of captions ({error}): correct it.") from error
