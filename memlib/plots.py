"""The look of every figure: pictures in labelled rows, distributions with a threshold, dose-response curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memlib.stats import Estimate

DPI = 110
# Told apart by colour-blind readers and on grey paper; "memorized" is always the first.
COLOURS = ("#0b6aa2", "#c8741a", "#4a8f3c", "#8f4a8f")


def style() -> None:
    """Set the look for all figures and tables of a notebook; backgrounds are opaque white, for light and dark pages alike."""
    pd.set_option("display.max_colwidth", 160)
    sns.set_theme(style="whitegrid", palette=list(COLOURS), rc={"figure.dpi": DPI, "savefig.dpi": DPI, "figure.facecolor": "white",
                  "axes.titlesize": 11, "axes.labelsize": 10, "axes.spines.top": False, "axes.spines.right": False})  # fmt: skip


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def montage(rows: Mapping[str, np.ndarray], columns: Sequence[str] | None = None, title: str = "", cell: float = 0.85) -> Figure:
    """Pictures in labelled rows: label -> uint8 [K, H, W, 3]; `columns` names the K columns above them."""
    count = max(len(pictures) for pictures in rows.values())
    figure, axes = plt.subplots(len(rows), count, figsize=(cell * count + 1.9, cell * len(rows) + (0.75 if columns is not None else 0.35)), squeeze=False)
    for r, (label, pictures) in enumerate(rows.items()):
        for c, axis in enumerate(axes[r]):
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if c < len(pictures):
                axis.imshow(pictures[c], interpolation="nearest")
            if r == 0 and columns is not None and c < len(columns):
                axis.set_title(_short(columns[c].replace("$", r"\$"), 22), fontsize=6.5, rotation=20, ha="left", x=0.1, pad=2)
        axes[r][0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8.5)
    if title:
        figure.suptitle(title, fontsize=10.5)
    figure.tight_layout(pad=0.25, h_pad=0.2, w_pad=0.15)
    return figure


def contact_sheet(pictures: np.ndarray, columns: int = 12, title: str = "", cell: float = 0.62) -> Figure:
    """Pictures [N, H, W, 3] in a plain grid without labels."""
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (pictures.shape[1] + 2), columns * (pictures.shape[2] + 2), 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = (i // columns) * (picture.shape[0] + 2), (i % columns) * (picture.shape[1] + 2)
        sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    figure, axis = plt.subplots(figsize=(cell * columns, cell * rows + (0.3 if title else 0)))
    axis.imshow(sheet, interpolation="nearest")
    axis.set_axis_off()
    if title:
        axis.set_title(title, fontsize=10.5)
    figure.tight_layout(pad=0.2)
    return figure


def distributions(table: pd.DataFrame, score: str, threshold: float | None = None, threshold_label: str = "copy threshold",
                  labels: Mapping[str, str] | None = None) -> Figure:  # fmt: skip
    """One dot per prompt (mean over seeds) with the quartiles, by edit, groups side by side."""
    order = list(dict.fromkeys(table["edit"]))
    shown = table.assign(edit=table["edit"].map(lambda k: (labels or {}).get(k, k)))
    order = [(labels or {}).get(k, k) for k in order]
    figure, axis = plt.subplots(figsize=(max(5.5, 1.25 * len(order) + 2), 3.5))
    sns.boxplot(shown, x="edit", y=score, hue="prompts", order=order, fliersize=0, width=0.7, gap=0.15, boxprops={"alpha": 0.3}, ax=axis)
    sns.stripplot(shown, x="edit", y=score, hue="prompts", order=order, dodge=True, size=3, alpha=0.7, jitter=0.2, legend=False, ax=axis)
    if threshold is not None:
        axis.axhline(threshold, color="black", linewidth=1, linestyle="--", label=f"{threshold_label} {threshold:.2f}")
    axis.set_xlabel("")
    axis.legend(title="", frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3)
    figure.tight_layout()
    return figure


def dose_response(curves: Mapping[str, Mapping[float, Estimate]], xlabel: str, ylabel: str, ax: Axes | None = None,
                  dashed: Sequence[str] = ()) -> Figure:  # fmt: skip
    """Share against dose (logarithmic), one line per curve with its intervals; those in `dashed` are drawn broken."""
    figure, axis = (ax.figure, ax) if ax is not None else plt.subplots(figsize=(5.6, 3.5))
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
    for colour, (label, values) in zip(sns.color_palette("colorblind", len(lengths)), lengths.items()):
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
          yscale: str = "linear") -> Figure:  # fmt: skip
    """Curves with intervals as bands: one panel per title, in it one curve per label, x -> estimate."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.4), sharey=True, squeeze=False)
    for axis, (title, curves) in zip(axes[0], panels.items()):
        for i, (label, points) in enumerate(curves.items()):
            x = np.array(list(points))
            axis.plot(x, [e.value for e in points.values()], color=COLOURS[i % len(COLOURS)], marker="os^D"[i % 4], markersize=3, label=label)
            axis.fill_between(x, [e.low for e in points.values()], [e.high for e in points.values()], color=COLOURS[i % len(COLOURS)], alpha=0.25)
        axis.axvline(0, color="black", linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel=xlabel, ylim=ylim, yscale=yscale)
    axes[0][0].set_ylabel(ylabel)
    # A curve may stand in some panels only.
    handles = {label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), frameon=False, fontsize=9, ncols=4, loc="lower center")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure


