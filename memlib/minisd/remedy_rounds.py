"""What fine-tuning against memorization does round by round: what an attack still brings back, and what other prompts lose.

Models of the rounds stay in the runs folder. Kept with the project is data/minisd/remedy_rounds.csv: per remedy, round and prompt, whether
the picture comes by the prompt alone (`at_once`) and whether the attack brings it back from the prompt or from another one (memorized prompts), and
alignment and quality, means over seeds (prompts that are not).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from memlib.attack import Attack, Budget, targets
from memlib.experiment import Experiment
from memlib.finetune import Recipe, export
from memlib.minisd.paths import minisd_folder, runs_folder, settings
from memlib.minisd.run_tables import RunTable
from memlib.minisd.trainer import Trainer
from memlib.substrates import load

KEY = ("remedy", "steps")
COLUMNS = (*KEY, "prompts", "prompt", "at_once", "from_prompt", "from_other", "alignment", "quality")
# What notebook 20 measures at its defaults.
BUDGET = Budget(steps=40, samples=4, every=10, sampling_steps=25)
MEMORIZED, OTHERS, SEEDS = 10, 20, 2


def table() -> RunTable:
    """The table of all rounds, remedy by remedy."""
    return RunTable(minisd_folder() / "remedy_rounds.csv", COLUMNS, KEY, lambda row: (row["remedy"], int(row["steps"])), runs_folder())


def round_folder(run: str, steps: int) -> Path:
    """Where the model of a run stands as it was after so many steps."""
    return runs_folder() / run / "rounds" / f"{steps:04d}"


def train_rounds(trainer: Trainer, recipe: Recipe, steps: int, until: int | None, progress: bool) -> None:
    """Train to the end or `until`, and keep the model at the end of each round of `steps` steps."""
    for end in range(steps, recipe.steps + 1, steps):
        if trainer.step <= end:
            trainer.run(end if until is None else min(end, until), progress)
        if trainer.step == end and not round_folder(recipe.name, end).exists():
            export(trainer, recipe.base, round_folder(recipe.name, end))


def measure_rounds(name: str, recipe: Recipe, device: str = "auto") -> None:
    """Measure the rounds of a remedy that are trained and not yet in the table."""
    block = settings()["remedies"]
    for steps in range(block["steps"], recipe.steps + 1, block["steps"]):
        run, folder = {"remedy": name, "steps": steps}, round_folder(recipe.name, steps)
        if folder.exists() and not table().has(run):
            table().add([{**row, **run} for row in _measured(f"{recipe.name}-{steps}", folder, device)])
            print(f"{recipe.name}: {steps} steps measured")


def _measured(name: str, folder: Path, device: str) -> Iterator[dict]:
    # A folder outside data/minisd would be taken for a Stable Diffusion checkpoint, with that family's metrics.
    run = Experiment(name, n_seeds=SEEDS, loaded=replace(load(folder, device), name=name, family="minisd"))
    known, other = run.group("memorized", MEMORIZED), run.group("not memorized", OTHERS)
    aims, attack = targets(known), Attack(run, BUDGET)
    found = {start: attack.run(aims, start) for start in ("prompt", "other")}
    for row, prompt in enumerate(aims.prompts):
        yield {"prompts": "memorized", "prompt": prompt, "at_once": int(found["prompt"].at_once[row, 0]),
               **{f"from_{start}": int(one.brought_back[row]) for start, one in found.items()}}  # fmt: skip
    means = {score: np.asarray(other.score(score)).reshape(len(other), -1).mean(1) for score in ("alignment with prompt", "quality")}
    for row, prompt in enumerate(other.prompts.prompts):
        yield {"prompts": "not memorized", "prompt": prompt, "alignment": round(float(means["alignment with prompt"][row]), 4),
               "quality": round(float(means["quality"][row]), 4)}  # fmt: skip


def read_rounds() -> pd.DataFrame | None:
    """The table, or None where nothing was measured; quantities that a row does not have are NaN."""
    path = table().file
    return pd.read_csv(path) if path.exists() else None
