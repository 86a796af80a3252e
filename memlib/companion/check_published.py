"""A check that a set-up reproduces what others measured: twenty minutes of detectors on published prompt lists, ours beside theirs.

    memlib published sd14

The figures need no training picture: how well the first step, or the whole run, tells memorized prompts from others. They stand in
data/reported/detection.csv. Prompts are as many as `--minutes` allow, at the speed that is measured first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from memlib.base.errors import InputError
from memlib.base.numbers import counted
from memlib.base.paths import data_folder
from memlib.companion.cost import calibrate
from memlib.experiment.run import Experiment
from memlib.probes.detectors import REGISTRY
from memlib.probes.detectors.evaluation import evaluate, measure_all

COLUMNS = ["detector", "seeds", "metric", "value", "setting", "source"]
SHARPNESS_ROWS = 6  # U-Net rows of a sample, those with derivatives counted twice.


def reported() -> pd.DataFrame:
    """The published figures, one row each; raises InputError if the table is missing or not understood."""
    path = data_folder() / "reported" / "detection.csv"
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"The table of published figures {path} cannot be read: restore it from the repository.") from error
    if list(table.columns) != COLUMNS or not set(table["detector"]) <= set(REGISTRY):
        raise InputError(f"The table of published figures {path} is not understood: restore it from the repository.")
    return table


def rows_per_prompt(figures: pd.DataFrame, steps: int) -> float:
    """U-Net rows that one prompt takes for all of the figures, what they share counted once."""
    seeds = int(figures["seeds"].max())
    names = list(figures["detector"])
    whole = any(name.endswith("-all") for name in names)
    return 2 * steps * seeds * whole + 2 * (not whole) + SHARPNESS_ROWS * ("sharpness" in names)


def affordable(minutes: float, row_seconds: float, per_prompt: float, most: int = 500) -> int:
    """How many prompts of each of two lists fit into so many minutes, at most `most`; raises InputError for fewer than 10."""
    count = int(min(most, minutes * 60 / (2 * per_prompt * row_seconds)))
    if count < 10:
        raise InputError(f"{minutes:g} minutes are enough for {count} prompts of each list here, which tells nothing: allow more with --minutes.")
    return count


def compare(run: Experiment, figures: pd.DataFrame, memorized: str, others: str, count: int) -> pd.DataFrame:
    """Measure every published figure on `count` prompts of each list: `ours` with its interval `low` to `high`, and `theirs`.

    `agrees` says whether theirs lies within our interval; None where nothing was measured, for the `reason` given.
    """
    groups = [run.group(memorized, count, "memorized"), run.group(others, count, "not memorized")]
    rows: list[dict[str, Any]] = []
    for seeds in sorted(map(int, figures["seeds"].unique())):
        part, run.seeds = figures[figures["seeds"] == seeds], tuple(range(seeds))
        for detector, found in measure_all(groups, [REGISTRY[name] for name in part["detector"].unique()]).items():
            judged = evaluate(detector, *((found, found) if isinstance(found, str) else found))
            for row in rows_of(part[part["detector"] == detector.name]):
                ours = getattr(judged, row.metric)
                measured = {} if ours is None else {"ours": ours.value, "low": ours.low, "high": ours.high}
                rows.append({"detector": row.detector, "seeds": row.seeds, "metric": row.metric, "prompts": len(groups[0]) + len(groups[1]),
                             "theirs": row.value, "setting": row.setting, "source": row.source, "reason": judged.reason,
                             "agrees": None if ours is None else bool(ours.low <= row.value <= ours.high), **measured})  # fmt: skip
    return pd.DataFrame(rows)


def rows_of(table: pd.DataFrame) -> Iterator[Any]:
    """The rows of a table, columns as attributes: pandas' own types know nothing of what they hold."""
    return table.itertuples()


def as_text(table: pd.DataFrame) -> str:
    """The table as it is printed: ours with its interval against theirs."""
    lines = []
    for row in rows_of(table):
        ours = f"not measured ({row.reason})" if row.agrees is None else f"{row.ours:.3f} [{row.low:.3f}, {row.high:.3f}]"
        verdict = {True: "theirs within our interval", False: "theirs outside our interval", None: ""}[row.agrees]
        theirs = f"theirs {row.theirs:.3f} ({row.setting}; {row.source})"
        lines.append(f"{row.detector} with {counted(row.seeds, 'seed')}, {row.metric}: ours {ours}, {theirs}. {verdict}".rstrip())
    return "\n".join(lines)


def within(substrate: str, memorized: str, others: str, minutes: float, steps: int) -> pd.DataFrame:
    """Compare as many prompts of two lists as fit into so many minutes here (`compare`).

    Raises InputError for minutes that are enough for fewer than 10 prompts, and for lists that are not at hand.
    """
    figures = reported()
    experiment = Experiment(substrate, n_seeds=int(figures["seeds"].max()), steps=steps, progress=True)
    count = affordable(minutes, calibrate(experiment.substrate).row_seconds, rows_per_prompt(figures, steps))
    print(f"At most {count} prompts of {memorized} against as many of {others}.")
    return compare(experiment, figures, memorized, others, count)
