"""Copy augmentations for training and testing the descriptor: what a generated near-copy may differ in.

A diffusion model's copy is re-encoded, slightly shifted or scaled, blurred, recoloured or partly wrong; it is not
mirrored or cropped to a corner, so those are absent, and the descriptor keeps mirrored scenes apart.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

SIZE = 64


def _one(picture: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    image = Image.fromarray(picture)
    if rng.random() < 0.7:  # shift and scale by up to a tenth
        scale = rng.uniform(0.88, 1.0)
        side = SIZE * scale
        left, top = rng.uniform(0, SIZE - side, 2)
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    for kind in (ImageEnhance.Brightness, ImageEnhance.Color, ImageEnhance.Contrast):
        if rng.random() < 0.5:
            image = kind(image).enhance(rng.uniform(0.7, 1.3))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 3.0)))
    if rng.random() < 0.3:  # down and up again
        small = int(rng.integers(12, 48))
        image = image.resize((small, small), Image.Resampling.BILINEAR).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    if rng.random() < 0.3:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(15, 70)))
        image = Image.open(buffer)
    out: np.ndarray = np.asarray(image, np.float32)
    if rng.random() < 0.3:
        out = out + rng.normal(0, rng.uniform(3, 14), out.shape)
    if rng.random() < 0.2:  # a patch of another picture
        h, w = rng.integers(8, 20, 2)
        y, x = rng.integers(0, SIZE - h), rng.integers(0, SIZE - w)
        out = out.copy()
        out[y : y + h, x : x + w] = other[y : y + h, x : x + w]
    return out.clip(0, 255).astype(np.uint8)


def augmented(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One augmented copy of each picture, uint8 [N,64,64,3]; patches come from the batch's neighbour."""
    return np.stack([_one(p, pictures[i - 1], rng) for i, p in enumerate(pictures)])
