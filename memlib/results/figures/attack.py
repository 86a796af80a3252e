"""Attacks: the share of pictures still hidden by step, and shares by mitigation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from memlib.judging.estimates import Estimate
from memlib.probes.attack.outcomes import Survival
from memlib.results.figures.style import COLOURS, short


def survival_curves(panels: Mapping[str, Mapping[str, Survival]]) -> Figure:
    """Steps of attack against the share of pictures not brought up yet, one panel per title, with intervals as bands; a label has one look in all panels,
    and behind it how many pictures its curves are of."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.1 * len(panels), 3.6), sharey=True, squeeze=False, layout="constrained")
    # The fullest panel says the order: where none is left of a kind, its look stays its own.
    labels = list(dict.fromkeys(label for curves in sorted(panels.values(), key=len, reverse=True) for label in curves))
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for label, curve in curves.items():
            colour, line = COLOURS[labels.index(label) % len(COLOURS)], ("-", "--", "-.", ":")[labels.index(label) % 4]
            axis.step(curve.steps, curve.value, where="post", color=colour, linestyle=line, label=label)
            axis.fill_between(curve.steps, curve.low, curve.high, step="post", color=colour, alpha=0.12, linewidth=0)
        axis.set(title=title, xlabel="steps of attack", ylim=(-0.03, 1.03))
    axes[0][0].set_ylabel("share of pictures not brought up")
    handles = {label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    counts = {label: sorted({curves[label].pictures for curves in panels.values() if label in curves}) for label in labels}
    names = [f"{label} ({' to '.join(map(str, dict.fromkeys((few[0], few[-1]))))})" for label, few in counts.items()]
    figure.legend([handles[label] for label in labels], names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8.5)
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
