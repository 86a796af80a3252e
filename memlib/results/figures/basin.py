"""The look of a measured basin: the funnel, drawn from shares and half distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from memlib.probes.basin_width import Widths
from memlib.results.figures.style import COLOURS


def funnels(panels: Mapping[str, tuple[Widths, Sequence[int], Sequence[float]]], ylabels: Sequence[str], path: np.ndarray | None = None,
            path_label: str = "") -> Figure:  # fmt: skip
    """Cross-sections side by side, one panel per title: (widths, steps [K], radii [R]), drawn symmetrically about the trajectory.

    Shading is the share that ends in the ball, the line with its bars the half distance with its interval (an arrow where more than half still
    end there at the largest radius), `path` [K] a distance drawn into the first panel.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(4.7 * len(panels), 3.8), squeeze=False, layout="constrained")
    for i, (axis, (title, (found, steps, radii))) in enumerate(zip(axes[0], panels.items(), strict=True)):
        distances = np.r_[-np.asarray(radii)[:0:-1], radii]
        shares = np.concatenate([found.shares[:, :0:-1], found.shares], axis=1)
        shading = axis.contourf(steps, distances, shares.T, levels=np.linspace(0, 1, 11), cmap="Blues", alpha=0.85)
        half, low, high = (np.array([getattr(e, part) for e in found.half]) for part in ("value", "low", "high"))
        bars = np.nan_to_num(np.array([half - low, high - half])).clip(0)
        for sign in (1, -1):
            axis.errorbar(steps, sign * half, bars if sign > 0 else bars[::-1], color=COLOURS[1], marker="o", markersize=4, capsize=3, linewidth=2,
                          label="half of them end there" if sign > 0 else None)  # fmt: skip
        for step in np.asarray(steps)[found.at_least]:
            axis.annotate("", (step, distances[-1] * 1.1), (step, distances[-1] * 0.98), arrowprops={"arrowstyle": "->", "color": COLOURS[1]})
        axis.axhline(0, color="black", linewidth=0.8)
        if path is not None and i == 0:
            axis.plot(steps, path, color="black", linestyle="--", marker="D", markersize=3, linewidth=1.2, label=path_label)
        axis.set(title=title, xlabel="step (0 is the noisiest)", ylabel=ylabels[i], ylim=(distances[0] * 1.12, distances[-1] * 1.12))
        axis.yaxis.set_major_formatter(lambda tick, _: f"{abs(tick):g}")
        axis.set_xlim(*(np.array([steps[0], steps[-1]]) + 0.04 * (steps[-1] - steps[0]) * np.array([-1, 1])))
        axis.grid(False)
    figure.colorbar(shading, ax=axes, label="share that ends at the picture", shrink=0.85)
    figure.legend(*axes[0][0].get_legend_handles_labels(), frameon=False, ncols=2, fontsize=9, loc="outside lower center")
    return figure
