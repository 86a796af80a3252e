"""From what was found to what should be done: which mitigation, how sure that is, and whether a detector may go first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from memlib.companion.report.findings import AGREEMENT, CHANGED, SIMILARITY, Findings
from memlib.judging.estimates import Estimate, mean_interval, share_interval, wilson
from memlib.mitigations import Mitigation, get
from memlib.probes.detectors.evaluation import Evaluation
from memlib.results.evaluations import EVALUATIONS
from memlib.results.pareto import Ranked, Reference, rank
from memlib.results.settings import curves
from memlib.results.table import matrix

WORKS = 0.8  # Area under the ROC curve from which a detector may be put first, with its whole interval above one half.


@dataclass(frozen=True)
class Line:
    """What one mitigation does: the share of copies, similarity to training, agreement of other prompts with their pictures and how alike those
    stay to what they were, each with its interval, and U-Net evaluations as a multiple of none; None where it was not measured, for the reason in `note`."""

    method: Mitigation
    copies: Estimate | None
    similarity: Estimate | None
    agreement: Estimate | None
    unchanged: Estimate | None
    cost: float | None
    ranked: Ranked | None
    note: str = ""


@dataclass(frozen=True)
class Advice:
    """`lines` of all mitigations, the best first, none at their head; `kept` is the score that harm was judged by (empty for none); `method` is
    the recommended one or None, `fewest` the single call that leaves the fewest copies; `detector` the best, or None where none works."""

    lines: list[Line]
    kept: str
    method: Line | None
    detector: Evaluation | None
    share: Estimate
    fewest: Line | None = None


def advise(found: Findings) -> Advice:
    """Rank the mitigations by the area they dominate (`memlib.results.pareto`): similarity to training left, against what other prompts keep.

    What they keep is agreement with the prompt where that is measured, of the reproduced prompts themselves where there are no others; else likeness
    to the picture without mitigation. The first one that is a single call is recommended, if its whole interval is above no mitigation. Without
    either, nothing is ranked, and nothing recommended.
    """
    share = wilson(len(found.reproduced), len(found.screened), len(found.run.seeds))
    working = [e for e in found.detected if e.auc is not None and e.auc.value >= WORKS and not e.auc.low <= 0.5]
    best = max(working, key=lambda e: e.auc.value if e.auc else 0.0, default=None)
    if found.memorized is None:
        return Advice([], "", None, None, share)
    ranked, kept = ranking(found.rows, found.other_rows, found.methods, found.judged.unlike)
    lines = [_line(found, method, ranked.get(method.name)) for method in found.methods]
    lines = [lines[0], *sorted(lines[1:], key=_order)]
    chosen = next((line for line in lines[1:] if line.ranked is not None and not line.method.sampled), None)
    sure = chosen is not None and chosen.ranked is not None and chosen.ranked.area.low > 0
    calls = [(line.copies.value, place, line) for place, line in enumerate(lines[1:]) if line.copies is not None and not line.method.sampled]
    return Advice(lines, kept, chosen if sure else None, best, share, min(calls)[2] if calls else None)


def ranking(rows: pd.DataFrame, others: pd.DataFrame, methods: list[Mitigation], unlike: float) -> tuple[Mapping[str, Ranked], str]:
    """Return the methods ranked, and the score that was taken for what prompts keep, the others or without these the same; nothing and "" for none.

    The worst that can be kept is alignment with the prompts of other pictures, or `unlike`, the similarity of pictures that have nothing in common.
    """
    made, corner = curves(rows, others if len(others) else rows, methods, strengths=False)
    if corner is not None and (ranked := rank(made, corner, same_prompts=not len(others))):
        return ranked, AGREEMENT
    pairs = {m: (matrix(rows, SIMILARITY, m), matrix(others, CHANGED, m)) for m in methods} if len(others) else {}
    made = {m.name: {m.title: (left, kept)} for m, (left, kept) in pairs.items() if left is not None and kept is not None}
    if "none" not in made:
        return {}, ""
    corner = Reference(float(made["none"]["none"][0].mean()), unlike, 1.0)
    return rank(made, corner, same_prompts=False), CHANGED


def _line(found: Findings, method: Mitigation, ranked: Ranked | None) -> Line:
    rows, others, plain = found.rows, found.other_rows, get("none")
    left = matrix(rows, SIMILARITY, method)
    if left is None:
        note = next(iter(rows.loc[(rows["method"] == method.name) & (rows["note"] != ""), "note"]), "")
        return Line(method, None, None, None, None, None, None, note)

    def of(score: str) -> Estimate | None:
        values = matrix(others if len(others) else rows, score, method)
        return None if values is None else mean_interval(values)

    evaluations, usual = matrix(rows, EVALUATIONS, method), matrix(rows, EVALUATIONS, plain)
    cost = None if evaluations is None or usual is None else float(evaluations[0] / usual[0])
    copies = share_interval(left >= found.judged.metric.threshold)
    return Line(method, copies, mean_interval(left), of(AGREEMENT), of(CHANGED), cost, ranked)


def _order(line: Line) -> tuple[bool, float, float]:
    """The largest area first, then the least similar, and last what could not be used."""
    area = -line.ranked.area.value if line.ranked else 0.0
    return line.similarity is None, area, line.similarity.value if line.similarity else 0.0