def planes(grid: Mapping[str, Mapping[str, pd.DataFrame]], groups: Mapping[int, str] | None = None) -> Figure:
    """States in the plane, rows and columns of panels by label; tables have prompt, span, x, y (memlib.structure.project).

    Colour and form tell the span; `groups` names the group of each prompt, the first filled and the others hollow.
    """
    columns = list(next(iter(grid.values())))
    figure, axes = plt.subplots(len(grid), len(columns), figsize=(3.3 * len(columns), 3.1 * len(grid)), squeeze=False)
    spans, names = ("pr", "pad", "eot", "sot"), list(dict.fromkeys((groups or {}).values()))
    for r, (label, panels) in enumerate(grid.items()):
        for c, column in enumerate(columns):
            axis, table = axes[r][c], panels[column]
            for i, span in enumerate(spans):
                part = table[table["span"] == span]
                filled = part["prompt"].map(lambda p: not names or groups[p] == names[0]).astype(bool)
                look = {"s": (16, 16, 34, 60)[i], "marker": "o^D*"[i], "linewidths": 0.7, "edgecolors": COLOURS[i]}
                axis.scatter(part["x"][filled], part["y"][filled], facecolors=COLOURS[i], alpha=0.75, label=f"<{span}>", **look)
                axis.scatter(part["x"][~filled], part["y"][~filled], facecolors="none", alpha=0.75, **look)
            axis.set_xticks([])
            axis.set_yticks([])
            if c == 0:
                axis.set_ylabel(label)
            if r == 0:
                axis.set_title(column)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=4, loc="lower center")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    return figure


