"""A text's figures and ours on one axis."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from memlib.judging.estimates import Estimate
from memlib.results.figures.style import COLOURS


def beside(
    reported: Mapping[str, float], measured: Mapping[str, Mapping[str, Estimate | None]], xlabel: str, bounds: Mapping[str, float] | None = None
) -> Figure:
    """Rows by name: the text's figure as a diamond, and by group what was measured as a dot with its interval; `bounds` are drawn as lines by name.

    `measured` has by group an estimate for each row; those that are None, and rows that the text leaves out, are not drawn.
    """
    names = list(dict.fromkeys([*reported, *(name for by in measured.values() for name in by)]))
    figure, axis = plt.subplots(figsize=(7.6, 0.27 * len(names) * (len(measured) + 1) * 0.62 + 1.1))
    y = np.arange(len(names))[::-1].astype(float)
    step = 0.8 / (len(measured) + 1)
    offsets = [0.4 - step * (i + 0.5) for i in range(len(measured) + 1)]
    at = [i for i, name in enumerate(names) if name in reported]
    axis.scatter([reported[names[i]] for i in at], y[at] + offsets[0], marker="D", s=34, facecolors="none", edgecolors="black", label="reported", zorder=3)
    for i, (group, by) in enumerate(measured.items()):
        at = [k for k, name in enumerate(names) if by.get(name) is not None]
        found = [by[names[k]] for k in at]
        if not found:
            continue
        error = np.array([[e.value - e.low, e.high - e.value] for e in found if e is not None]).T.clip(0)
        axis.errorbar([e.value for e in found if e is not None], y[at] + offsets[i + 1], xerr=error, fmt="os^v"[i % 4], markersize=5, capsize=2.5,
                      color=COLOURS[i % len(COLOURS)], label=group)  # fmt: skip
    for name, bound in (bounds or {}).items():
        axis.axvline(bound, color="#777777", linewidth=0.9, linestyle="--")
        axis.text(bound, len(names) - 0.42, name, ha="center", va="bottom", fontsize=8, color="#444444")
    for edge in y[:-1]:
        axis.axhline(edge - 0.5, color="#dddddd", linewidth=0.8)
    axis.set_yticks(y, names)
    axis.set(xlabel=xlabel, ylim=(-0.5, len(names) - 0.5))
    axis.grid(False, axis="y")
    axis.legend(frameon=False, ncols=len(measured) + 1, loc="lower left", bbox_to_anchor=(0, 1.06), fontsize=9, handletextpad=0.3, columnspacing=1.2)
    figure.tight_layout()
    return figure
