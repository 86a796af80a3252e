"""A trained U-Net with its shared parts as a `StableDiffusionPipeline` folder that diffusers loads without our code."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTextModel

from memlib.base.errors import InputError
from memlib.base.writing import replacing_folder, write_text
from memlib.models.minisd.models import scheduler
from memlib.models.minisd.paths import minisd_folder
from memlib.models.tokenizer import build_clip_tokenizer

# Kept once: these two in minisd-v1, the tokenizer in the model of the same padding.
SHARED = ("vae", "text_encoder")
PAD_TOKENS = {"v1": "<|endoftext|>", "v2": "!"}


def _declare_float32(folder: Path) -> None:
    """Weights are stored in half precision and meant to be run in single: transformers picks the dtype it reads here."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = "float32"
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def frozen_folder(part: str, runs: Path, data: Path | None = None) -> Path:
    """Where the trained part "vae" or "text" lies: its run, or else the shipped minisd-v1 of `data` (default: data/minisd).

    Raises InputError if it is in neither.
    """
    places = (runs / part / "export", (data or minisd_folder()) / "models" / "minisd-v1" / {"vae": "vae", "text": "text_encoder"}[part])
    for place in places:
        if place.exists():
            return place
    raise InputError(f"This part needs the trained part {part}; run `memlib minisd train {part}` first.")


def export_model(unet: Any, name: str, target: Path, runs: Path, data: Path | None = None, own_text: Path | None = None, own_vae: Path | None = None) -> None:
    """Write `target` (models/`name` of `data`, by default data/minisd); what is the same in another model (SHARED, the tokenizer) is a link to it.

    `own_text` and `own_vae` are folders of a text encoder and an autoencoder in place of the shared ones.
    """
    vae = AutoencoderKL.from_pretrained(own_vae or frozen_folder("vae", runs, data), torch_dtype=torch.float16)
    text = CLIPTextModel.from_pretrained(own_text or frozen_folder("text", runs, data), torch_dtype=torch.float16)
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=build_clip_tokenizer(PAD_TOKENS[name.split("-")[1]]),
        unet=unet.half(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with replacing_folder(target) as made:
        pipe.save_pretrained(made, safe_serialization=True)
        _declare_float32(made / "text_encoder")
        _close_up(made / "tokenizer" / "tokenizer.json")
        owners = dict.fromkeys(SHARED, "minisd-v1") | {"tokenizer": f"minisd-{name.split('-')[1]}"}
        for part, owner in owners.items():
            kept = target.parent / owner / part
            if target.name != owner and kept.exists():
                shutil.rmtree(made / part)
                (made / part).symlink_to(os.path.relpath(kept, target), target_is_directory=True)
    unet.float()


def _close_up(path: Path) -> None:
    """Write a JSON file again without spaces and line ends, which are more than half of a tokenizer's."""
    write_text(path, json.dumps(json.loads(path.read_text(encoding="utf-8")), ensure_ascii=False, separators=(",", ":")))
