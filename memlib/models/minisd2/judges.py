"""The picture tower that the text encoder was trained with: it says which picture a caption means to the encoder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from memlib.base.errors import InputError
from memlib.models.minisd.judges import TwoTowers, write_judge
from memlib.models.minisd.models import PictureEncoder


class PictureTower(nn.Module):
    """Call it with pictures [N, 3, 64, 64] in [-1, 1], or `project` <eot> states [N, d]: unit vectors [N, d] of one space."""

    def __init__(self, channels: list[int], width: int):
        super().__init__()
        self.picture = PictureEncoder(channels, width)
        self.projection = nn.Linear(width, width, bias=False)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.picture(pictures), dim=-1)

    @torch.no_grad()
    def project(self, states: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.projection(states), dim=-1)


def save_picture_tower(towers: TwoTowers, channels: list[int], width: int, folder: Path) -> None:
    """Write what belongs to pictures of a text encoder's two towers, in half precision."""
    kept = {name: value for name, value in towers.state_dict().items() if name.split(".")[0] in ("picture", "projection")}
    write_judge(folder, kept, {"channels": channels, "width": width})


def load_picture_tower(folder: Path) -> PictureTower:
    """Read what `save_picture_tower` wrote; raises InputError where it is missing."""
    if not (folder / "config.json").exists():
        raise InputError(f"No picture tower at {folder}; run `memlib minisd2 train text`.")
    config = json.loads((folder / "config.json").read_text())
    tower = PictureTower(config["channels"], config["width"])
    tower.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    return tower.eval()
