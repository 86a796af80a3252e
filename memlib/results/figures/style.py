"""The look that all figures and tables share."""

from __future__ import annotations

import pandas as pd
import seaborn as sns

DPI = 110
# Told apart by colour-blind readers and on grey paper; "memorized" is always the first.
COLOURS = ("#0b6aa2", "#c8741a", "#4a8f3c", "#8f4a8f", "#b23a48")


def style() -> None:
    """Set the look for all figures and tables of a notebook; backgrounds are opaque white, for light and dark pages alike."""
    pd.set_option("display.max_colwidth", 160)
    sns.set_theme(style="whitegrid", palette=list(COLOURS), rc={"figure.dpi": DPI, "savefig.dpi": DPI, "figure.facecolor": "white",
                  "axes.titlesize": 11, "axes.labelsize": 10, "axes.spines.top": False, "axes.spines.right": False})  # fmt: skip


def short(text: str, width: int) -> str:
    """`text` cut to `width` characters, with an ellipsis where it was longer."""
    return text if len(text) <= width else f"{text[: width - 1]}…"
