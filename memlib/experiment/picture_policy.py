"""What pages show of a model's pictures: in full, blurred, or not at all.

Pictures that a published model memorized can be someone's property or show real people. On such substrates pages show blurred thumbnails unless
another choice is made, and a copied training picture never. MiniSD's pictures are this project's own and are shown in full. See book/policy.md.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image

from memlib.base.errors import InputError
from memlib.base.hashing import digest

CHOICES = ("auto", "full", "blurred", "none")
CELLS = 12  # A blurred picture is made of so many cells a side: colours and layout stay, faces and writing do not.
THUMBNAIL = 96
GREY = 214

# From the most open to the strictest; several models in one process are shown as the strictest of them asks.
_ORDER = ("full", "blurred", "none")
_state: dict[str, Any] = {"pictures": "full", "training": True}
# Training pictures that were read in this process, by their pixels: a label may be forgotten.
_training: set[str] = set()


def choose(pictures: str, free: bool) -> str:
    """Set how pictures are shown from now on in this process, and return it; a stricter choice made before stays.

    `pictures` is "full", "blurred" or "none"; "auto" is what ``MEMLIB_PICTURES`` says, or else "full" where they are
    `free` (`memlib.models.data.SubstrateData`) and "blurred" elsewhere. Raises InputError for another word.
    """
    if pictures == "auto":
        pictures = os.environ.get("MEMLIB_PICTURES") or "auto"
    if pictures not in CHOICES:
        raise InputError(f"Pictures cannot be shown {pictures!r}: use one of {', '.join(CHOICES)}.")
    if pictures == "auto":
        pictures = "full" if free else "blurred"
    _state["pictures"] = max(pictures, _state["pictures"], key=_ORDER.index)
    _state["training"] = _state["training"] and free
    return _state["pictures"]


def reset() -> None:
    """Forget every choice: pictures are shown in full."""
    _state.update(pictures="full", training=True)
    _training.clear()


def withhold(pictures: np.ndarray) -> np.ndarray:
    """Note training pictures uint8 [K, H, W, 3], and return them: `shown` gives grey in their place where none may be shown."""
    _training.update(map(digest, pictures))
    return pictures


def is_withheld(picture: np.ndarray) -> bool:
    """Whether this is a training picture, pixel by pixel, on a page that must not show any."""
    return not _state["training"] and bool(_training) and digest(picture) in _training


def training_allowed() -> bool:
    """Whether pages may show training pictures: MiniSD's own only."""
    return _state["training"]


def shown_as() -> str:
    """How pages show pictures now: one of "full", "blurred", "none"."""
    return str(_state["pictures"])


def is_training(label: str) -> bool:
    """Whether a row or picture so labelled is one of training pictures."""
    return label.lower().startswith("training")


def shown(picture: np.ndarray) -> np.ndarray:
    """Return the picture uint8 [H, W, 3] as pages may show it: itself, a blurred thumbnail, or grey, as a withheld one always is."""
    withheld = is_withheld(picture)
    if _state["pictures"] == "full":
        return np.full_like(picture, GREY) if withheld else picture
    height, width = picture.shape[:2]
    scale = THUMBNAIL / max(height, width, 1)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if _state["pictures"] == "none" or withheld:
        return np.full((size[1], size[0], 3), GREY, np.uint8)
    cells = Image.fromarray(np.ascontiguousarray(picture)).resize((CELLS, CELLS), Image.Resampling.BOX)
    return np.asarray(cells.resize(size, Image.Resampling.BICUBIC))
