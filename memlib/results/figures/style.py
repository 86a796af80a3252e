"""The look that all figures and tables share."""

from __future__ import annotations

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

DPI = 110
# Told apart by colour-blind readers and on grey paper; "memorized" is always the first.
COLOURS = ("#0b6aa2", "#c8741a", "#4a8f3c", "#8f4a8f", "#b23a48")

# Titles, labels and legends hold prompts, and prompts hold dollars: what stands between two of them would be read as a formula, and stop the
# figure where it is none. No figure here has formulas, so that texts are drawn as they are, everywhere.
matplotlib.rcParams["text.parse_math"] = False


def style() -> None:
    """Set the look for all figures and tables of a notebook; backgrounds are opaque white, for light and dark pages alike."""
    pd.set_option("display.max_colwidth", 160)
    sns.set_theme(style="whitegrid", palette=list(COLOURS), rc={"figure.dpi": DPI, "savefig.dpi": DPI, "figure.facecolor": "white",
                  "axes.titlesize": 11, "axes.labelsize": 10, "axes.spines.top": False, "axes.spines.right": False})  # fmt: skip


def log_y(axes: Axes) -> None:
    """Make the y axis logarithmic, labelled with plain numbers: Matplotlib's own labels there are formulas."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))


def short(text: str, width: int) -> str:
    """`text` cut to `width` characters, with an ellipsis where it was longer."""
    return text if len(text) <= width else f"{text[: width - 1]}…"
