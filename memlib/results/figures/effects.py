"""Estimates with intervals: around zero, or as bars."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from memlib.judging.estimates import Estimate
from memlib.results.figures.style import COLOURS


def forest(panels: Mapping[str, Mapping[str, Estimate]], xlabel: str, columns: int = 2) -> Figure:
    """Named estimates as dots with intervals around zero, one panel per title, all on one scale."""
    lines = -(-len(panels) // columns)
    names = list(next(iter(panels.values())))
    figure, axes = plt.subplots(lines, columns, figsize=(4.9 * columns, (0.33 * len(names) + 0.75) * lines), sharex=True, sharey=True, squeeze=False)
    for i, (axis, (title, estimates)) in enumerate(zip(axes.flat, panels.items())):
        y = np.arange(len(names))[::-1]
        values = np.array([estimates[n].value for n in names])
        error = np.array([[e.value - e.low, e.high - e.value] for e in (estimates[n] for n in names)]).T.clip(0)
        axis.errorbar(values, y, xerr=error, fmt="o", markersize=5, capsize=3, color=COLOURS[0])
        axis.axvline(0, color="black", linewidth=0.8, linestyle=":")
        axis.set_yticks(y, names)
        axis.set_title(title, fontsize=10)
        if i >= len(panels) - columns:
            axis.set_xlabel(xlabel)
    figure.tight_layout()
    return figure


def grouped_bars(groups: Mapping[str, Mapping[str, Estimate]], ylabel: str, ylim: tuple[float, float] | None = None) -> Figure:
    """Bars with intervals: one group per name on the x axis, one bar per label in it."""
    labels = list(next(iter(groups.values())))
    figure, axis = plt.subplots(figsize=(max(5.5, 1.7 * len(groups) + 1.6), 3.5))
    width = 0.8 / len(labels)
    for i, label in enumerate(labels):
        estimates = [bars[label] for bars in groups.values()]
        x = np.arange(len(groups)) + (i - (len(labels) - 1) / 2) * width
        error = np.array([[e.value - e.low, e.high - e.value] for e in estimates]).T.clip(0)
        axis.bar(x, [e.value for e in estimates], width * 0.92, yerr=error, capsize=2, label=label, color=COLOURS[i % len(COLOURS)],
                 error_kw={"linewidth": 1})  # fmt: skip
    axis.set_xticks(range(len(groups)), list(groups))
    axis.set(ylabel=ylabel, ylim=ylim)
    columns = len(labels) if sum(map(len, labels)) < 60 else 2  # long names would run out of the figure
    axis.legend(frameon=False, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9)
    figure.tight_layout()
    return figure
