"""The rounds of MiniSD's remedies: their models, kept in the runs folder, and the table of what was measured of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from memlib.experiment.run import Experiment
from memlib.models.minisd.data import data_of
from memlib.models.minisd.paths import runs_folder, settings
from memlib.models.substrate import load
from memlib.probes.attack import Attack, targets
from memlib.results import remedy_rounds as kept
from memlib.training.finetune import Recipe, against
from memlib.training.minisd.run_tables import RunTable
from memlib.training.minisd.trainer import Trainer


def table() -> RunTable:
    """The table of all rounds, remedy by remedy."""
    return RunTable(kept.rounds_file(), kept.COLUMNS, kept.KEY, lambda row: (row["remedy"], int(row["steps"])), runs_folder())


def round_folder(run: str, steps: int) -> Path:
    """Where the model of a run stands as it was after so many steps."""
    return runs_folder() / run / "rounds" / f"{steps:04d}"


def train_rounds(trainer: Trainer, recipe: Recipe, steps: int, until: int | None, progress: bool) -> None:
    """Train to the end or `until` (0: not at all), and keep the model at the end of each round of `steps` steps in the runs folder."""
    against.train_rounds(trainer, recipe.base, steps, until, progress, lambda end: round_folder(recipe.name, end))


def measure_rounds(name: str, recipe: Recipe, device: str = "auto") -> None:
    """Measure the rounds of a remedy that are trained and not yet in the table.

    The table does not know by which settings a model was trained: after training anew with others, remove the remedy's rows first.
    """
    block = settings()["remedies"]
    for steps in range(block["steps"], recipe.steps + 1, block["steps"]):
        run, folder = {"remedy": name, "steps": steps}, round_folder(recipe.name, steps)
        if folder.exists() and not table().has(run):
            table().add([{**row, **run} for row in _measured(f"{recipe.name}-{steps}", folder, device)])
            print(f"{recipe.name}: {steps} steps measured")


def _measured(name: str, folder: Path, device: str) -> list[dict[str, Any]]:
    # A folder outside data/minisd would be taken for a Stable Diffusion checkpoint, with other metrics.
    run = Experiment(name, n_seeds=kept.SEEDS, **kept.SAMPLING, loaded=replace(load(folder, device), name=name, data=data_of(name)))
    aims, attack = targets(run.group("memorized", kept.MEMORIZED)), Attack(run, kept.BUDGET)
    assert aims is not None  # MiniSD's training pictures are at hand
    return kept.rows_of({start: attack.run(aims, start) for start in ("prompt", "other")}, run.group("not memorized", kept.OTHERS))
