"""What fine-tuning against memorization does round by round: what an attack still brings back, and what other prompts lose.

Kept is data/minisd/remedy_rounds.csv, with a row per remedy, round (`steps` of training at its end) and prompt. Memorized prompts have whether
the picture comes by the prompt alone (`at_once`: the attack's test before its first step), and whether the attack brings it back from the prompt
(`from_prompt`, which it also does where the prompt alone does) or from another one (`from_other`), 0 or 1. Prompts that are not memorized have
alignment with the prompt and quality, means over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memlib.experiment.group import Group
from memlib.experiment.run import Experiment
from memlib.judging.estimates import Estimate, mean_interval, share_interval
from memlib.models.minisd.paths import minisd_folder
from memlib.probes.attack import Attacked, Budget

KEY = ("remedy", "steps")
COLUMNS = (*KEY, "prompts", "prompt", "at_once", "from_prompt", "from_other", "alignment", "quality")
# What notebook 20 measures at its defaults.
BUDGET = Budget(steps=40, samples=4, every=10, sampling_steps=25)
MEMORIZED, OTHERS, SEEDS = 8, 16, 2
SAMPLING: dict[str, Any] = {"steps": 50, "guidance": 7.5, "scheduler": "ddim"}
SCORES = {"alignment": "alignment with prompt", "quality": "quality"}
BACK, AT_ONCE = "brought back by the attack", "given by the prompt alone"


def rounds_file() -> Path:
    """Where the table of all rounds lies."""
    return minisd_folder() / "remedy_rounds.csv"


def rows_of(found: Mapping[str, Attacked], other: Group) -> list[dict[str, Any]]:
    """Return the table's rows of one model, without remedy and steps: from attacks on memorized pictures begun at their "prompt" and at an
    "other" one, and from prompts that are not memorized."""
    rows = [
        {"prompts": "memorized", "prompt": prompt, "at_once": int(found["prompt"].at_once[row, 0]),
         **{f"from_{start}": int(one.brought_back[row]) for start, one in found.items()}}
        for row, prompt in enumerate(found["prompt"].targets.prompts)
    ]  # fmt: skip
    scores = {column: other.score(score) for column, score in SCORES.items()}
    for row, prompt in enumerate(other.prompts.prompts):
        means = {column: round(float(np.mean(values[row])), 4) for column, values in scores.items() if values is not None}
        rows.append({"prompts": "not memorized", "prompt": prompt, **means})
    return rows


def read_rounds() -> pd.DataFrame | None:
    """The table, or None where nothing was measured; quantities that a row does not have are NaN."""
    return pd.read_csv(rounds_file()) if rounds_file().exists() else None


def measured_alike(run: Experiment, budget: Budget) -> bool:
    """Whether an experiment and the budget of its attack are those that the rounds were measured with, up to the prompts."""
    return budget == BUDGET and len(run.seeds) == SEEDS and all(getattr(run, name) == value for name, value in SAMPLING.items())


def estimates(rows: pd.DataFrame) -> dict[str, Estimate]:
    """Return what the rows of one model amount to: the shares of memorized prompts that the attack, from either start, and the prompt alone
    bring up, with Wilson's interval, and the means of alignment and quality; what was not measured is absent."""
    rows = rows.reindex(columns=list(COLUMNS))
    known, other = rows[rows["prompts"] == "memorized"], rows[rows["prompts"] == "not memorized"]
    found = {BACK: known[["from_prompt", "from_other"]].max(axis=1), AT_ONCE: known["at_once"]}
    shares = {title: share_interval(flags.to_numpy(dtype=int)) for title, flags in found.items() if len(flags)}
    return shares | {title: mean_interval(other[column].to_numpy(float)) for column, title in SCORES.items() if other[column].notna().any()}


def through_training(rounds: pd.DataFrame, before: pd.DataFrame | None = None) -> dict[str, dict[str, dict[int, Estimate]]]:
    """Return for each quantity of `estimates`, and each remedy, the estimate by training step.

    `before`, rows of the model before fine-tuning, is step 0 of every remedy where it has the same prompts as the rounds.
    """
    same = before is not None and set(before["prompt"]) == set(rounds["prompt"])
    curves: dict[str, dict[str, dict[int, Estimate]]] = {}
    for remedy, own in rounds.groupby("remedy"):
        models = ({0: before} if before is not None and same else {}) | {int(str(steps)): rows for steps, rows in own.groupby("steps")}
        for steps, rows in models.items():
            for title, estimate in estimates(rows).items():
                curves.setdefault(title, {}).setdefault(str(remedy), {})[steps] = estimate
    return curves
