"""Scores that travel: the rows of a substrate as one file, and the rows of somebody else's file among one's own, marked as imported.

    memlib results export sd14 --out sd14.parquet
    memlib results import sd14.parquet

The file is a table of scores (`memlib.results.table`): prompts, numbers and what made them, no pictures. Each run in it says from which table its rows
are; once imported, each says so.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memlib.base.errors import InputError
from memlib.base.paths import data_folder
from memlib.experiment.provenance import commit_day
from memlib.results.table import KEYS, append, read, title_of, write

# Without these nobody can say what a number is of.
LABELS = ("substrate", "commit", "versions", "hardware", "date", "sampler", "sampler version", "metrics")
UNKNOWN = ("", "not in a repository")
IMPORTED, TABLE = "imported", "table"
_TABLE = re.compile(r"[a-z0-9_]+-[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Taken:
    """What an import did: rows that are new and those that were there, by table, and the runs that they come from."""

    new: dict[str, int]
    there: int
    runs: tuple[Mapping[str, Any], ...]


def export(substrate: str, out: Path) -> dict[str, int]:
    """Write all rows measured here on a substrate, given by name or folder, to one Parquet file; return how many there are by table.

    Imported rows are left to those who measured them. Raises InputError where there are none, and for rows without provenance.
    """
    name, parts, counts = Path(substrate).name, [], dict[str, int]()
    for path in sorted((data_folder() / "scores").glob(f"*-{name}.parquet")):
        if path.stem.split("-", 1)[1] != name:
            continue
        rows = read(path)
        runs = {run: json.loads(run or "{}") for run in set(rows["run"])}
        rows = rows[[IMPORTED not in runs[run] for run in rows["run"]]]
        if len(rows):
            rows = rows.assign(run=rows["run"].map({run: json.dumps({**_dated(facts), TABLE: path.stem}) for run, facts in runs.items()}))
            _labelled(rows, path.name)
            parts.append(rows)
            counts[path.stem] = len(rows)
    if not parts:
        raise InputError(f"Nothing was measured on {name} here: run a page with -p profile reference, or memlib report with --keep, and export then.")
    write(out, pd.concat(parts, ignore_index=True))
    return counts


def take_in(path: Path) -> Taken:
    """Put the rows of an exported file among those here, marked as imported, all of them or none.

    Raises InputError, in one sentence, for a file that is none, for rows that do not say where they come from or contradict themselves, for rows that
    are here with another value, and for a substrate that has other weights here.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}: give one that memlib results export wrote.")
    rows = read(path)
    if rows.empty:
        raise InputError(f"{path.name} holds no rows: export it again.")
    _labelled(rows, path.name)
    _sound(rows, path.name)
    runs = {run: json.loads(run) for run in dict.fromkeys(rows["run"])}
    if unknown := [facts for facts in runs.values() if not _TABLE.fullmatch(str(facts.get(TABLE, "")))]:
        raise InputError(f"{path.name} has rows of no table that is known ({unknown[0].get(TABLE, 'none named')!r}): export them with memlib results export.")
    tables = rows["run"].map({run: facts[TABLE] for run, facts in runs.items()})
    fresh = {str(table): _new(own, data_folder() / "scores" / f"{table}.parquet", path.name) for table, own in rows.groupby(tables, sort=True)}
    mark = f"{time.strftime('%Y-%m-%d')} from {path.name}"
    marked = {run: json.dumps({key: value for key, value in facts.items() if key != TABLE} | {IMPORTED: mark}) for run, facts in runs.items()}
    for table, own in fresh.items():
        if len(own):
            append(data_folder() / "scores" / f"{table}.parquet", own.assign(run=own["run"].map(marked)))
    new = {table: len(own) for table, own in fresh.items()}
    return Taken(new, len(rows) - sum(new.values()), tuple(runs.values()))


def _dated(facts: dict[str, Any]) -> dict[str, Any]:
    """A run with its day; of one that was kept before runs had theirs, that of its commit, which says so."""
    day = "" if facts.get("date") else commit_day(str(facts.get("commit", "")))
    return {**facts, "date": f"{day} (of the commit)"} if day else facts


def imported(run: str) -> str:
    """Return when and from which file the rows of a run (JSON) were imported, "" for those measured here."""
    return str(json.loads(run or "{}").get(IMPORTED, ""))


def _labelled(rows: pd.DataFrame, name: str) -> None:
    """Refuse rows that do not say where they come from, or whose substrate is not that of their run."""
    for run, own in rows.groupby("run", sort=False):
        facts = json.loads(str(run) or "{}")
        if absent := [label for label in LABELS if facts.get(label) is None or facts[label] in UNKNOWN]:
            raise InputError(f"{len(own)} rows of {name} do not say their {absent[0]}: measure them again with this version, in a clone of the repository.")
        for substrate, training in set(zip(own["substrate"], own["training"], strict=True)):
            said = re.fullmatch(r"(.+) \((?:weights )?(\S+)\)", str(facts["substrate"]))
            of_weights = "(weights " in str(facts["substrate"])
            if said is None or said[1] != substrate or not training or (of_weights and said[2] != training):
                raise InputError(
                    f"Rows of {name} are of {substrate} with the weights {training or 'unknown'}, and their run is of {facts['substrate']}: export them again."
                )


def _sound(rows: pd.DataFrame, name: str) -> None:
    """Refuse rows that are no scores, name methods or parameters that cannot be, or contradict each other."""
    if (bad := ~np.isfinite(rows["value"]) & (rows["note"] == "")).any() or (bad := (rows["metric"] == "") & (rows["note"] == "")).any():
        raise InputError(f"{bad.sum()} rows of {name} have neither a number nor a reason why there is none: export them again.")
    for method, params in set(zip(rows["method"], rows["params"], strict=True)):
        try:
            title_of(str(method), str(params))
        except (ValueError, AttributeError) as error:
            raise InputError(f"Rows of {name} are of {method!r} with parameters that it cannot have ({error}): export them again.") from error
    if rows.duplicated(list(KEYS)).any():
        raise InputError(f"{name} has several rows of one prompt, seed, method and metric: export them again.")


def _new(rows: pd.DataFrame, path: Path, name: str) -> pd.DataFrame:
    """Return those of `rows` that the table at `path` lacks; raises InputError where it has others in their place."""
    here = read(path)
    for substrate, weights in here.groupby("substrate")["training"]:
        if others := set(rows.loc[rows["substrate"] == substrate, "training"]) - set(weights):
            raise InputError(
                f"{substrate} has the weights {', '.join(sorted(set(weights)))} here and {', '.join(sorted(others))} in {name}: "
                f"these are two models, so delete {path.name} to take theirs, or ask for theirs under another name."
            )
    both = rows.reset_index().merge(here, on=list(KEYS), suffixes=("", "_here"))
    same = (both["value"] == both["value_here"]) | (both["value"].isna() & both["value_here"].isna())
    if not same.all():
        first = both[~same].iloc[0]
        raise InputError(
            f"{(~same).sum()} rows of {name} have another value here, the first {first['metric']} of {first['method']} on {first['prompt']!r} "
            f"({first['value']:.3f} there, {first['value_here']:.3f} here): delete {path.name} to take theirs, or keep yours."
        )
    return rows.drop(index=both["index"].tolist())
