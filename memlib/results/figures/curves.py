"""Curves against dose, step or position, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memlib.judging.estimates import Estimate
from memlib.results.figures.style import COLOURS, log_y, short


def _on(ax: Axes | None, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """The axes given with their figure, or new ones of this size."""
    return plt.subplots(figsize=size) if ax is None else (cast(Figure, ax.figure), ax)


def dose_response(curves: Mapping[str, Mapping[float, Estimate]], xlabel: str, ylabel: str, ax: Axes | None = None,
                  dashed: Sequence[str] = ()) -> Figure:  # fmt: skip
    """Share against dose (logarithmic), one line per curve with its intervals; those in `dashed` are drawn broken."""
    figure, axis = _on(ax, (5.6, 3.5))
    for i, (label, points) in enumerate(curves.items()):
        x = np.array(list(points)) * (1 + 0.04 * i)  # a little apart, so that intervals do not hide each other
        y = np.array([e.value for e in points.values()])
        error = np.array([[e.value - e.low, e.high - e.value] for e in points.values()]).T.clip(0)
        axis.errorbar(x, y, error, marker="os^D"[i % 4], capsize=3, label=label, color=COLOURS[i % len(COLOURS)],
                      linestyle="--" if label in dashed else "-")  # fmt: skip
    axis.set_xscale("log", base=2)
    doses = sorted({d for points in curves.values() for d in points})
    axis.set_xticks(doses, [f"{d:g}" for d in doses])
    axis.minorticks_off()
    axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(-0.03, 1.03))
    axis.legend(frameon=False)
    figure.tight_layout()
    return figure


def ecdf(lengths: Mapping[str, np.ndarray], xlabel: str, limit: float | None = None, limit_label: str = "", upto: float | None = None,
         dashed: Sequence[str] = ()) -> Figure:  # fmt: skip
    """Share of values at or below x, one curve per label; those in `dashed` are drawn broken, `limit` as a line."""
    figure, axis = plt.subplots(figsize=(6.6, 3.9))
    for colour, (label, values) in zip(sns.color_palette("dark", len(lengths)), lengths.items()):
        x = np.sort(values)
        axis.step(np.r_[0, x], np.arange(len(x) + 1) / len(x), where="post", color=colour, label=f"{label} ({len(x):,})",
                  linestyle="--" if label in dashed else "-", linewidth=1.6)  # fmt: skip
    if limit is not None:
        axis.axvline(limit, color="black", linewidth=1, linestyle=":", label=limit_label)
    axis.set(xlabel=xlabel, ylabel="share of prompts", xlim=(0, upto), ylim=(0, 1.02))
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    return figure


def bands(panels: Mapping[str, Mapping[str, Mapping[float, Estimate]]], xlabel: str, ylabel: str, ylim: tuple[float, float] | None = None,
          yscale: Literal["linear", "log"] = "linear", width: float = 4.4, sharey: bool = True) -> Figure:  # fmt: skip
    """Curves with intervals as bands: one panel per title, each `width` inches, in it one curve per label, x -> estimate; of one scale if `sharey`."""
    figure, axes = plt.subplots(1, len(panels), figsize=(width * len(panels), 3.4), sharey=sharey, squeeze=False)
    for axis, (title, curves) in zip(axes[0], panels.items()):
        for i, (label, points) in enumerate(curves.items()):
            x = np.array(list(points))
            axis.plot(x, [e.value for e in points.values()], color=COLOURS[i % len(COLOURS)], marker="os^D"[i % 4], markersize=3, label=label)
            axis.fill_between(x, [e.low for e in points.values()], [e.high for e in points.values()], color=COLOURS[i % len(COLOURS)], alpha=0.25)
        axis.axvline(0, color="black", linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel=xlabel)
        if yscale == "log":
            log_y(axis)
        if ylim is not None:  # setting None would freeze the shared limits at this panel's
            axis.set_ylim(ylim)
    axes[0][0].set_ylabel(ylabel)
    # A curve may stand in some panels only.
    handles = {label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), frameon=False, fontsize=9, ncols=4, loc="lower center")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure


def by_position(curves: Mapping[str, Sequence[Estimate]], offsets: Sequence[int], ylabel: str, title: str = "", ax: Axes | None = None) -> Figure:
    """Estimates at positions counted from ``<eot>``, one line per curve with its intervals."""
    figure, axis = _on(ax, (6.4, 3.4))
    for i, (label, points) in enumerate(curves.items()):
        values, low, high = (np.array([getattr(e, part) for e in points]) for part in ("value", "low", "high"))
        colour = COLOURS[i % len(COLOURS)]
        axis.plot(offsets, values, marker="os^D"[i % 4], markersize=4, label=label, color=colour)
        axis.fill_between(offsets, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axis.set_xticks(list(offsets), ["<eot>" if o == 0 else f"{o:+d}" for o in offsets], fontsize=8)
    axis.set(xlabel="position from <eot>: prompt before, padding after", ylabel=ylabel, title=title)
    axis.legend(frameon=False, fontsize=8.5)
    figure.tight_layout()
    return figure


def marked_traces(panels: Mapping[str, Sequence[tuple[str, np.ndarray, int]]], ylabel: str) -> Figure:
    """Single curves by step, one panel per title: (label, values [T], step to mark or -1)."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.4), sharey=True, squeeze=False)
    for axis, (title, curves) in zip(axes[0], panels.items()):
        for i, (label, values, step) in enumerate(curves):
            colour = COLOURS[i % len(COLOURS)]
            axis.plot(values, color=colour, linestyle=("-", "--", "-.", ":")[i % 4], linewidth=1.4, label=short(label, 30))
            if step >= 0:
                axis.plot(step, values[step], marker="os^D"[i % 4], markersize=8, color=colour, markeredgecolor="black")
        axis.set(title=title, xlabel="step (0 is the noisiest)")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, fontsize=7.5)
    axes[0][0].set_ylabel(ylabel)
    figure.tight_layout()
    return figure
