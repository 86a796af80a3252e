"""One dot per prompt, histograms with ROC curves, states in the plane, and values as heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from memlib.judging.roc import roc_curve
from memlib.results.figures.style import COLOURS


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
    axis.set_xticks(range(len(order)), ["\n".join(wrap(name, 14)) for name in order])
    axis.set_xlabel("")
    axis.legend(title="", frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3)
    figure.tight_layout()
    return figure


def separation(scores: Mapping[str, np.ndarray], xlabel: str) -> Figure:
    """How well a score [P] tells the first group from each of the others: its histogram, and a ROC curve against each."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    table = pd.DataFrame([{"prompts": label, xlabel: float(v)} for label, values in scores.items() for v in values])
    sns.histplot(table, x=xlabel, hue="prompts", bins=20, element="step", alpha=0.3, ax=left)
    left.set_ylabel("prompts")
    left.get_legend().set(title="", frame_on=False)
    known, *others = scores.items()
    for i, (label, values) in enumerate(others, 1):
        right.plot(*roc_curve(known[1], values), color=COLOURS[i], linestyle=("-", "--", "-.")[i % 3], label=f"{known[0]} against {label}")
    right.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    right.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    right.legend(frameon=False, fontsize=8, loc="lower right")
    figure.tight_layout()
    return figure


def planes(grid: Mapping[str, Mapping[str, pd.DataFrame]], groups: Mapping[int, str] | None = None) -> Figure:
    """States in the plane, rows and columns of panels by label; tables have prompt, span, x, y (memlib.prompts.structure.project).

    Colour and form tell the span; `groups` names the group of each prompt, the first filled and the others hollow.
    """
    columns = list(next(iter(grid.values())))
    figure, axes = plt.subplots(len(grid), len(columns), figsize=(3.3 * len(columns), 3.1 * len(grid)), squeeze=False)
    spans, names = ("pr", "pad", "eot", "sot"), list(dict.fromkeys((groups or {}).values()))
    for r, (label, panels) in enumerate(grid.items()):
        for c, column in enumerate(columns):
            axis, table = axes[r][c], panels[column]
            for i, span in enumerate(spans):
                part = table[table["span"] == span]
                filled = np.array([not groups or groups[p] == names[0] for p in part["prompt"]], dtype=bool)
                look = {"s": (16, 16, 34, 60)[i], "marker": "o^D*"[i], "linewidths": 0.7, "edgecolors": COLOURS[i]}
                axis.scatter(part["x"][filled], part["y"][filled], facecolors=COLOURS[i], alpha=0.75, label=f"<{span}>", **look)
                axis.scatter(part["x"][~filled], part["y"][~filled], facecolors="none", alpha=0.75, **look)
            axis.set_xticks([])
            axis.set_yticks([])
            if c == 0:
                axis.set_ylabel(label)
            if r == 0:
                axis.set_title(column)
    for name, inside in zip(names[:2], ("#666666", "none")):
        axes[0][0].scatter([], [], s=34, linewidths=0.7, edgecolors="#666666", facecolors=inside, label=name)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=len(labels), loc="lower center")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    return figure


def heat_maps(panels: Mapping[str, np.ndarray], rows: Sequence[str], xlabel: str, bar: str, columns: int = 2) -> Figure:
    """Panels [rows, x] side by side on one colour scale; values of both signs have diverging colours with zero in the middle."""
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.3 * columns + 0.6, (0.24 * len(rows) + 0.9) * lines), squeeze=False,
                                sharex=True, sharey=True, layout="constrained")  # fmt: skip
    low, high = min(np.nanmin(p) for p in panels.values()), max(np.nanmax(p) for p in panels.values())
    colours = "viridis"
    if low < 0 < high:
        colours, low, high = "RdBu_r", -max(-low, high), max(-low, high)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (label, values) in zip(axes.flat, panels.items(), strict=False):
        image = axis.imshow(values, aspect="auto", cmap=colours, vmin=low, vmax=high, interpolation="nearest")
        axis.set_yticks(range(len(rows)), rows, fontsize=7.5)
        axis.set_title(label, fontsize=9.5)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(False)
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    figure.colorbar(image, ax=axes, label=bar, shrink=0.85)
    return figure
