"""What pages show of edits and mitigations, memorized prompts beside others: their pictures, a dot for each prompt, the contrast of the two kinds.

Pages 01 and 02 are one design with other edits of the embedding; 08, 13 and 18 show mitigations in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from memlib.experiment.captioned import Captioned
from memlib.experiment.page import NOT_MEASURED, told
from memlib.experiment.settings import Edit
from memlib.mitigations import Mitigation
from memlib.prompts.interventions import INTERVENTIONS
from memlib.results.evidence import MEMORIZED, Evidence
from memlib.results.figures.beside import beside
from memlib.results.figures.distributions import distributions
from memlib.results.figures.pictures import montage

SHOWN = 8  # Prompts in a row of pictures.
ORIGINAL = "similarity to original"


def name_of(edit: Edit) -> str:
    """How figures and tables call an edit: ``padding zeroed (h)``, a mitigation's title, or original."""
    if isinstance(edit, Mitigation):
        return edit.title
    return "original" if edit == "none" else f"{INTERVENTIONS[edit].label} ({edit})"


def sheet(found: Evidence, edits: Sequence[Edit]) -> Figure:
    """The pictures at hand: a row for each edit, a column for each prompt with its first seed, group after group; training pictures last."""
    columns, parts = [], []
    for group in found.groups.values():
        count = min(SHOWN, len(group))
        rows = group.rows(edits, count)
        parts.append((rows, np.full_like(next(iter(rows.values())), 255)))
        columns += list(group.prompts.prompts[:count])
    labels = dict.fromkeys(label for rows, _ in parts for label in rows)
    return montage({label: np.concatenate([rows.get(label, blank) for rows, blank in parts]) for label in labels}, columns)


def by_prompt(found: Evidence, edits: Sequence[Edit], score: str = ORIGINAL) -> Figure | None:
    """A score under each edit, one dot for each prompt, with the lax bound; None, and a line that says so, where it is not measured."""
    table = found.by_prompt(score, edits, name_of)
    if not len(table):
        print(f"{score}: {NOT_MEASURED}")
        return None
    return distributions(table, score, found.bounds.get("lax") if score.startswith("similarity") else None, "lax bound")


def reported_beside(found: Evidence, reported: pd.DataFrame, metric: str, edits: Mapping[str, Edit], score: str = ORIGINAL) -> Figure:
    """A text's figures (rows of `metric` by method, `edits` says which edit each is) beside ours, and a printed line on how far the orders agree."""
    rows = reported[(reported["metric"] == metric) & reported["method"].isin(list(edits))]
    values = {edits[method]: float(value) for method, value in zip(rows["method"], rows["value"], strict=True)}
    bounds = {name: found.bounds[name] for name in ("lax", "lost") if found.bounds and score.startswith("similarity")}
    measured = {label: {name_of(edit): found.mean(score, edit, label) for edit in edits.values()} for label in found.rows}
    print(f"Rank correlation of the reported with the measured order of {len(values)} edits, memorized prompts: {told(found.agreement(score, values))}.")
    return beside({name_of(edit): value for edit, value in values.items()}, measured, score, bounds)


def contrasts(found: Evidence, edits: Sequence[Edit], score: str = ORIGINAL) -> Captioned:
    """Mean of a score on memorized prompts minus that on each other group, by edit."""
    others = [label for label in found.rows if label != MEMORIZED]
    lines = [{"edit": name_of(edit), **{f"minus {label}": told(found.contrast(score, edit, against=label)) for label in others}} for edit in edits]
    return Captioned(pd.DataFrame(lines).set_index("edit"), f"{score.capitalize()}: memorized prompts minus others")


def all_numbers(found: Evidence, edits: Sequence[Edit], scores: Sequence[str]) -> Captioned:
    """Every mean with its interval, by group and edit, folded."""
    copies = ORIGINAL if ORIGINAL in scores else None
    return Captioned(found.summary(edits, scores, name_of, copies), "Means with 95 % intervals, by prompts and edit", folded=True)
