"""Measured tables that outlive the run that made them: one file per page and substrate under ``data/measured``.

A run at paper scale takes hours on a GPU, the book is built anywhere. The run leaves its table here, with its verdict and
provenance, and every later build of the page shows it. Nothing here is typed or edited by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from memlib.base.errors import InputError
from memlib.base.paths import data_folder
from memlib.base.writing import replacing
from memlib.judging.verdicts import Verdict


@dataclass(frozen=True)
class Measured:
    """A kept table with the substrate it was measured on, how many pictures stand behind it, verdict and provenance."""

    substrate: str
    pictures: int
    rows: list[dict[str, Any]]
    verdict: Verdict
    provenance: str

    @property
    def table(self) -> pd.DataFrame:
        """The rows as a table."""
        return pd.DataFrame(self.rows)


def folder() -> Path:
    """Return the folder of kept tables."""
    return data_folder() / "measured"


def keep(page: str, found: Measured) -> Path | None:
    """Write a table for `page`, unless one of more pictures is there for the substrate; return its path, or None."""
    path = folder() / f"{page}-{found.substrate}.json"
    earlier = {kept.substrate: kept for kept in load(page)}.get(found.substrate)
    if earlier is not None and earlier.pictures > found.pictures:
        return None
    fields = {**found.__dict__, "verdict": found.verdict.to_json()}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(fields, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def load(page: str) -> list[Measured]:
    """Return the tables kept for `page`, one per substrate; raises InputError for a file that cannot be read."""
    found = []
    for path in sorted(folder().glob(f"{page}-*.json")):
        with reading(path, "measured table"):
            fields = json.loads(path.read_text(encoding="utf-8"))
            found.append(Measured(**{**fields, "verdict": Verdict.from_json(fields["verdict"])}))
    return found


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Raise InputError in place of what a damaged file with kept numbers raises inside; `what` is what such a file holds."""
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"The {what} {path.name} cannot be read: restore it from the repository or delete it.") from error
