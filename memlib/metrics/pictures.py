"""From picture files to uint8 pictures, and from these to what the judging networks take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from memlib.base.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def read_picture(path: Path) -> np.ndarray:
    """Return the picture in a file, uint8 [H, W, 3]; raises InputError for one that cannot be read."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"The picture {path} cannot be read ({error}): replace it or leave it out.") from error


def squared(picture: np.ndarray, side: int, place: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """Return uint8 [side, side, 3]: the shorter edge resized to `side` (bilinear), then cropped at `place`, 0 to 1 from left and top."""
    height, width = picture.shape[:2]
    shorter = min(height, width)
    width, height = side * width // shorter, side * height // shorter
    if picture.shape[:2] != (height, width):
        picture = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
    left, top = round((width - side) * place[0]), round((height - side) * place[1])
    return picture[top : top + side, left : left + side]


def read_pictures(paths: Sequence[Path], side: int = 512) -> np.ndarray:
    """Return the pictures of K files, uint8 [K, side, side, 3], centre-cropped as for training; a folder stands for all in it.

    Raises InputError for a path where no picture is.
    """
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    files = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not files:
        raise InputError(f"There is no picture at {', '.join(map(str, paths))}: give picture files or a folder of them.")
    return np.stack([squared(read_picture(file), side) for file in files])


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
