"""Running a fine-tuning with checkpoints, and the folder that it ends in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.base.writing import replacing_folder, write_table, write_text
from memlib.models.catalogue import locate
from memlib.models.checkpoint import check_folder
from memlib.models.devices import bfloat16_pays, device_of
from memlib.models.substrate import load
from memlib.training.finetune.examples import TrainingSet
from memlib.training.finetune.part import FinetunePart
from memlib.training.finetune.recipes import Recipe
from memlib.training.minisd.trainer import Schedule, Trainer


def finetune(
    examples: TrainingSet,
    recipe: Recipe,
    folder: Path,
    *,
    base: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    until: int | None = None,
    progress: bool = True,
    checkpoint_every: float = 120.0,
    recompute: bool = False,
) -> Trainer:
    """Fine-tune the U-Net of `base` (by default the recipe's) and return the trainer; checkpoints go to `folder`.

    A second call goes on from the last checkpoint, up to step `until` (0: none) or the recipe's end. `precision` "bfloat16" computes the U-Net,
    the latents and the text states so, with weights in float32. Raises InputError if `folder` holds a run with another base,
    recipe or training set.
    """
    place = device_of(device)
    substrate = load(base or recipe.base, place, "float32")
    same_run(folder, digest([substrate.weights_hash, examples.fingerprint, recipe.settings]))
    part = FinetunePart(substrate, examples, recipe, half_precision(place, precision), recompute)
    trainer = trainer_for(part, recipe, folder, place, checkpoint_every)
    if until != 0:
        trainer.run(until, progress)
    return trainer


def half_precision(place: torch.device, precision: str) -> bool:
    """Whether `precision` ("auto", "float32" or "bfloat16") asks for bfloat16 on this device."""
    return bfloat16_pays(place) if precision == "auto" else precision == "bfloat16"


def trainer_for(part: FinetunePart, recipe: Recipe, folder: Path, place: torch.device, checkpoint_every: float = 120.0) -> Trainer:
    """Return the trainer of a part under a recipe, at the last checkpoint in `folder`."""
    schedule = Schedule(recipe.steps, recipe.lr, recipe.warmup, recipe.ema, recipe.weight_decay, decay=False, betas=recipe.betas)
    return Trainer(part, schedule, folder, place, checkpoint_every)


def same_run(folder: Path, made_from: str) -> None:
    """Mark `folder` with what its run is made from; raises InputError if it holds one made from something else."""
    mark = folder / "run.json"
    if mark.exists():
        if json.loads(mark.read_text())["made_from"] != made_from:
            raise InputError(f"{folder} holds a fine-tuning with another base, recipe or training set: remove that folder, or give another one.")
        return
    write_text(mark, json.dumps({"made_from": made_from}) + "\n")


def export(trainer: Trainer, base: str | Path, target: Path) -> None:
    """Write `target`, a `StableDiffusionPipeline` folder with the fine-tuned U-Net in float32; the other parts link to the base's.

    Where links are not possible the parts are copied. The base must be a folder of its own, not one kept as a difference.
    """
    source, _, _ = locate(base)
    variant = check_folder(source)
    part = trainer.part
    target.mkdir(parents=True, exist_ok=True)
    trained = {name: value.clone() for name, value in part.module.state_dict().items()}
    part.module.load_state_dict(trainer.averaged_state())
    with replacing_folder(target / "unet") as unet:
        part.module.save_pretrained(unet, safe_serialization=True, variant=variant)
    part.module.load_state_dict(trained)
    index = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
        link = target / name
        if link.is_symlink() or link.exists():
            continue
        try:
            link.symlink_to((source / name).resolve(), target_is_directory=True)
        except OSError:
            with replacing_folder(link) as copied:
                shutil.copytree(source / name, copied, dirs_exist_ok=True)
    write_text(target / "model_index.json", json.dumps(index, indent=2) + "\n")


def write_prompts(examples: TrainingSet, path: Path) -> None:
    """Write a prompt set: each caption once, its copies, and its picture or pictures, separated by ` | `.

    A folder stands for its pictures where a caption has all of them and no others.
    """
    by_caption: dict[str, list[Any]] = {}
    for example in examples.examples:
        by_caption.setdefault(example.caption, []).append(example)
    inside: dict[str, int] = {}
    for example in examples.examples:
        inside[str(Path(example.picture).parent)] = inside.get(str(Path(example.picture).parent), 0) + 1
    rows = []
    for caption, found in by_caption.items():
        folders = {str(Path(example.picture).parent) for example in found}
        whole = len(found) > 1 and len(folders) == 1 and inside[next(iter(folders))] == len(found)
        pictures = next(iter(folders)) if whole else " | ".join(example.picture for example in found)
        rows.append([caption, pictures, max(example.copies for example in found)])
    write_table(path, pd.DataFrame(rows, columns=["prompt", "training_picture", "copies"]))
