"""Pictures in labelled rows, plain grids, and maps beside pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from memlib.experiment import picture_policy as care
from memlib.results.figures.style import short


def montage(rows: Mapping[str, np.ndarray], columns: Sequence[str] | None = None, title: str = "", cell: float = 0.85) -> Figure:
    """Pictures in labelled rows: label -> uint8 [K, H, W, 3]; `columns` names the K columns above them.

    Shown as `memlib.experiment.picture_policy` allows; rows whose label begins with "training" are left out where training pictures may not be shown.
    """
    allowed = {label: pictures for label, pictures in rows.items() if care.training_allowed() or not care.is_training(label)}
    return _tiles({label: [care.shown(picture) for picture in pictures] for label, pictures in allowed.items()}, columns, title, cell)


def _tiles(rows: Mapping[str, Sequence[np.ndarray]], columns: Sequence[str] | None, title: str, cell: float = 0.85) -> Figure:
    """Labelled rows of tiles as they are, each at a place of its own: a layout that fits texts in lets pictures overlap where labels are long."""
    count = max(len(pictures) for pictures in rows.values())
    slanted = columns is not None and max(map(len, columns), default=0) > 9
    # All in inches: room for the longest label, for the names of the columns, and for the end of the last name.
    left, above = 0.2 + 0.078 * max(map(len, rows)), (0.3 if title else 0.0) + (0.55 if slanted else 0.22 if columns is not None else 0.05)
    width, height = left + cell * count + (0.6 if slanted else 0.1), above + cell * len(rows) + 0.05
    figure = plt.figure(figsize=(width, height))
    for r, (label, pictures) in enumerate(rows.items()):
        for c in range(count):
            side = 0.96 * cell
            axis = figure.add_axes(((left + c * cell) / width, 1 - (above + (r + 1) * cell) / height, side / width, side / height))
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if c < len(pictures):
                axis.imshow(pictures[c], interpolation="nearest")
            if r == 0 and columns is not None and c < len(columns):
                looks: dict[str, Any] = {"rotation": 20, "ha": "left", "x": 0.1} if slanted else {}
                axis.set_title(short(columns[c], 22), fontsize=6.5, pad=2, **looks)
            if c == 0:
                axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8.5)
    if title:
        figure.suptitle(title, fontsize=10.5, y=1 - 0.04 / height, va="top")
    return figure


def contact_sheet(pictures: np.ndarray, columns: int = 12, title: str = "", cell: float = 0.62) -> Figure:
    """Pictures [N, H, W, 3] in a plain grid without labels, shown as `memlib.experiment.picture_policy` allows."""
    pictures = np.stack([care.shown(picture) for picture in pictures])
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (pictures.shape[1] + 2), columns * (pictures.shape[2] + 2), 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = (i // columns) * (picture.shape[0] + 2), (i % columns) * (picture.shape[1] + 2)
        sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    figure, axis = plt.subplots(figsize=(cell * columns, cell * rows + (0.3 if title else 0)))
    axis.imshow(sheet, interpolation="nearest")
    axis.set_axis_off()
    if title:
        axis.set_title(title, fontsize=10.5)
    figure.tight_layout(pad=0.2)
    return figure


def attention_maps(maps: np.ndarray, pictures: np.ndarray, prompts: Sequence[str], columns: Sequence[str], title: str = "",
                   limits: tuple[float, float] | None = None) -> Figure:  # fmt: skip
    """Maps [K, h, w, P] of K prompts at P text positions, one row per prompt after its picture (uint8 [K, H, W, 3]).

    All maps share one scale, `limits` or their own extremes; a position that a prompt does not have (NaN) is grey.
    """
    low, high = limits or (np.nanmin(maps), np.nanmax(maps))
    colours = plt.get_cmap("magma").with_extremes(bad=(0.85, 0.85, 0.85))
    shown = colours(np.ma.masked_invalid((maps - low) / (high - low or 1)))[..., :3]
    # Nearest neighbour, since maps and pictures have sizes of their own.
    y, x = (np.arange(side) * old // side for side, old in zip(pictures.shape[1:3], maps.shape[1:3], strict=True))
    tiles = (np.moveaxis(shown, 3, 1)[:, :, y[:, None], x] * 255).round().astype(np.uint8)
    rows = {f"{i + 1}  {short(p, 24)}": [care.shown(pictures[i]), *tiles[i]] for i, p in enumerate(prompts)}
    return _tiles(rows, ["picture", *columns], title)
