"""Scores of all substrates beside each other and beside what texts report, for a page: each cell says whether it was measured here or imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from memlib.base.paths import data_folder
from memlib.judging.claims import reported
from memlib.judging.estimates import Estimate, mean_interval
from memlib.mitigations import REGISTRY
from memlib.results.exchange import imported
from memlib.results.orders import SCORES
from memlib.results.table import join, name_of, read

COLUMN = ["substrate", "training", "prompt_set", "steps", "guidance", "scheduler"]


@dataclass(frozen=True)
class Cell:
    """A mean with its interval, over so many prompts and seeds, and where it was measured: "measured here", or when and from which file it was imported."""

    estimate: Estimate
    prompts: int
    seeds: int
    where: str


@dataclass(frozen=True)
class Line:
    """A mitigation at its registered setting: figures that texts report, with their places, and a cell for each column; None for not measured."""

    method: str
    reported: list[tuple[float, str]]
    cells: list[Cell | None]


@dataclass(frozen=True)
class Beside:
    """One score: headings of the columns, each of one model, prompt set and protocol, and a line for each mitigation that any of them has."""

    metric: str
    columns: list[str]
    lines: list[Line]


def beside(metric: str, prompt_sets: Sequence[str]) -> Beside:
    """Return a score of the kept tables on prompts so labelled, whoever measured it."""
    rows = join(read(path) for path in sorted((data_folder() / "scores").glob("*.parquet")))
    registered = {name_of(method) for method in REGISTRY.values()}
    usual = np.array([pair in registered for pair in zip(rows["method"], rows["params"], strict=True)], bool)
    rows = rows[(rows["metric"] == metric) & rows["prompt_set"].isin(prompt_sets) & usual]
    found = list(columns(rows))
    methods = [name for name in REGISTRY if name in set(rows["method"])]
    return Beside(metric, [name for name, _ in found], [Line(name, told(metric, name), [cell(own, name) for _, own in found]) for name in methods])


def columns(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows that belong side by side, of one model, prompt set and protocol, under a heading that names these."""
    for (substrate, _, prompts, steps, guidance, scheduler), own in rows.groupby(COLUMN, sort=True):
        yield f"{substrate}, {prompts}, {steps} steps of {scheduler}, guidance {guidance:g}", own


def cell(rows: pd.DataFrame, method: str) -> Cell | None:
    """What a column has of a method's registered setting."""
    own = rows[(rows["method"] == method) & (rows["params"] == name_of(REGISTRY[method])[1]) & rows["value"].notna()]
    if own.empty:
        return None
    values = own.pivot_table(index="prompt", columns="seed", values="value", dropna=False).to_numpy(float)
    marks = {imported(run) for run in own["run"]}
    where = "measured here" if marks == {""} else f"imported {', '.join(sorted(filter(None, marks)))}"
    return Cell(mean_interval(values, missing="drop"), own["prompt"].nunique(), own["seed"].nunique(), where)


def told(metric: str, method: str) -> list[tuple[float, str]]:
    """What texts report of a method by the metric that stands for ours, means alone, with the place of each."""
    table = reported()
    metrics = [name for name, ours in SCORES.items() if ours == metric and name != "similarity_p95"]
    table = table[table["metric"].isin(metrics) & table["method"].isin(REGISTRY[method].reported)]
    return [(value, f"{text} {place}") for value, text, place in zip(table["value"].astype(float), table["text"], table["place"], strict=True)]
