"""Picture files as uint8 arrays, whatever kind of picture a file holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from memlib.base.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # What counts as a picture in a folder.
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
GROUND = (255, 255, 255)


def as_rgb(image: Image.Image) -> np.ndarray:
    """Return a picture of any mode, uint8 [H, W, 3]: turned as it says itself, transparency on white, 16 bits brought to 8.

    White is the ground that the tools which made Stable Diffusion's training sets put under transparent pictures (img2dataset), where
    Pillow's own conversion shows whatever colour is stored under full transparency, mostly black. Raises ValueError for a mode that has no
    known range (32-bit numbers) or no conversion.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in SIXTEEN_BIT:
        # Pillow would cut every value above 255 off instead of scaling it.
        grey = np.round(np.asarray(image).astype(np.float32) / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}, 32-bit numbers whose range is not known; save it with 8 or 16 bits")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", above.size, (*GROUND, 255)), above).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def read_picture(path: Path | IO[bytes], name: str | None = None) -> np.ndarray:
    """Return the picture in a file, uint8 [H, W, 3] (see `as_rgb`), of an animation the first frame; raises InputError for one that cannot be read.

    `name` is what the message calls it, by default its path.
    """
    try:
        with Image.open(path) as image:
            return as_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"The picture {name or path} cannot be read ({error}): replace it or leave it out.") from error


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
    paths, files = [path.expanduser() for path in paths], []
    for path in paths:
        files += [file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES] if path.is_dir() else [path]
    if absent := [path for path in files if not path.is_file()] or ([] if files else paths):
        raise InputError(f"There is no picture at {', '.join(map(str, absent))}: give picture files or a folder of them.")
    return np.stack([squared(read_picture(file), side) for file in files])