def attention_maps(maps: np.ndarray, pictures: np.ndarray, prompts: Sequence[str], columns: Sequence[str], title: str = "",
                   limits: tuple[float, float] | None = None) -> Figure:  # fmt: skip
    """Maps [K, h, w, P] of K prompts at P text positions, one row per prompt after its picture (uint8 [K, H, W, 3]).

    All maps share one scale, `limits` or their own extremes; a position that a prompt does not have (NaN) is grey.
    """
    low, high = limits or (np.nanmin(maps), np.nanmax(maps))
    colours = plt.get_cmap("magma").with_extremes(bad=(0.85, 0.85, 0.85))
    shown = colours(np.ma.masked_invalid((maps - low) / (high - low or 1)))[..., :3]
    # Nearest neighbour, since maps and pictures have sizes of their own.
    y, x = (np.arange(side) * old // side for side, old in zip(pictures.shape[1:3], maps.shape[1:3], strict=True))
    tiles = (np.moveaxis(shown, 3, 1)[:, :, y[:, None], x] * 255).round().astype(np.uint8)
    rows = {f"{i + 1}  {_short(p, 24)}".replace("$", r"\$"): np.concatenate([pictures[i : i + 1], tiles[i]]) for i, p in enumerate(prompts)}
    return montage(rows, ["picture", *columns], title)


def by_position(curves: Mapping[str, Sequence[Estimate]], offsets: Sequence[int], ylabel: str, title: str = "", ax: Axes | None = None) -> Figure:
    """Estimates at positions counted from ``<eot>``, one line per curve with its intervals."""
    figure, axis = (ax.figure, ax) if ax is not None else plt.subplots(figsize=(6.4, 3.4))
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


def heat_maps(panels: Mapping[str, np.ndarray], rows: Sequence[str], xlabel: str, bar: str, columns: int = 2) -> Figure:
    """Panels [rows, x] side by side on one colour scale."""
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.3 * columns + 0.6, (0.24 * len(rows) + 0.9) * lines), squeeze=False,
                                sharex=True, sharey=True, layout="constrained")  # fmt: skip
    low, high = min(np.nanmin(p) for p in panels.values()), max(np.nanmax(p) for p in panels.values())
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (label, values) in zip(axes.flat, panels.items(), strict=False):
        image = axis.imshow(values, aspect="auto", cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
        axis.set_yticks(range(len(rows)), rows, fontsize=7.5)
        axis.set_title(label, fontsize=9.5)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(False)
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    figure.colorbar(image, ax=axes, label=bar, shrink=0.85)
    return figure


def forest(panels: Mapping[str, Mapping[str, Estimate]], xlabel: str, columns: int = 2) -> Figure:
    """Named estimates as dots with intervals around zero, one panel per title, all on one scale."""
    lines = -(-len(panels) // columns)
    names = list(next(iter(panels.values())))
    figure, axes = plt.subplots(lines, columns, figsize=(4.9 * columns, (0.33 * len(names) + 0.75) * lines), sharex=True, sharey=True, squeeze=False)
    for i, (axis, (title, estimates)) in enumerate(zip(axes.flat, panels.items())):
        y = np.arange(len(names))[::-1]
        values = np.array([estimates[n].value for n in names])
        error = np.array([[e.value - e.low, e.high - e.value] for e in (estimates[n] for n in names)]).T.clip(0)
        axis.errorbar(values, y, xerr=error, fmt="o", markersize=5, capsize=3, color=COLOURS[0])
        axis.axvline(0, color="black", linewidth=0.8, linestyle=":")
        axis.set_yticks(y, names)
        axis.set_title(title, fontsize=10)
        if i >= len(panels) - columns:
            axis.set_xlabel(xlabel)
    figure.tight_layout()
    return figure


def marked_traces(panels: Mapping[str, Sequence[tuple[str, np.ndarray, int]]], ylabel: str) -> Figure:
    """Single curves by step, one panel per title: (label, values [T], step to mark or -1)."""
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.4), sharey=True, squeeze=False)
    for axis, (title, curves) in zip(axes[0], panels.items()):
        for i, (label, values, step) in enumerate(curves):
            colour = COLOURS[i % len(COLOURS)]
            axis.plot(values, color=colour, linestyle=("-", "--", "-.", ":")[i % 4], linewidth=1.4, label=_short(label, 30).replace("$", r"\$"))
            if step >= 0:
                axis.plot(step, values[step], marker="os^D"[i % 4], markersize=8, color=colour, markeredgecolor="black")
        axis.set(title=title, xlabel="step (0 is the noisiest)")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, fontsize=7.5)
    axes[0][0].set_ylabel(ylabel)
    figure.tight_layout()
    return figure


def grouped_bars(groups: Mapping[str, Mapping[str, Estimate]], ylabel: str, ylim: tuple[float, float] | None = None) -> Figure:
    """Bars with intervals: one group per name on the x axis, one bar per label in it."""
    labels = list(next(iter(groups.values())))
    figure, axis = plt.subplots(figsize=(max(5.5, 1.7 * len(groups) + 1.6), 3.5))
    width = 0.8 / len(labels)
    for i, label in enumerate(labels):
        estimates = [bars[label] for bars in groups.values()]
        x = np.arange(len(groups)) + (i - (len(labels) - 1) / 2) * width
        error = np.array([[e.value - e.low, e.high - e.value] for e in estimates]).T.clip(0)
        axis.bar(x, [e.value for e in estimates], width * 0.92, yerr=error, capsize=2, label=label, color=COLOURS[i % len(COLOURS)], error_kw={"linewidth": 1})
    axis.set_xticks(range(len(groups)), list(groups))
    axis.set(ylabel=ylabel, ylim=ylim)
    axis.legend(frameon=False, ncols=len(labels), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9)
    figure.tight_layout()
    return figure


def separation(scores: Mapping[str, np.ndarray], xlabel: str) -> Figure:
    """How well a score [P] tells the first group from each of the others: its histogram, and a ROC curve against each."""
    from sklearn.metrics import roc_curve

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    table = pd.DataFrame([{"prompts": label, xlabel: float(v)} for label, values in scores.items() for v in values])
    sns.histplot(table, x=xlabel, hue="prompts", bins=20, element="step", alpha=0.3, ax=left)
    left.set_ylabel("prompts")
    left.get_legend().set(title="", frame_on=False)
    known, *others = scores.items()
    for i, (label, values) in enumerate(others, 1):
        truth = np.r_[np.ones(len(known[1])), np.zeros(len(values))]
        false, true, _ = roc_curve(truth, np.r_[known[1], values], drop_intermediate=False)
        right.plot(false, true, color=COLOURS[i], linestyle=("-", "--", "-.")[i % 3], label=f"{known[0]} against {label}")
    right.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    right.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    right.legend(frameon=False, fontsize=8, loc="lower right")
    figure.tight_layout()
    return figure
