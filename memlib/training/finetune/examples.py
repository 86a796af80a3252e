"""Pictures with captions to train on: sets in memory, folders, CSV and JSON files, and the order in which they are drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memlib.base.errors import InputError
from memlib.base.pictures import SUFFIXES, read_picture
from memlib.prompts.files import read_prompt_file

TABLES = (".csv", ".jsonl", ".parquet", ".tsv")
PICTURE_COLUMNS = ("picture", "file_name", "image", "training_picture")


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

    - a table (CSV, JSON lines or Parquet) with the columns ``picture`` (or ``file_name`` or ``image``) and ``caption`` (or ``text`` or ``prompt``)
      and perhaps ``copies``, paths relative to it; or a folder that holds one as ``metadata.csv`` or ``metadata.jsonl``, as hubs have it;
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
        listed = next((path / f"metadata{kind}" for kind in TABLES if (path / f"metadata{kind}").is_file()), None)
        found = _from_classes(path, template, classes or {}) if template else _from_captions(path) if listed is None else _from_table(listed)
    elif path.suffix.lower() in TABLES:
        found = _from_table(path)
    elif path.suffix.lower() == ".json":
        found = _from_json(path)
    else:
        raise InputError(f"The training set {path} is neither a folder nor a table or JSON file: give one of these.")
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


def _from_table(path: Path) -> list[Example]:
    table = read_prompt_file(path)
    column = next((name for name in PICTURE_COLUMNS if name in table), None)
    if column is None:
        raise InputError(
            f"The training set {path} has no column {PICTURE_COLUMNS[0]!r} (nor {', '.join(map(repr, PICTURE_COLUMNS[1:]))}): name each caption's file there."
        )
    said = table["copies"].replace("", None).fillna(1) if "copies" in table else pd.Series(1, index=table.index)
    copies = pd.to_numeric(said, errors="coerce")
    if (wrong := said[copies.isna() | (copies % 1 != 0)]).size:
        raise InputError(f"The column copies of {path} holds something other than whole numbers ({wrong.iloc[0]!r}): correct it.")
    return [Example(str((path.parent / str(name)).resolve()), text, int(count)) for name, text, count in zip(table[column], table["prompt"], copies)]


def _from_json(path: Path) -> list[Example]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return [Example(str((path.parent / name).resolve()), str(captions[0])) for name, captions in content.items()]
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise InputError(f"The training set {path} is not a JSON object of paths with lists of captions ({error}): correct it.") from error
