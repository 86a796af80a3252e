"""Sets of prompts by name: the texts' figure prompts, MiniSD's own, published lists, or any file.

memlib prompts list
memlib prompts fetch webster500 coco
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memlib.base.errors import InputError
from memlib.base.paths import data_folder
from memlib.models.data import Rows, SubstrateData
from memlib.prompts.files import SUFFIXES, read_prompt_file
from memlib.prompts.published import Source, fetch, load_sources

FIGURES = "figures"
MINISD_SETS = (
    "minisd-memorized", "minisd-duplicated", "minisd-heldout", "minisd-template",
    "minisd-v1-small", "minisd-v1-large", "minisd-v1-class", "minisd-v1-duplicated",
)  # fmt: skip

# `clip`, Appendix A.4: what a prompt that is not memorized must look like to be compared.
CLEAN_TOKENS = (5, 40)
CLEAN_FORBIDDEN = ("http", "www")


@dataclass(frozen=True, eq=False, repr=False)
class PromptSet:
    """Prompts with what is known about each: `table` has one row per prompt, in the same order.

    `prompts` are N texts, verbatim; `table` has the column ``prompt`` and those of the source (labels,
    training picture, ...), its index 0..N-1; `source` says where the set is from and `licence` under
    which terms. Raises InputError if there are no prompts.
    """

    name: str
    prompts: tuple[str, ...]
    table: pd.DataFrame
    source: str
    licence: str

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError(f"The prompt set {self.name!r} holds no prompts: choose at least one.")

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        return f"PromptSet({self.name!r}, {len(self)} prompts, from {self.source})"

    def select(self, rows: Sequence[int] | np.ndarray | pd.Series) -> PromptSet:
        """Return the set of these rows: positions 0..N-1 in the order given, or a mask bool[N].

        Raises InputError for a mask of another length, a row out of range or no row at all.
        """
        rows = np.asarray(rows)
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise InputError(f"The mask has {rows.size} entries where {self.name!r} has {len(self)} prompts.")
            rows = np.flatnonzero(rows)
        elif rows.size and rows.dtype.kind not in "iu":
            raise InputError(f"Rows of {self.name!r} are given as {rows.dtype}: give whole numbers or a mask.")
        elif rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise InputError(f"The prompt set {self.name!r} has rows 0 to {len(self) - 1}: choose among them.")
        rows = rows.astype(int)
        table = self.table.iloc[rows].reset_index(drop=True)
        return PromptSet(self.name, tuple(table["prompt"]), table, self.source, self.licence)

    def first(self, count: int | None) -> PromptSet:
        """Return the first `count` prompts, or all of them if there are fewer or `count` is None."""
        if count is not None and count < 1:
            raise InputError(f"{count} prompts were asked for: ask for at least 1.")
        return self if count is None else self.select(range(min(count, len(self))))

    def sample(self, count: int, seed: int) -> PromptSet:
        """Return `count` prompts drawn without replacement, in the set's order; the seed fixes which.

        A smaller draw is part of a larger one, so that what was made for one serves the other.
        """
        if not 1 <= count <= len(self):
            raise InputError(f"{count} prompts were asked for, {self.name!r} has {len(self)}: ask for 1 to {len(self)}.")
        return self.select(np.sort(np.random.default_rng(seed).permutation(len(self))[:count]))

    def unique(self) -> PromptSet:
        """Return the set without repeated prompts; each keeps its first row."""
        return self.select(~self.table["prompt"].duplicated().to_numpy())


def prompt_set_names() -> tuple[str, ...]:
    """Return every name that `load_prompts` knows, aliases included."""
    return (FIGURES, *MINISD_SETS, *load_sources())


def load_prompts(name_or_path: str | Path, column: str | None = None) -> PromptSet:
    """Return a prompt set by name, or the prompts of a file (see `memlib.prompts.files`).

    Names are ``figures`` (prompts printed in the texts' figures, as printed, a row per figure),
    MiniSD's own sets, and the published lists of ``data/prompts/sources.yml``, which are fetched and
    verified on first use. `column` names the prompts' column of a file. Raises InputError for an
    unknown name, a list that can neither be found nor fetched, and for all that is wrong with a file.
    """
    name = str(name_or_path)
    if isinstance(name_or_path, str):
        if name == FIGURES or name in MINISD_SETS:
            return _committed(name)
        if (source := load_sources().get(name)) is not None:
            return _published(name, source)
    path = Path(name_or_path).expanduser()
    if not path.is_file() and path.suffix.lower() not in SUFFIXES:
        near = difflib.get_close_matches(name, prompt_set_names(), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(
            f"Unknown prompt set {name!r}{hint}: use one of {', '.join(prompt_set_names())}, or the path of a file that ends in {', '.join(SUFFIXES)}."
        )
    table = read_prompt_file(path, column)
    return PromptSet(path.stem, tuple(table["prompt"]), table, f"file {path.name}", "not stated")


def rows_of(rows: Rows) -> PromptSet:
    """The prompts that a substrate's data means by some rows of a set; numbers are compared as numbers. Raises InputError for an unknown column."""
    found = load_prompts(rows.prompts)
    for column, value in rows.where.items():
        if column not in found.table:
            raise InputError(f"The prompt set {rows.prompts!r} has no column {column!r}: it has {', '.join(map(str, found.table.columns))}.")
        cells = found.table[column]
        found = found.select(cells.astype(str) == value if isinstance(value, str) else pd.to_numeric(cells, errors="coerce") == value)
    return found


def choose_prompts(prompts: str | PromptSet, data: SubstrateData, count: int | None = None) -> PromptSet:
    """The prompt set that `prompts` stands for: a role ("memorized", "not memorized") in a substrate's data, a name, a file or a set.

    At most `count` prompts, drawn with a fixed seed where there are more.
    """
    found = load_prompts(data.sets.get(prompts, prompts)) if isinstance(prompts, str) else prompts
    if count is not None and count < 1:
        raise InputError(f"{count} prompts were asked for: ask for at least 1.")
    return found.sample(count, seed=0) if count is not None and count < len(found) else found


def _committed(name: str) -> PromptSet:
    if name == FIGURES:
        path = data_folder() / "prompts" / "figures.csv"
        source = "figures of the texts, as printed"
        licence = "short quotations, for identification"
    else:
        path = data_folder() / "minisd" / "prompts" / f"{name}.csv"
        source, licence = "MiniSD's own captions", "that of this repository"
    if not path.is_file():
        raise InputError(
            f"The prompt set {name!r} should be in {path}, which is missing: restore it from the repository or set MEMLIB_DATA to the data folder."
        )
    table = read_prompt_file(path)
    return PromptSet(name, tuple(table["prompt"]), table, source, licence)


def _published(name: str, source: Source) -> PromptSet:
    table = read_prompt_file(fetch(source), source.column)
    if source.rows not in (None, len(table)):
        raise InputError(f"The prompt list {name!r} has {len(table)} prompts where {source.rows} are expected: correct its entry in data/prompts/sources.yml.")
    if source.styles:
        names, counts = zip(*source.styles)
        table = table.assign(style=np.repeat(names, counts))
    return PromptSet(name, tuple(table["prompt"]), table, source.url, source.licence)


def clean_mask(prompts: Sequence[str], tokenizer: Any) -> np.ndarray:
    """Return bool[N]: which prompts pass `clip`'s filter for prompts that are not memorized.

    Kept are prompts of ASCII characters only, without "http" or "www" (in any capitalization), of 5 to
    40 tokens, both included, counted without start, end and padding and without truncation. Source:
    `clip`, Appendix A.4, which leaves open whether start and end count.
    """
    low, high = CLEAN_TOKENS
    keep = np.zeros(len(prompts), dtype=bool)
    for row, prompt in enumerate(prompts):
        if not prompt.isascii() or any(part in prompt.lower() for part in CLEAN_FORBIDDEN):
            continue
        ids = tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        keep[row] = low <= len(ids) <= high
    return keep
