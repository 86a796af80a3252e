"""Scenarios side by side: a dot for each picture's step, and a table in colours."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure


def step_dots(rows: Mapping[str, Mapping[str, np.ndarray]], total: int, xlabel: str, nothing: str) -> Figure:
    """Steps of 0 to `total` as dots, one line per row label and one colour per group; negative ones are left out, and `nothing` says so for all."""
    points = pd.DataFrame(
        [{"row": row, xlabel: int(step), "prompts": who} for row, groups in rows.items() for who, steps in groups.items() for step in steps.flat if step >= 0],
        columns=["row", xlabel, "prompts"],
    )
    figure, axis = plt.subplots(figsize=(8.6, 3.6))
    if len(points):
        sns.stripplot(points, x=xlabel, y="row", hue="prompts", dodge=True, jitter=0.15, size=5, ax=axis)
        axis.legend(frameon=False, fontsize=9)
        axis.set(xlim=(-1, total), ylabel="")
    else:
        axis.text(0.5, 0.5, nothing, ha="center")
    figure.tight_layout()
    return figure


def coloured_table(grid: pd.DataFrame, label: str, starred: Collection[tuple[str, str]] = (), note: str = "") -> Figure:
    """Values of 0 to 1 as colours and numbers; cells (column, row) of `starred` have a star, which the `note` below explains."""
    texts = grid.apply(lambda column: [f"{value:.2f}" + "*" * ((column.name, name) in starred) for name, value in column.items()])
    figure, axis = plt.subplots(figsize=(8.6, 0.36 * len(grid) + 1.6))
    sns.heatmap(grid.astype(float), annot=texts, fmt="", cmap="viridis", vmin=0, vmax=1, cbar_kws={"label": label}, ax=axis)
    axis.set(xlabel=f"* {note}" if starred else "", ylabel="")
    axis.tick_params(axis="x", rotation=0)
    figure.tight_layout()
    return figure
