"""Training MiniSD part by part: which settings and data each gets, and where its weights go."""

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
from memlib.base.writing import replacing_folder, write_text
from memlib.models.devices import bfloat16_pays, device_of
from memlib.models.minisd.corpus import Corpus
from memlib.models.minisd.judges import write_judge
from memlib.models.minisd.paths import minisd_folder, runs_folder, settings
from memlib.training.minisd.calibrate import calibrate
from memlib.training.minisd.export import export_model, frozen_folder
from memlib.training.minisd.mitigated_part import MitigatedPart
from memlib.training.minisd.mitigations import get
from memlib.training.minisd.parts import ContrastivePart, DescriptorPart, UnetPart, VaePart, as_tensor
from memlib.training.minisd.trainer import Schedule, Trainer

PAD_IDS = {"v1": 49_407, "v2": 0}  # <eot>, `!`
MARKS = "marks.json"  # in a mitigated run's folder: on how many samples it acted
OTHER_PARTS = ("vae", "text", "descriptor", "evaluator")


@dataclass(frozen=True)
class Variant:
    """One U-Net: padding "v1" or "v2", with or without the duplicates, its data, and its hyper-parameters.

    `corpus` is the corpus block (`seed`, and `fresh` scenes an epoch). `replicate` is True for the shorter trainings with
    other seeds, which stay in the runs folder. `mitigation` names what acts while it trains (`memlib.training.minisd.mitigations`).
    """

    padding: str
    duplicates: bool
    corpus: dict
    settings: dict
    replicate: bool
    mitigation: str | None = None


def variant(name: str) -> Variant:
    """Read a U-Net's name: minisd-v1, minisd-v2, either with -dedup, with -sN for a replicate with seed N, and then perhaps a mitigation.

    Raises InputError for any other name.
    """
    found = re.fullmatch(r"minisd-(v[12])(-dedup)?(?:-s(\d+)(?:-([a-z]+(?:-[a-z]+)*))?)?", name)
    if found is None:
        raise InputError(
            f"There is no part {name!r}: train one of {', '.join(OTHER_PARTS)}, minisd-v1 or minisd-v2; -dedup leaves the "
            "duplicates out, -s11 makes a shorter replicate with seed 11, and a mitigation's name behind that trains it under this mitigation."
        )
    padding, dedup, seed, mitigation = found.groups()
    if mitigation is not None:
        get(mitigation)
    given = settings()
    if seed is None:
        return Variant(padding, dedup is None, given["corpus"], given["unet"], False)
    smaller = given["replicates"]
    shorter = given["unet"] | {"seed": int(seed), "steps": smaller["steps"]}
    return Variant(padding, dedup is None, {"seed": int(seed), "fresh": smaller["fresh"]}, shorter, True, mitigation)


def _corpus(duplicates: bool = True, block: dict | None = None) -> Corpus:
    return Corpus(minisd_folder(), duplicates=duplicates, **(block or settings()["corpus"]))


def _frozen(name: str, kind: Any) -> Any:
    return kind.from_pretrained(frozen_folder(name, runs_folder()), torch_dtype=torch.float32)


def unet_part(name: str, device: torch.device, half: bool) -> UnetPart:
    """The U-Net `name` ready to be trained, with its data and under its mitigation. Raises InputError where a frozen part is missing."""
    unet = variant(name)
    given = (_corpus(unet.duplicates, unet.corpus), unet.settings, _frozen("vae", AutoencoderKL), _frozen("text", CLIPTextModel),
             PAD_IDS[unet.padding], runs_folder() / "cache", device, half)  # fmt: skip
    return UnetPart(*given) if unet.mitigation is None else MitigatedPart(get(unet.mitigation), *given)


def train(name: str, device: str, precision: str, until: int | None, progress: bool, export_only: bool = False) -> None:
    """Train part `name` to its schedule's end (or `until`) and export; picks up the last checkpoint.

    The run's folder (checkpoint, log) is `runs_folder()/name`; exported weights go to data/minisd.
    """
    place = device_of(device)
    half = bfloat16_pays(place) if precision == "auto" else precision == "bfloat16"
    block = settings()[name] if name in OTHER_PARTS else variant(name).settings
    run = runs_folder() / name
    part: VaePart | ContrastivePart | DescriptorPart | UnetPart
    if name == "vae":
        part = VaePart(_corpus(), block, place, half)
    elif name in ("text", "evaluator"):
        part = ContrastivePart(_corpus(), block, place, half)
    elif name == "descriptor":
        part = DescriptorPart(_corpus(), block, _frozen("vae", AutoencoderKL), place, half)
    else:
        part = unet_part(name, place, half)
    schedule = Schedule(block["steps"], block["lr"], block.get("warmup", 100), block.get("ema"))
    trainer = Trainer(part, schedule, run, place)
    if not export_only:
        trainer.run(until, progress)
    _export(name, trainer, block)


@torch.no_grad()
def _export(name: str, trainer: Trainer, block: dict) -> None:
    part: Any = trainer.part
    folder = minisd_folder()
    part.module.load_state_dict(trainer.averaged_state())
    part.module.eval()
    if name == "vae":
        part.module.register_to_config(scaling_factor=latent_scale(part.module, part.corpus, trainer.device))
        save_part(part.module, trainer.folder / "export")
    elif name == "text":
        text = part.module.text
        save_part(text, trainer.folder / "export")
    elif name in ("descriptor", "evaluator"):
        write_judge(folder / "judges" / name, part.module.state_dict(), {**block, **calibrate(part, trainer.device)})
    elif variant(name).replicate:
        if isinstance(part, MitigatedPart):
            write_text(trainer.folder / MARKS, json.dumps(part.marks()) + "\n")
        export_model(part.module, name, trainer.folder / "pipeline", runs_folder())
        return
    else:
        export_model(part.module, name, folder / "models" / name, runs_folder())
    write_text(folder / "logs" / f"{name}.json", json.dumps(trainer.record()) + "\n")


@torch.no_grad()
def latent_scale(vae: Any, corpus: Any, device: torch.device) -> float:
    """The factor that brings the latents of 512 scenes of a stream of their own to unit variance."""
    scenes = [corpus.scenes_of(105, step, 64) for step in range(8)]
    latents = torch.cat([vae.encode(as_tensor(corpus.paint(batch)).to(device)).latent_dist.mean for batch in scenes])
    return round(1 / float(latents.std()), 5)


def save_part(module: Any, target: Path) -> None:
    """Save a diffusers or transformers module as float16 safetensors, replacing what stood there."""
    device = next(module.parameters()).device
    with replacing_folder(target) as written:
        module.half().save_pretrained(written, safe_serialization=True)
    module.float().to(device)
