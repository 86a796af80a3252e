"""Training the second miniature part by part, with the first one's loop and parts: which settings and data each gets, and where it goes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel

from memlib.base.errors import InputError
from memlib.base.writing import write_text
from memlib.models.devices import bfloat16_pays, device_of
from memlib.models.minisd.judges import write_judge
from memlib.models.minisd.paths import runs_folder
from memlib.models.minisd2.corpus import Corpus
from memlib.models.minisd2.data import write_world
from memlib.models.minisd2.judges import save_picture_tower
from memlib.models.minisd2.paths import minisd2_folder, training_settings
from memlib.training.minisd.export import export_model, frozen_folder
from memlib.training.minisd.mitigated_part import MitigatedPart
from memlib.training.minisd.mitigations import get
from memlib.training.minisd.parts import ContrastivePart, DescriptorPart, UnetPart, VaePart
from memlib.training.minisd.train import PAD_IDS, latent_scale, save_part
from memlib.training.minisd.trainer import Schedule, Trainer
from memlib.training.minisd2.judges import calibrate
from memlib.training.minisd2.vocabulary import language_ids, share_unused

OTHER_PARTS = ("vae", "decoder", "text", "descriptor", "evaluator")
UNETS = ("minisd-v1", "minisd-v2", "minisd-v1-dedup", "minisd-v2-dedup")


def runs() -> Path:
    """Runs of the second miniature: a folder of their own among all runs."""
    return runs_folder() / "minisd2"


@dataclass(frozen=True)
class Recipe:
    """How one U-Net is trained: padding "v1" or "v2", its corpus and its hyper-parameters.

    `text` is the folder of a text encoder of its own; `mitigation` names what acts while it trains (`memlib.training.minisd.mitigations`).
    """

    padding: str
    corpus: dict[str, Any]
    settings: dict[str, Any]
    text: Path | None = None
    mitigation: str | None = None


def recipe(name: str, changes: str | None = None) -> Recipe:
    """The recipe of one of UNETS, under the `changes` of a recipe in training.yml; raises InputError for another name."""
    found = re.fullmatch(r"minisd-(v[12])(-dedup)?", name)
    if found is None:
        raise InputError(f"There is no part {name!r}: train one of {', '.join((*OTHER_PARTS, *UNETS))}.")
    given = training_settings(changes)
    return Recipe(found[1], given["corpus"] | {"duplicates": found[2] is None}, given["unet"])


def frozen(name: str) -> Path:
    """The folder of the trained part "vae" or "text"."""
    return frozen_folder(name, runs(), minisd2_folder())


def shown_vae() -> Path:
    """The folder of the autoencoder that pipelines have: the encoder that U-Nets were trained with, and its decoder trained further, if it was."""
    further = runs() / "decoder" / "export"
    return further if further.exists() else frozen("vae")


def unet_part(made: Recipe, device: torch.device, half: bool) -> UnetPart:
    """A U-Net ready to be trained, with its data. Raises InputError where a frozen part is missing."""
    vae = AutoencoderKL.from_pretrained(frozen("vae"), torch_dtype=torch.float32)
    text = CLIPTextModel.from_pretrained(made.text or frozen("text"), torch_dtype=torch.float32)
    corpus = Corpus(**made.corpus, device=device)
    given = (corpus, made.settings, vae, text, PAD_IDS[made.padding], runs() / "cache", device, half)
    return UnetPart(*given) if made.mitigation is None else MitigatedPart(get(made.mitigation), *given)


def schedule(block: dict[str, Any]) -> Schedule:
    return Schedule(block["steps"], block["lr"], block.get("warmup", 100), block.get("ema"), cooldown=block.get("cooldown"))


def train(name: str, device: str, precision: str, until: int | None, progress: bool, export_only: bool = False, changes: str | None = None) -> None:
    """Train part `name` to its schedule's end (or `until`) and export; picks up the last checkpoint. `changes` names a recipe of training.yml.

    The run's folder (checkpoint, log) is `runs()/name`. Weights of judges and U-Nets go to data/minisd2, those of "vae" and "text" to the run's
    folder `export`, from where the U-Nets take them.
    """
    place = device_of(device)
    half = bfloat16_pays(place) if precision == "auto" else precision == "bfloat16"
    given = training_settings(changes)
    corpus = Corpus(**given["corpus"], device=place)
    block = given[name] if name in OTHER_PARTS else recipe(name, changes).settings
    part: Any
    if name == "vae":
        part = VaePart(corpus, block, place, half)
    elif name == "decoder":
        part = VaePart(corpus, block, place, half, AutoencoderKL.from_pretrained(frozen("vae"), torch_dtype=torch.float32))
    elif name in ("text", "evaluator"):
        part = ContrastivePart(corpus, block, place, half)
    elif name == "descriptor":
        part = DescriptorPart(corpus, block, AutoencoderKL.from_pretrained(frozen("vae"), torch_dtype=torch.float32), place, half)
    else:
        part = unet_part(recipe(name, changes), place, half)
    trainer = Trainer(part, schedule(block), runs() / name, place)
    if not export_only:
        trainer.run(until, progress)
    export(name, trainer, block, changes)


def export_text(trainer: Trainer, block: dict[str, Any], tower: Path) -> None:
    """Write a text encoder to its run's folder `export`, its picture tower to `tower`, and to `export-unread` the encoder with all embeddings.

    The last one is for trainings on words that it has never read, which are all one to the others.
    """
    part: Any = trainer.part
    save_part(part.module.text, trainer.folder / "export-unread")
    share_unused(part.module.text.get_input_embeddings(), language_ids(part.corpus))
    save_part(part.module.text, trainer.folder / "export")
    save_picture_tower(part.module, block["image_channels"], block["width"], tower)


def export_unet(unet: Any, made: Recipe, name: str, target: Path) -> None:
    """Write a pipeline folder to `target`, with the corpus that its U-Net was trained on."""
    export_model(unet, name, target, runs(), minisd2_folder(), made.text, shown_vae())
    write_world(target, made.corpus)


@torch.no_grad()
def export(name: str, trainer: Trainer, block: dict[str, Any], changes: str | None = None) -> None:
    """Write the averaged weights of a part, and its record beside them."""
    part: Any = trainer.part
    folder = minisd2_folder()
    part.module.load_state_dict(trainer.averaged_state())
    part.module.eval()
    if name == "vae":
        part.module.register_to_config(scaling_factor=latent_scale(part.module, part.corpus, trainer.device))
        save_part(part.module, trainer.folder / "export")
    elif name == "decoder":
        save_part(part.module, trainer.folder / "export")
    elif name == "text":
        export_text(trainer, block, folder / "judges" / "picture-tower")
    elif name in ("descriptor", "evaluator"):
        if name == "evaluator":
            share_unused(part.module.text.get_input_embeddings(), language_ids(part.corpus))
        write_judge(folder / "judges" / name, part.module.state_dict(), {**block, **calibrate(part, trainer.device)})
    else:
        export_unet(part.module, recipe(name, changes), name, folder / "models" / name)
    write_text(folder / "logs" / f"{name}.json", json.dumps(trainer.record()) + "\n")
