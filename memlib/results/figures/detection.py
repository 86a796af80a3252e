"""Figures of detectors: accuracy against cost, ROC curves, scores of the groups side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from memlib.probes.detectors.evaluation import Evaluation

MARKERS = "osD^vP*X<>"


def _looks(names: Sequence[str]) -> dict[str, dict]:
    """A colour and a marker for each name, no two alike: colours repeat after ten, markers after another number."""
    colours = sns.color_palette("colorblind", 10)
    return {name: {"color": colours[i % 10], "marker": MARKERS[(i + i // 10) % len(MARKERS)]} for i, name in enumerate(names)}


def accuracy_by_cost(panels: Mapping[str, Sequence[Evaluation]]) -> Figure:
    """AUC with its interval against U-Net evaluations per prompt; one panel per title, one look per detector.

    Points of one detector with different numbers of seeds are joined. What could not be measured is left out. The axis is
    logarithmic from 1 on and begins at 0, where the scores that use no model stand.
    """
    names = list(dict.fromkeys(e.title for rows in panels.values() for e in rows if e.auc is not None))
    looks = _looks(names)
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels) + 2.6, 4.8), sharey=True, squeeze=False, layout="constrained")
    for axis, (title, rows) in zip(axes[0], panels.items(), strict=True):
        for place, name in enumerate(names):
            _cost_curve(axis, [e for e in rows if e.title == name and e.auc is not None], place, looks[name])
        axis.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
        axis.set_xscale("symlog", linthresh=1, linscale=0.6)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set(title=title, xlabel="U-Net evaluations per prompt", ylim=(-0.03, 1.04), xlim=(-0.4, None))
    axes[0][0].set_ylabel("area under the ROC curve")
    handles = [Line2D([], [], linestyle="", **looks[name]) for name in names]
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=8)
    return figure


def _cost_curve(axis: Axes, rows: Sequence[Evaluation], place: int, look: Mapping) -> None:
    if not rows:
        return
    # A little apart, so that detectors of one price do not hide each other.
    x = np.array([e.evaluations for e in rows]) * 1.03 ** (place % 9 - 4) + (0.04 * (place % 3) if rows[0].evaluations == 0 else 0)
    areas = [e.auc for e in rows if e.auc is not None]
    y = np.array([area.value for area in areas])
    ends = np.array([[area.value - area.low, area.high - area.value] for area in areas]).T.clip(0)
    axis.errorbar(x, y, None if np.isnan(ends).any() else ends, markersize=6, linewidth=1, elinewidth=0.8, alpha=0.85, **look)


def roc_curves(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """ROC curves, (false, true positive rates) by label, one panel per title."""
    looks = _looks(list(dict.fromkeys(label for curves in panels.values() for label in curves)))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.0 * len(panels) + 2.2, 3.9), sharey=True, squeeze=False, layout="constrained")
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for i, (label, (false, true)) in enumerate(curves.items()):
            axis.step(false, true, where="post", color=looks[label]["color"], linestyle=("-", "--", "-.", ":")[i % 4], linewidth=1.6, label=label)
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel="false positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes[0][0].set_ylabel("true positive rate")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return figure


def score_groups(scores: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Scores [P] by detector and group, larger meaning memorized, one dot per prompt, centred and scaled over all groups."""
    rows = []
    for detector, groups in scores.items():
        pooled = np.concatenate(list(groups.values()))
        spread = pooled.std() or 1.0
        for label, values in groups.items():
            rows += [{"detector": detector, "prompts": label, "score": float(v)} for v in (values - pooled.mean()) / spread]
    table = pd.DataFrame(rows)
    figure, axis = plt.subplots(figsize=(8.8, 0.42 * len(scores) + 1.2))
    sns.stripplot(table, y="detector", x="score", hue="prompts", dodge=True, size=2.6, alpha=0.7, jitter=0.25, ax=axis)
    axis.set(ylabel="", xlabel="score, larger meaning memorized, in standard deviations over all prompts")
    axis.legend(title="", frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3)
    figure.tight_layout()
    return figure
