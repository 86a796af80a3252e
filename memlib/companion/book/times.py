"""Times and sizes that a run left in data, as tables of pages: `measured`, by name.

"sampling" is what ``memlib bench`` wrote, a table for each model, "store" what ``memlib bench store`` wrote, "tried" what was tried apart from both, and
"notebooks" where the time of the committed run went.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from memlib.companion.bench.table import for_page
from memlib.companion.book.facts import FACTS

BENCH = Path("data", "bench")
MISSING = "*Not measured yet.*"


def as_markdown(table: pd.DataFrame) -> list[str]:
    """A table of texts, with its index as the first column."""
    rows = [[str(table.index.name or ""), *map(str, table.columns)], ["---"] * (table.shape[1] + 1)]
    rows += [[str(name), *map(str, row)] for name, row in zip(table.index, table.to_numpy())]
    return ["", *("| " + " | ".join(row) + " |" for row in rows), ""]


def sampling(source: Path) -> Iterator[str]:
    """A table for each model and device."""
    for path in sorted((source / BENCH).glob("sampling-*.csv")):
        for _, part in pd.read_csv(path).groupby("model", sort=False):
            shown, words = for_page(part)
            yield from ["", words, "", *as_markdown(shown)]


def plain(name: str) -> Callable[[Path], Iterator[str]]:
    """A file of texts as it stands, its last column as the words below."""

    def lines(source: Path) -> Iterator[str]:
        path = source / BENCH / name
        if path.is_file():
            table = pd.read_csv(path, dtype=str).fillna("")
            yield from as_markdown(table.iloc[:, :-1].set_index(table.columns[0]))
            yield from dict.fromkeys(table.iloc[:, -1])

    return lines


def notebooks(source: Path) -> Iterator[str]:
    """What each notebook took, and how many pictures it asked for."""
    if not (source / FACTS).is_file():
        return
    runs = json.loads((source / FACTS).read_text(encoding="utf-8"))
    seconds = pd.Series({name: float(run.get("duration") or 0) for name, run in runs.items()})
    table = pd.DataFrame({
        "minutes": (seconds / 60).map("{:.1f}".format), "share": (seconds / seconds.sum()).map("{:.0%}".format),
        "pictures looked at": pd.Series({name: f"{run.get('pictures', 0):,}" for name, run in runs.items()}),
    })  # fmt: skip
    table.index = pd.Index([f"[{name}](../notebooks/{name})" for name in table.index], name="notebook")
    yield from as_markdown(table)
    yield f"All notebooks: {seconds.sum() / 60:.0f} minutes one after the other, with the pictures of earlier runs in the store."


TABLES: dict[str, Callable[[Path], Iterator[str]]] = {
    "sampling": sampling, "store": plain("store.csv"), "tried": plain("tried.csv"), "notebooks": notebooks,
}  # fmt: skip


def measured(root: Path, name: str) -> str:
    """One of `TABLES` as Markdown, or that it was not measured; `root` is the project's."""
    return "\n".join(TABLES[name](root)) or MISSING
