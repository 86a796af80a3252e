"""A check that a set-up reproduces what others measured: twenty minutes of detectors on published prompt lists, ours beside theirs.

    python -m memlib.companion.check_published sd14

The figures need no training picture: how well the first step, or the whole run, tells memorized prompts from others. They stand in
data/reported/detection.csv. Prompts are as many as `--minutes` allow, at the speed that is measured first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from memlib.base.errors import InputError, exit_status
from memlib.base.numbers import counted
from memlib.base.paths import data_folder
from memlib.companion.plan.rates import calibrate
from memlib.experiment.run import Experiment
from memlib.probes.detectors import REGISTRY
from memlib.probes.detectors.evaluation import evaluate, measure_all

MEMORIZED, OTHERS = "webster500", "lexica"
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
    whole = figures["detector"].str.endswith("-all").any()
    return 2 * steps * seeds * bool(whole) + 2 * (not whole) + SHARPNESS_ROWS * (figures["detector"] == "sharpness").any()


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
    for seeds, part in figures.groupby("seeds"):
        run.seeds = tuple(range(int(seeds)))
        for detector, found in measure_all(groups, [REGISTRY[name] for name in part["detector"].unique()]).items():
            judged = evaluate(detector, *((found, found) if isinstance(found, str) else found))
            for row in part[part["detector"] == detector.name].itertuples():
                ours = getattr(judged, row.metric)
                measured = {} if ours is None else {"ours": ours.value, "low": ours.low, "high": ours.high}
                rows.append({"detector": row.detector, "seeds": row.seeds, "metric": row.metric, "prompts": len(groups[0]) + len(groups[1]),
                             "theirs": row.value, "setting": row.setting, "source": row.source, "reason": judged.reason,
                             "agrees": None if ours is None else bool(ours.low <= row.value <= ours.high), **measured})  # fmt: skip
    return pd.DataFrame(rows)


def as_text(table: pd.DataFrame) -> str:
    """The table as it is printed: ours with its interval against theirs."""
    lines = []
    for row in table.itertuples():
        ours = f"not measured ({row.reason})" if row.agrees is None else f"{row.ours:.3f} [{row.low:.3f}, {row.high:.3f}]"
        verdict = {True: "theirs within our interval", False: "theirs outside our interval", None: ""}[row.agrees]
        theirs = f"theirs {row.theirs:.3f} ({row.setting}; {row.source})"
        lines.append(f"{row.detector} with {counted(row.seeds, 'seed')}, {row.metric}: ours {ours}, {theirs}. {verdict}".rstrip())
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    text = "Compares detectors with published figures, in twenty minutes."
    parser = argparse.ArgumentParser(prog="python -m memlib.companion.check_published", description=text)
    parser.add_argument("substrate", help="sd14, or a folder with such a model")
    parser.add_argument("--memorized", default=MEMORIZED, help="a prompt set or file")
    parser.add_argument("--others", default=OTHERS, help="likewise, not memorized")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--csv", type=Path, help="write the table to this file too")
    options = parser.parse_args(arguments)

    def run() -> None:
        figures = reported()
        experiment = Experiment(options.substrate, n_seeds=int(figures["seeds"].max()), steps=options.steps, progress=True)
        rates = calibrate(experiment.substrate)
        count = affordable(options.minutes, rates.row_seconds, rows_per_prompt(figures, options.steps))
        print(f"At most {count} prompts of {options.memorized} against as many of {options.others}.")
        table = compare(experiment, figures, options.memorized, options.others, count)
        print(as_text(table))
        if options.csv:
            table.to_csv(options.csv, index=False)

    return exit_status(run, "Stopped; what was measured is in the store and the next run goes on from there.")


if __name__ == "__main__":
    sys.exit(main())
