"""The look of every figure: pictures in labelled rows, distributions with a threshold, dose-response curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memlib.stats import Estimate

DPI = 110
# Told apart by colour-blind readers and on grey paper; "memorized" is always the first.
COLOURS = ("#0b6aa2", "#c8741a", "#4a8f3c", "#8f4a8f")


def style() -> None:
    """Set the look for all figures of a notebook; backgrounds are opaque white, for light and dark pages alike."""
    sns.set_theme(style="whitegrid", palette=list(COLOURS), rc={"figure.dpi": DPI, "savefig.dpi": DPI, "figure.facecolor": "white",
                  "axes.titlesize": 11, "axes.labelsize": 10, "axes.spines.top": False, "axes.spines.right": False})  # fmt: skip


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def montage(rows: Mapping[str, np.ndarray], columns: Sequence[str] | None = None, title: str = "", cell: float = 0.85) -> Figure:
    """Pictures in labelled rows: label -> uint8 [K, H, W, 3]; `columns` names the K columns above them."""
    count = max(len(pictures) for pictures in rows.values())
    figure, axes = plt.subplots(len(rows), count, figsize=(cell * count + 1.9, cell * len(rows) + (0.75 if columns is not None else 0.35)), squeeze=False)
    for r, (label, pictures) in enumerate(rows.items()):
        for c, axis in enumerate(axes[r]):
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if c < len(pictures):
                axis.imshow(pictures[c], interpolation="nearest")
            if r == 0 and columns is not None and c < len(columns):
                axis.set_title(_short(columns[c].replace("$", r"\$"), 22), fontsize=6.5, rotation=20, ha="left", x=0.1, pad=2)
        axes[r][0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8.5)
    if title:
        figure.suptitle(title, fontsize=10.5)
    figure.tight_layout(pad=0.25, h_pad=0.2, w_pad=0.15)
    return figure


def contact_sheet(pictures: np.ndarray, columns: int = 12, title: str = "", cell: float = 0.62) -> Figure:
    """Pictures [N, H, W, 3] in a plain grid without labels."""
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


def distributions(table: pd.DataFrame, score: str, threshold: float | None = None, threshold_label: str = "copy threshold",
                  labels: Mapping[str, str] | None = None) -> Figure:  # fmt: skip
    """One dot per prompt (mean over seeds) with the quartiles, by edit, groups side by side."""
    order = list(dict.fromkeys(table["edit"]))
    shown = table.assign(edit=table["edit"].map(lambda k: (labels or {}).get(k, k)))
    order = [(labels or {}).get(k, k) for k in order]
    figure, axis = plt.subplots(figsize=(max(5.5, 1.25 * len(order) + 2), 3.5))
    sns.boxplot(shown, x="edit", y=score, hue="prompts", order=order, fliersize=0, width=0.7, gap=0.15, boxprops={"alpha": 0.3}, ax=axis)
    sns.stripplot(shown, x="edit", y=score, hue="prompts", order=order, dodge=True, size=3, alpha=0.7, jitter=0.2, legend=False, ax=axis)
    if threshold is not None:
        axis.axhline(threshold, color="black", linewidth=1, linestyle="--", label=f"{threshold_label} {threshold:.2f}")
    axis.set_xlabel("")
    axis.legend(title="", frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3)
    figure.tight_layout()
    return figure


def dose_response(curves: Mapping[str, Mapping[float, Estimate]], xlabel: str, ylabel: str, ax: Axes | None = None) -> Figure:
    """Share against dose (logarithmic), one line per curve with its intervals."""
    figure, axis = (ax.figure, ax) if ax is not None else plt.subplots(figsize=(5.6, 3.5))
    for i, (label, points) in enumerate(curves.items()):
        x = np.array(list(points)) * (1 + 0.04 * i)  # a little apart, so that intervals do not hide each other
        y = np.array([e.value for e in points.values()])
        error = np.array([[e.value - e.low, e.high - e.value] for e in points.values()]).T.clip(0)
        axis.errorbar(x, y, error, marker="os^D"[i % 4], capsize=3, label=label, color=COLOURS[i % len(COLOURS)])
    axis.set_xscale("log", base=2)
    doses = sorted({d for points in curves.values() for d in points})
    axis.set_xticks(doses, [f"{d:g}" for d in doses])
    axis.minorticks_off()
    axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(-0.03, 1.03))
    axis.legend(frameon=False)
    figure.tight_layout()
    return figure
