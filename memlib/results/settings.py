"""At which settings a method is measured: its strengths as a curve, and what published programs and texts do otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from memlib.experiment.page import NOT_MEASURED
from memlib.judging.estimates import paired_difference
from memlib.mitigations import REGISTRY, Mitigation, get
from memlib.results.evaluations import BY_CHANCE, EVALUATIONS, WITH_CHANGED
from memlib.results.pareto import Reference, Settings
from memlib.results.table import matrix

LEFT, KEPT = "similarity to training", "alignment with prompt"


def settings_of(method: Mitigation, strengths: bool = True) -> list[Mitigation]:
    """Return the settings of a method from weak to strong, its own last where it is none of them."""
    made = REGISTRY[method.name].sweep() if strengths and method.name in REGISTRY else []
    return made if method in made else [*made, method]


def curves(left: pd.DataFrame, kept: pd.DataFrame, methods: Sequence[Mitigation], strengths: bool = True) -> tuple[dict[str, Settings], Reference | None]:
    """Return the settings of each method by name, similarity from the rows `left` and alignment from `kept`, and the worst corner.

    The corner is the similarity without mitigation, at which nothing is gained, and the alignment with the prompts of other pictures (the
    metric `memlib.results.evaluations.BY_CHANCE` of `kept`), at which nothing of the prompt is kept. Settings of which rows lack a score are left out;
    the corner is None where it was not measured. Rows with few seeds are chosen before.
    """
    found: dict[str, Settings] = {}
    for method in dict.fromkeys([get("none"), *methods]):
        pairs = {m.title: (matrix(left, LEFT, m), matrix(kept, KEPT, m)) for m in settings_of(method, strengths)}
        if points := {title: (x, y) for title, (x, y) in pairs.items() if x is not None and y is not None}:
            found[method.name] = points
    chance = matrix(kept, BY_CHANCE)
    if "none" not in found or chance is None:
        return found, None
    x, y = found["none"]["none"]
    return found, Reference(float(x.mean()), float(chance[0]), float(y.mean()))


def alternatives(methods: Sequence[Mitigation]) -> list[tuple[str, str, Mitigation, Mitigation]]:
    """Return what published programs and texts do otherwise than the methods here, as far as options reproduce it.

    Of each the point's number on the page of discrepancies (or an empty text), what is done otherwise in words, our method and the other.
    """
    found = [(d.point, d.words, m, m.with_params(**d.params)) for m in methods for d in m.differences]
    by_name = {m.name: m for m in methods}
    if {"pad-mask", "ren"} <= set(by_name):
        zero, infinite = get("pad-mask", fraction=1.0), get("ren", scale=1.0, mask_uncond=False)
        found.append(("2", "masked padding gets no attention, in place of a zero vector that keeps its share", zero, infinite))
    if {"wen-3", "wen-1"} <= set(by_name):
        found.append(("", "the stricter of the two targets in use", by_name["wen-3"], by_name["wen-1"]))
    if {"pad-swap-eot-mask", "sot-pad"} <= set(by_name):
        found.append(("1", "the start token as padding, as in a news summary", by_name["pad-swap-eot-mask"], by_name["sot-pad"]))
    return sorted(found, key=lambda one: int(one[0] or 99))


def compared(
    rows: pd.DataFrame, found: Sequence[tuple[str, str, Mitigation, Mitigation]], metrics: Sequence[str], rewriting: Sequence[Mitigation] = ()
) -> pd.DataFrame:
    """Return one line for each of `alternatives`: means under our method and under the other with the paired difference, and U-Net evaluations.

    Methods that are `rewriting` prompts have a line each on alignment with the original and with the changed prompt (point 17).
    """
    lines = []
    for point, words, ours, other in found:
        line = {"point": point, "method": ours.title, "what the other does": words, "as": other.title}
        line |= {metric: both_told(matrix(rows, metric, ours), matrix(rows, metric, other)) for metric in metrics}
        counts = [matrix(rows, EVALUATIONS, method) for method in (ours, other)]
        line[EVALUATIONS] = NOT_MEASURED if counts[0] is None or counts[1] is None else f"{counts[0][0]:.0f} → {counts[1][0]:.0f}"
        lines.append(line)
    for method in rewriting:
        words = both_told(matrix(rows, KEPT, method), matrix(rows, WITH_CHANGED, method))
        lines.append({"point": "17", "method": method.title, "what the other does": "alignment is taken with the changed prompt",
                      "as": method.title, KEPT: words})  # fmt: skip
    return pd.DataFrame(lines, columns=["point", "method", "what the other does", "as", *metrics, EVALUATIONS])


def both_told(ours: np.ndarray | None, other: np.ndarray | None) -> str:
    """Two means and their paired difference, the other's minus ours, as text."""
    if ours is None or other is None:
        return NOT_MEASURED
    return f"{ours.mean():.2f} → {other.mean():.2f}, {paired_difference(other, ours).text(2)}"
