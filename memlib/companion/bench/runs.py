"""Timed runs of mitigations, and the files in which ``memlib bench mitigations --runs`` leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

from memlib.base.paths import data_folder
from memlib.results.table import reading


@dataclass(frozen=True)
class Run:
    """One timed batch: seconds, U-Net rows and decodes a picture, and the most memory in use meanwhile (MiB)."""

    prompts: str
    mitigation: str
    turn: int
    seconds: float
    evaluations: float
    decodes: float
    peak_mib: float


def by_turn(runs: Sequence[Run], value: str) -> pd.DataFrame:
    """A quantity of the runs ("seconds", "evaluations", ...), a row for each kind of prompts and turn, a column a mitigation, none first."""
    frame = pd.DataFrame([asdict(run) for run in runs])
    names = dict.fromkeys(["none", *frame["mitigation"]])
    return frame.pivot(index=["prompts", "turn"], columns="mitigation", values=value)[list(names)]


def path_of(substrate: str) -> Path:
    """Return where the runs of a substrate are kept."""
    return data_folder() / "bench" / f"{Path(substrate).name}-runs.csv"


def write(runs: Sequence[Run], source: str, path: Path) -> None:
    """Write runs to a CSV file, one a row; `source`, where they come from, stands in the first row."""
    table = pd.DataFrame([asdict(run) for run in runs]).round(5)
    table["source"] = [source, *[""] * (len(table) - 1)]
    table.to_csv(path, index=False)


def read(substrate: str) -> tuple[list[Run], str] | None:
    """Return the runs kept for a substrate and their source, None where nothing is; raises InputError for a file that cannot be read."""
    path = path_of(substrate)
    if not path.is_file():
        return None
    with reading(path, "table of kept times"):
        table = pd.read_csv(path)
        names = [field.name for field in fields(Run)]
        return [Run(*row) for row in table[names].itertuples(index=False)], str(table["source"][0])
