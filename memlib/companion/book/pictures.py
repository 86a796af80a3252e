"""Pictures of executed pages, small and the same in every run: a palette instead of full colour where nobody sees it, and no stamps in the file."""

from __future__ import annotations

import base64
import io

import nbformat
import numpy as np
from PIL import Image

COLOURS = 256
# Beyond these a palette would show: mean difference of a channel, and that of the pixel below which 999 of 1,000 lie (of 255 levels).
MEAN, WORST = 4.0, 80.0


def shrink(png: bytes) -> bytes:
    """A PNG with the same pixels, or colours too near to tell apart, without names of programs or times in it; bytes hang on the pixels alone."""
    picture: Image.Image = Image.open(io.BytesIO(png))
    picture = picture.convert("RGBA" if "A" in picture.getbands() or "transparency" in picture.info else "RGB")
    if picture.mode == "RGBA":
        if picture.getchannel("A").getextrema() != (255, 255):
            return _written(picture)
        picture = picture.convert("RGB")
    few = picture.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    apart = np.abs(np.asarray(few.convert("RGB"), dtype=np.int16) - np.asarray(picture, dtype=np.int16))
    visible = apart.mean() > MEAN or np.quantile(apart.max(axis=2), 0.999) > WORST
    return _written(picture if visible else few)


def shrink_outputs(notebook: nbformat.NotebookNode) -> None:
    """Put every PNG among a notebook's outputs in this form, in place."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = base64.b64encode(shrink(base64.b64decode(data["image/png"]))).decode() + "\n"


def _written(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.info = {}
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
