"""Scenarios side by side: a dot for each picture's step."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure


def step_dots(rows: Mapping[str, Mapping[str, np.ndarray]], total: int, xlabel: str, nothing: str) -> Figure:
    """Steps of 0 to `total` as dots, one line per row label and one colour per group; negative ones are left out, and
    `nothing` says so in a line without any."""
    points = pd.DataFrame(
        [{"row": row, xlabel: int(step), "prompts": who} for row, groups in rows.items() for who, steps in groups.items() for step in steps.flat if step >= 0],
        columns=["row", xlabel, "prompts"],
    )
    figure, axis = plt.subplots(figsize=(8.6, 3.6))
    if len(points):
        sns.stripplot(points, x=xlabel, y="row", hue="prompts", order=list(rows), dodge=True, jitter=0.15, size=5, ax=axis)
        axis.legend(frameon=False, fontsize=9)
        for place, row in enumerate(rows):
            if row not in set(points["row"]):
                axis.text(total / 2, place, nothing, ha="center", va="center", fontsize=9)
        axis.set(xlim=(-1, total), ylabel="")
    else:
        axis.text(0.5, 0.5, nothing, ha="center")
    figure.tight_layout()
    return figure
