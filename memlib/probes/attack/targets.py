"""The pictures that an attack tries to bring up, and the controls that say what an embedding can do without memory of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from memlib.base.errors import InputError
from memlib.base.pictures import squared
from memlib.experiment.group import Group
from memlib.metrics.pictures import centred
from memlib.models.protocol import Substrate
from memlib.prompts.sets import load_prompts
from memlib.sampling.batches import DECODE_PIXELS


@dataclass(frozen=True)
class Targets:
    """P pictures, uint8 [P, H, W, 3], each with the prompt that it belongs to; `label` is what tables call them."""

    label: str
    prompts: tuple[str, ...]
    pictures: np.ndarray

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.pictures) or not self.prompts or np.asarray(self.pictures).dtype != np.uint8:
            raise InputError("An attack needs pictures as uint8 [P, H, W, 3] with one prompt each, and at least one: pass both.")

    def __len__(self) -> int:
        return len(self.prompts)

    def first(self, count: int) -> Targets:
        """The first `count` of them."""
        return self.select(range(min(count, len(self))))

    def select(self, rows: Sequence[int]) -> Targets:
        """Those at these places."""
        return Targets(self.label, tuple(self.prompts[row] for row in rows), self.pictures[list(rows)])


def targets(group: Group, label: str | None = None) -> Targets | None:
    """Return the training pictures of a group's prompts, or None where they are not at hand.

    Of a prompt with several, as templates have them, the first is the target.
    """
    if group.training is None:
        return None
    return Targets(label or group.label, tuple(group.prompts.prompts), np.stack([pictures[0] for pictures in group.training]))


def never_seen(group: Group) -> Targets | None:
    """Return the real pictures that were held out of training with a group's captions, which are of the set "not memorized"; None where the
    substrate brings none (`memlib.models.data.SubstrateData`). What an attack reaches of them it reaches without memory.

    Raises InputError for other captions.
    """
    data = group.experiment.substrate.data
    if data.held_out is None:
        return None
    places = {caption: place for place, caption in enumerate(load_prompts(data.sets["not memorized"]).prompts)}
    if unknown := [prompt for prompt in group.prompts.prompts if prompt not in places]:
        raise InputError(f"{unknown[0]!r} is no caption of a picture held out of training: use prompts of the set {data.sets['not memorized']!r}.")
    rows = [places[prompt] for prompt in group.prompts.prompts]
    return Targets(group.label, tuple(group.prompts.prompts), data.held_out(max(rows) + 1)[rows])


@torch.no_grad()
def clean_latents(substrate: Substrate, pictures: np.ndarray) -> Tensor:
    """Return the scaled latents [P, C, h, w] of pictures, the mean of the autoencoder's posterior; float32 on the CPU."""
    side = substrate.resolution
    batch = max(1, DECODE_PIXELS // side**2)
    config, parts = substrate.vae.config, []
    for start in range(0, len(pictures), batch):
        fitting = np.stack([squared(picture, side) for picture in pictures[start : start + batch]])
        x = centred(fitting).to(substrate.device, substrate.dtype)
        parts.append(substrate.vae.encode(x).latent_dist.mean.float().cpu())
    return (torch.cat(parts) - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor
