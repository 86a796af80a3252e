"""From uint8 pictures to what the judging networks take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from memlib.base.errors import InputError


def flat(pictures: Any) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return uint8 `pictures` [..., H, W, 3] as [M, H, W, 3], and the shape of what stood before H.

    Raises InputError for another type or shape, or for no picture at all.
    """
    pictures = np.asarray(pictures)
    if pictures.dtype != np.uint8 or pictures.ndim < 3 or pictures.shape[-1] != 3 or not pictures.size:
        raise InputError(f"A metric takes pictures as uint8 [..., height, width, 3], not {pictures.dtype} {list(pictures.shape)}: pass what sampling returns.")
    return pictures.reshape(-1, *pictures.shape[-3:]), pictures.shape[:-3]


def centred(pictures: np.ndarray) -> torch.Tensor:
    """Return uint8 [M, H, W, 3] as float32 [M, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def through_pil(pictures: np.ndarray, transform: Callable[[Image.Image], torch.Tensor]) -> torch.Tensor:
    """Return the stacked result of a PIL `transform` on each picture: resizing as the authors' code does it."""
    return torch.stack([transform(Image.fromarray(picture)) for picture in pictures])


@torch.no_grad()
def in_batches(
    network: Callable[[torch.Tensor], torch.Tensor],
    prepare: Callable[[np.ndarray], torch.Tensor],
    pictures: np.ndarray,
    device: Any,
    batch_size: int,
) -> torch.Tensor:
    """Return float32 network outputs [M, ...] on the CPU, `batch_size` pictures at a time."""
    outputs = [network(prepare(pictures[start : start + batch_size]).to(device)).float().cpu() for start in range(0, len(pictures), batch_size)]
    return torch.cat(outputs)
