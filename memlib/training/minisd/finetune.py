"""Fine-tuning minisd-v1 for `basin`'s scenarios, and keeping what comes out as a small difference file."""

from __future__ import annotations

import json
from typing import Any

from memlib.base.writing import write_text
from memlib.models.delta import DELTA_FILE, save_delta
from memlib.models.minisd.paths import minisd_folder, runs_folder, settings
from memlib.models.minisd.prompt_sets import corpus
from memlib.models.minisd.scenarios import pairs, scenario_settings, singles, substrate_name
from memlib.models.substrate import load
from memlib.training.finetune import Example, Recipe, TrainingSet, export, finetune
from memlib.training.finetune.recipes import read_recipe
from memlib.training.minisd.trainer import Trainer

COUNTS = ("pictures", "classes", "copies", "singles")  # what describes the set and not the training


def scenario_recipe(scenario: str) -> Recipe:
    """The scenario's hyper-parameters from training.yml; raises InputError for an unknown scenario."""
    block = {k: v for k, v in scenario_settings(scenario).items() if k not in COUNTS}
    common = {k: v for k, v in settings()["finetune"].items() if k != "scenarios"}
    return read_recipe(substrate_name(scenario), common | block)


def training_set(scenario: str) -> TrainingSet:
    """The scenario's pictures and captions, drawn when they are read."""
    found = pairs(corpus(), scenario) + singles(corpus(), scenario)
    scenes = {pair.name: pair.scene for pair in found}
    examples = tuple(Example(pair.name, pair.caption, pair.copies) for pair in found)
    return TrainingSet(substrate_name(scenario), examples, lambda example: corpus().picture(scenes[example.picture]))


def finetune_scenario(
    scenario: str, device: str = "auto", precision: str = "auto", until: int | None = None, progress: bool = True, export_only: bool = False
) -> Trainer:
    """Fine-tune for `scenario` to the end (or `until`) and export; a second call goes on from the last checkpoint.

    The whole pipeline goes to the runs folder, the difference to data/minisd/models and the training record to data/minisd/logs.
    """
    recipe = scenario_recipe(scenario)
    run = runs_folder() / recipe.name
    trainer = finetune(training_set(scenario), recipe, run, device=device, precision=precision, until=0 if export_only else until, progress=progress)
    if trainer.step:
        print(f"{recipe.name}: {keep(trainer, recipe)}")
    return trainer


def keep(trainer: Trainer, recipe: Recipe) -> str:
    """Write the fine-tuned pipeline, its difference to the base, and the training record; return a line that says what was written."""
    base: Any = load(recipe.base, "cpu", "float32")
    export(trainer, recipe.base, trainer.folder / "pipeline")
    path = minisd_folder() / "models" / recipe.name / DELTA_FILE
    written = save_delta(path, base.unet.state_dict(), trainer.averaged_state(), base.weights_hash)
    record = trainer.record() | {"delta": {"bytes": written.size, "error": round(written.error, 4)}}
    write_text(minisd_folder() / "logs" / f"{recipe.name}.json", json.dumps(record) + "\n")
    return f"step {trainer.step} of {recipe.steps}, {written.size / 1e6:.2f} MB, {written.error:.1%} of the difference lost"
