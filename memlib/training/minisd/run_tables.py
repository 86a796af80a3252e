"""Tables to which trainings add their results one by one, side by side and after being stopped."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from memlib.base.writing import write_table


@dataclass(frozen=True)
class RunTable:
    """A CSV file with several rows for each run; `key` are the columns that name a run, `order` sorts the rows of the file.

    `locks` is the folder for the lock, outside the data.
    """

    file: Path
    columns: Sequence[str]
    key: Sequence[str]
    order: Callable[[Mapping[str, str]], Any]
    locks: Path

    def rows(self) -> list[dict[str, str]]:
        """All rows, as text; none where there is no file."""
        if not self.file.exists():
            return []
        with open(self.file, encoding="utf-8", newline="") as handle:
            return list(csv.DictReader(handle))

    def has(self, run: Mapping[str, Any]) -> bool:
        """Whether the table has rows of the run whose key columns are those of `run`."""
        return self._key(run) in map(self._key, self.rows())

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put the rows of finished runs into the file, in place of those that it may have of the same runs."""
        new = {self._key(row) for row in rows}
        with FileLock(self.locks / f"{self.file.stem}.lock"):
            kept = [row for row in self.rows() if self._key(row) not in new]
            # As text, so that rows read back and new ones sort alike.
            written = [{name: str(row.get(name, "")) for name in self.columns} for row in rows]
            ordered: list[Mapping[str, str]] = sorted([*kept, *written], key=self.order)
            write_table(self.file, pd.DataFrame(ordered, columns=list(self.columns)))

    def _key(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in self.key)
