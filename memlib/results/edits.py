"""What pages show of edits and mitigations, memorized prompts beside others: their pictures, a dot for each prompt, the contrast of the two kinds.

Pages 01 and 02 are one design with other edits of the embedding; 08, 13 and 18 show mitigations in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from memlib.experiment.group import Edit, Group, edit_name
from memlib.experiment.page import NOT_MEASURED, told
from memlib.experiment.tables import long_table
from memlib.judging.estimates import Estimate, group_difference
from memlib.prompts.interventions import INTERVENTIONS
from memlib.results.figures.distributions import distributions
from memlib.results.figures.pictures import montage

SHOWN = 8  # Prompts in a row of pictures.
ORIGINAL = "similarity to original"


def pictures(group: Group, edits: Sequence[Edit], title: str) -> Figure:
    """One row of pictures for each edit, one column for each of the first prompts, first seed; training pictures last where they are at hand."""
    return montage(group.rows(edits, SHOWN), group.prompts.prompts[:SHOWN], title)


def dots(groups: Sequence[Group], edits: Sequence[Edit], score: str = ORIGINAL, labels: Mapping[str, str] | None = None) -> Figure | None:
    """A score under each edit, one dot for each prompt, with the copy threshold; None, and a line that says so, where it is not measured.

    `labels` names edits by `memlib.experiment.group.edit_name`; interventions are called by their key and label where it is not given.
    """
    table = long_table(groups, edits, score)
    if not len(table):
        print(f"{score}: {NOT_MEASURED}")
        return None
    named = labels or {edit_name(key): f"({key})\n{INTERVENTIONS[key].label}" for key in edits if isinstance(key, str) and key != "none"}
    return distributions(table, score, groups[0].experiment.thresholds.get("copy_threshold"), labels=named)


def contrast(known: Group, other: Group, edits: Sequence[str], score: str = ORIGINAL) -> pd.DataFrame:
    """Mean of a score on memorized prompts minus that on others, with its interval, one row for each intervention."""

    def difference(edit: str) -> Estimate | None:
        first, second = known.score(score, edit), other.score(score, edit)
        return None if first is None or second is None else group_difference(first, second)

    rows = {f"({key}) {INTERVENTIONS[key].label}": told(difference(key)) for key in edits}
    return pd.DataFrame({"memorized minus not memorized": rows})


def numbers(known: Group, other: Group, edits: Mapping[str, Edit], score: str = ORIGINAL) -> dict[str, Estimate | None]:
    """Means of a score by edit and kind of prompt, for the prose: ``sim_<name>_mem`` and ``sim_<name>_other``."""
    return {f"sim_{name}_{kind}": group.mean(score, edit) for name, edit in edits.items() for kind, group in (("mem", known), ("other", other))}
