"""What is left of memorization against what is kept of alignment: a curve for each method, a panel for each scenario."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from memlib.judging.estimates import mean_interval
from memlib.results.figures.style import COLOURS
from memlib.results.pareto import Ranked, Reference, Settings, front, means_of

MARKERS = "osD^vP*X<>h8"
LINE = 0.042  # height of a name, as a share of a panel's
PLAIN: dict[str, Any] = {"color": "black", "marker": "*", "markersize": 11, "linestyle": ""}


def _looks(families: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The family's colour for each name, with a marker and line of its own within the family."""
    order = list(dict.fromkeys(families.values()))
    marks = {family: cycle(MARKERS) for family in order}
    return {name: {"color": COLOURS[order.index(family) % len(COLOURS)], "marker": next(marks[family])} for name, family in families.items()}


def trade_off(
    panels: Mapping[str, tuple[Mapping[str, Settings], Reference | None]], families: Mapping[str, str], xlabel: str, ylabel: str,
    columns: int = 2,
) -> Figure:  # fmt: skip
    """Similarity left (better to the left) against alignment kept (better above); colours tell the family of a method.

    Each panel holds the settings of each method, from weak to strong, joined by a line; the last one, the strongest, is filled. Those that
    no other one beats in both means (`memlib.results.pareto.front`) are joined by steps and have their intervals and names. The method "none" is a
    star, and the worst corner of the reference, from which dominated areas are counted, a dotted angle.
    """
    looks = _looks({name: family for name, family in families.items() if name != "none"}) | {"none": PLAIN}
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, min(columns, len(panels)), figsize=(4.7 * min(columns, len(panels)), 3.9 * lines + 0.4), squeeze=False,
                                layout="constrained")  # fmt: skip
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, (curves, reference)) in zip(axes.flat, panels.items(), strict=False):
        for name, settings in curves.items():
            _curve(axis, settings, looks[name])
        _front(axis, curves, looks)
        if reference is not None:
            axis.axvline(reference.left, color="black", linewidth=0.8, linestyle=":")
            axis.axhline(reference.kept, color="black", linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    # One entry a family: an entry for each of two dozen methods is not read, and those that count have their names at their points.
    first = {families[name]: name for name in reversed(list(families)) if name != "none" and any(name in curves for curves, _ in panels.values())}
    handles = {"no mitigation": Line2D([], [], **PLAIN)} | {
        family: Line2D([], [], color=looks[name]["color"], linewidth=1.5, marker="o", markersize=5) for family, name in reversed(first.items())
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def _curve(axis: Axes, settings: Settings, look: Mapping[str, Any]) -> None:
    x, y = zip(*map(means_of, settings.values()), strict=True)
    look = {"linewidth": 0.8, "markersize": 4.5, **look, "alpha": 0.45}
    axis.plot(x, y, markerfacecolor="white", **look)
    axis.plot(x[-1:], y[-1:], **look)


def _front(axis: Axes, curves: Mapping[str, Settings], looks: Mapping[str, Mapping]) -> None:
    best = [(name, curves[name][title], title == list(curves[name])[-1]) for name, title in front(curves)]
    axis.step(*zip(*(means_of(setting) for _, setting, _ in best), strict=True), where="post", color="black", linewidth=0.8, alpha=0.6, zorder=1.5)
    for name, setting, strongest in best:
        xerr, yerr = ([[max(e.value - e.low, 0)], [max(e.high - e.value, 0)]] for e in map(mean_interval, setting))
        known = not np.isnan([xerr, yerr]).any()
        look = {"markersize": 6, **looks[name], "linestyle": ""}
        look["markerfacecolor"] = look["color"] if strongest else "white"
        axis.errorbar(*means_of(setting), yerr=yerr if known else None, xerr=xerr if known else None, elinewidth=0.6, zorder=3, **look)
    # A method's name once, at its setting of the least similarity; in the left half to the right of it and below, else to the left and above.
    places = {name: means_of(setting) for name, setting, _ in reversed(best) if name != "none"}
    middle = np.mean(axis.get_xlim())
    _names(axis, {name: place for name, place in places.items() if place[0] < middle}, looks, upwards=False)
    _names(axis, {name: place for name, place in places.items() if place[0] >= middle}, looks, upwards=True)


def _names(axis: Axes, places: Mapping[str, tuple[float, float]], looks: Mapping[str, Mapping], upwards: bool) -> None:
    """Write names beside their places, half a line above and to the left, or below and to the right; a line apart where they are closer."""
    sign, line, last = 1 if upwards else -1, LINE * np.ptp(axis.get_ylim()), -np.inf
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for name, (x, y) in sorted(places.items(), key=lambda item: sign * item[1][1]):
        last = max(sign * y + line / 2, last + line)
        axis.annotate(name, (x, sign * last), (-5 if upwards else 6, 0), textcoords="offset points", ha="right" if upwards else "left",
                      va="center", fontsize=7, color=looks[name]["color"], path_effects=halo, zorder=4)  # fmt: skip


def dominance(panels: Mapping[str, Mapping[str, Ranked]], families: Mapping[str, str], columns: int = 2) -> Figure:
    """Dominated areas with intervals as bars, the largest first, in the colour of the family; a tick is the registered setting alone."""
    order = list(dict.fromkeys(family for name, family in families.items() if name != "none"))
    lines, width, longest = -(-len(panels) // columns), min(columns, len(panels)), max(map(len, panels.values()))
    figure, axes = plt.subplots(lines, width, figsize=(5.2 * width, (0.21 * longest + 0.9) * lines), sharex=True, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, ranked) in zip(axes.flat, panels.items(), strict=False):
        for place, (name, found) in enumerate(ranked.items()):
            colour = "black" if name == "none" else COLOURS[order.index(families[name]) % len(COLOURS)]
            ends = np.array([[found.area.value - found.area.low], [found.area.high - found.area.value]]).clip(0)
            axis.barh(place, found.area.value, xerr=None if np.isnan(ends).any() else ends, color=colour, alpha=0.8, error_kw={"linewidth": 0.8})
            axis.plot(found.single, place, marker="|", color="black", markersize=9)
        axis.set_yticks(range(len(ranked)), list(ranked), fontsize=7.5)
        axis.invert_yaxis()
        axis.set(title=title, xlabel="dominated area (1: nothing left, nothing lost)")
    handles = [Rectangle((0, 0), 1, 1, color=COLOURS[i % len(COLOURS)], alpha=0.8) for i in range(len(order))]
    figure.legend(handles, order, loc="outside lower center", ncols=len(order) or 1, frameon=False, fontsize=8.5)
    return figure
