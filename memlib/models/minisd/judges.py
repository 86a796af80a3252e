"""The judges of MiniSD's pictures: a copy descriptor and an evaluator CLIP. The generator never sees either.

Both are small networks trained by this project on scenes of their own streams, saved as safetensors beside a JSON of
their settings, and loaded without unpickling anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from memlib.base.errors import InputError
from memlib.base.writing import replacing_folder
from memlib.models.minisd.models import EOT, PictureEncoder, text_encoder
from memlib.models.tokenizer import build_clip_tokenizer


class Descriptor(nn.Module):
    """Copy descriptor, after SSCD (Pizzi et al. 2022): pictures [N,3,64,64] in [-1,1] to unit vectors [N,D]."""

    def __init__(self, channels: list[int], dimensions: int):
        super().__init__()
        self.network = PictureEncoder(channels, dimensions)
        self.config: dict[str, Any] = {}

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.network(pictures), dim=-1)


def pool_at_eot(states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The state at the first <eot> of each row: [N,L,d], [N,L] -> [N,d]."""
    return states[torch.arange(len(ids)), (ids == EOT).int().argmax(1)]


class TwoTowers(nn.Module):
    """A text and a picture tower into one space of unit vectors, as CLIP (Radford et al. 2021)."""

    def __init__(self, width: int, layers: int, heads: int, image_channels: list[int], token_std: float = 0.05):
        super().__init__()
        self.text = text_encoder(width, layers, heads)
        # Words that no caption holds keep their first embedding; at CLIP's 0.02 they would be all but invisible
        # beside trained ones, and the titles of the duplicated pairs consist of such words.
        nn.init.normal_(self.text.get_input_embeddings().weight, std=token_std)
        self.picture = PictureEncoder(image_channels, width)
        self.projection = nn.Linear(width, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # log(1/0.07)

    def encode_picture(self, pictures: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.picture(pictures), dim=-1)

    def encode_ids(self, ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.projection(pool_at_eot(self.text(ids).last_hidden_state, ids)), dim=-1)


class Evaluator(nn.Module):
    """The evaluator CLIP: `encode_image(float [N,3,64,64] in [-1,1])`, `encode_text(list of str)`, both unit [N,d]."""

    def __init__(self, towers: TwoTowers):
        super().__init__()
        self.towers, self.config = towers, dict[str, Any]()
        self.tokenizer = build_clip_tokenizer()

    @torch.no_grad()
    def encode_image(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.towers.encode_picture(pictures)

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        ids = self.tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        return self.towers.encode_ids(ids.to(self.towers.log_scale.device))


def write_judge(folder: Path, state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """Make `folder` one of a judge: its weights in half precision, and its settings."""
    with replacing_folder(folder) as written:
        save_file({name: value.half().contiguous() for name, value in state.items()}, written / "model.safetensors")
        (written / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def _read(folder: Path, part: str) -> tuple[dict, dict[str, torch.Tensor]]:
    config, weights = folder / "config.json", folder / "model.safetensors"
    if not (config.exists() and weights.exists()):
        raise InputError(f"No {part} at {folder}; run `memlib minisd train {part}`.")
    state = {k: v.float() for k, v in load_file(weights).items()}
    return json.loads(config.read_text()), state


def load_descriptor(folder: Path) -> Descriptor:
    """The copy descriptor with `.config` (its JSON: "threshold" at 90 % precision, the precision/recall curve)."""
    config, state = _read(Path(folder), "descriptor")
    model = Descriptor(config["channels"], config["dimensions"])
    model.load_state_dict(state)
    model.config = config
    return model.eval()


def load_evaluator(folder: Path) -> Evaluator:
    """The evaluator CLIP with `.config` (its JSON)."""
    config, state = _read(Path(folder), "evaluator")
    towers = TwoTowers(config["width"], config["layers"], config["heads"], config["image_channels"])
    towers.load_state_dict(state)
    model = Evaluator(towers)
    model.config = config
    return model.eval()
