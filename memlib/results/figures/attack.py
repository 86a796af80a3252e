"""Attacks: the share of pictures still hidden by step, and where triggers lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from memlib.judging.estimates import Estimate
from memlib.probes.attack.outcomes import Survival
from memlib.results.figures.style import COLOURS, short


def survival_curves(panels: Mapping[str, Mapping[str, Survival]]) -> Figure:
    """Steps of attack against the share of pictures not brought up yet, one panel per title, with intervals as bands."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.1 * len(panels), 3.6), sharey=True, squeeze=False, layout="constrained")
    names: dict[str, Line2D] = {}
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for i, (label, curve) in enumerate(curves.items()):
            colour = COLOURS[i % len(COLOURS)]
            line = ("-", "--", "-.", ":")[i % 4]
            [drawn] = axis.step(curve.steps, curve.value, where="post", color=colour, linestyle=line)
            names.setdefault(f"{label} ({curve.pictures})", drawn)
            axis.fill_between(curve.steps, curve.low, curve.high, step="post", color=colour, alpha=0.12, linewidth=0)
        axis.set(title=title, xlabel="steps of attack", ylim=(-0.03, 1.03))
    axes[0][0].set_ylabel("share of pictures not brought up")
    figure.legend(names.values(), names.keys(), loc="outside lower center", ncols=len(names), frameon=False, fontsize=8.5)
    return figure


def hidden_or_removed(rows: Mapping[str, Sequence[Estimate | None]], labels: Sequence[str], xlabel: str) -> Figure:
    """One line per method, on it an estimate with its interval for each of `labels`; what was not measured is left out."""
    figure, axis = plt.subplots(figsize=(7.2, 0.36 * len(rows) + 1.2))
    for place, estimates in enumerate(rows.values()):
        for i, estimate in enumerate(estimates):
            if estimate is None:
                continue
            y, colour = place + (i - (len(labels) - 1) / 2) * 0.2, COLOURS[i % len(COLOURS)]
            axis.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=1)
            axis.plot(estimate.value, y, marker="os^D"[i % 4], markersize=5, color=colour, linestyle="", label=labels[i])
    axis.set_yticks(range(len(rows)), [short(name, 48) for name in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel=xlabel, xlim=(-0.03, 1.03))
    handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    axis.legend(handles.values(), handles.keys(), frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    return figure


def trigger_map(places: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """Points [K, 2] in a plane, one colour and mark per label."""
    figure, axis = plt.subplots(figsize=(5.6, 4.2))
    for i, (label, points) in enumerate(places.items()):
        axis.scatter(points[:, 0], points[:, 1], s=22, marker="os^DvP*X<>"[i % 10], color=plt.get_cmap("tab10")(i % 10), label=short(label, 30), alpha=0.85)
    axis.set(title=title, xticks=[], yticks=[])
    axis.legend(frameon=False, fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    return figure
