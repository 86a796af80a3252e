"""The 2 x 2 of padding and duplication: which pairs each trained model reproduces, and the effects with intervals.

A pair is one prompt with its training picture; it counts as reproduced if at least nine of ten seeds give a copy (see
`memlib.training.minisd.measure.find_memorized`). Both the pairs and the trainings are samples: a conclusion about training has to hold for
other pairs and for another seed of training. The bootstrap therefore draws pairs and trainings anew, crossed, and pairs within
their level of duplication, since the levels are fixed by design. Source of the crossed bootstrap: Owen 2007, "The pigeonhole bootstrap".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from memlib.base.errors import InputError
from memlib.judging.estimates import Estimate, crossed_interval
from memlib.models.minisd.paths import minisd_folder
from memlib.training.minisd.replicates import table_file

PADDINGS = ("v1", "v2")  # <eot>, `!`
DUPLICATED = (True, False)
CELLS = {(p, d): f"minisd-{p}{'' if d else '-dedup'}" for d in DUPLICATED for p in PADDINGS}


@dataclass(frozen=True)
class Factorial:
    """Reproduced or not, `values` [N pairs, R trainings, 2 paddings, 2 kinds of data] of 0 and 1, in the order of PADDINGS and DUPLICATED.

    `copies` [N] is how often a pair comes in an epoch of the duplicated data, `group` [N] "duplicated" or "template".
    """

    values: np.ndarray
    copies: np.ndarray
    group: np.ndarray

    def cell(self, padding: str, duplicated: bool) -> np.ndarray:
        """Return the values [N, R] of one cell."""
        return self.values[..., PADDINGS.index(padding), DUPLICATED.index(duplicated)]

    def select(self, rows: np.ndarray) -> Factorial:
        """Return the pairs where the mask or index `rows` [N] says so."""
        return Factorial(self.values[rows], self.copies[rows], self.group[rows])

    def exact(self) -> Factorial:
        """The pairs with one picture and more than one copy, which can be memorized exactly."""
        return self.select((self.group == "duplicated") & (self.copies > 1))

    def templates(self) -> Factorial:
        """The captions with six colourings of one composition, of which any one counts as reproduced."""
        return self.select(self.group == "template")

    def share(self, padding: str, duplicated: bool) -> Estimate:
        """Share of these pairs reproduced in one cell."""
        return crossed_interval(self.cell(padding, duplicated), self.copies)

    def by_level(self, padding: str, duplicated: bool) -> dict[int, Estimate]:
        """Share reproduced by copies an epoch; in the de-duplicated cells all these pairs come once, and `copies` is what they would have."""
        return {int(n): self.select(self.copies == n).share(padding, duplicated) for n in np.unique(self.copies)}

    def effects(self) -> dict[str, Estimate]:
        """The two main effects, their difference and interaction, and each factor changed alone from <eot> padding and duplicates.

        Differences of shares, -1 to 1, positive where <eot> padding or duplication raises the share.
        """
        (v1, v1_dedup), (v2, v2_dedup) = ((self.cell(p, True), self.cell(p, False)) for p in PADDINGS)
        padding = (v1 - v2 + v1_dedup - v2_dedup) / 2
        duplication = (v1 - v1_dedup + v2 - v2_dedup) / 2
        contrasts = {
            "effect_of_padding": padding,
            "effect_of_duplication": duplication,
            "padding_minus_duplication": padding - duplication,
            "interaction": (v1 - v2) - (v1_dedup - v2_dedup),
            "padding_alone": v1 - v2,
            "duplication_alone": v1 - v1_dedup,
        }
        return {name: crossed_interval(values, self.copies, signed=True) for name, values in contrasts.items()}


def main_models() -> Factorial:
    """The four shipped models, one long training of each cell, from the found-*.csv that `python -m memlib.training.minisd find` wrote."""
    tables = []
    for (padding, duplicated), name in CELLS.items():
        path = minisd_folder() / "prompts" / f"found-{name}.csv"
        if not path.exists():
            raise InputError(f"There is no {path.name} in data/minisd/prompts: run python -m memlib.training.minisd find {name}.")
        tables.append(pd.read_csv(path).assign(padding=padding, duplicated=int(duplicated), training_seed=0))
    return _factorial(pd.concat(tables))


def replicates() -> Factorial:
    """The shorter trainings with other seeds, from the table that `python -m memlib.training.minisd replicates` wrote.

    A training seed of which a cell is still missing is left out. Raises InputError if no seed has all four.
    """
    if not table_file().exists():
        raise InputError("There is no replicates.csv in data/minisd: run python -m memlib.training.minisd replicates.")
    table = pd.read_csv(table_file())
    whole = table.groupby("training_seed").filter(lambda seed: len(seed[["padding", "duplicated"]].drop_duplicates()) == len(CELLS))
    if whole.empty:
        raise InputError("No training seed in replicates.csv has all four cells yet: run python -m memlib.training.minisd replicates again.")
    return _factorial(whole)


def _factorial(table: pd.DataFrame) -> Factorial:
    key = ["training_picture", "group"]
    # De-duplicated training lists the same prompts; their level is what the prompt set says, not what that training saw.
    wide = table.pivot(index=[*key, "copies"], columns=["training_seed", "padding", "duplicated"], values="memorized")
    seeds = sorted(table["training_seed"].unique())
    cells = [[[wide[seed, p, int(d)] for d in DUPLICATED] for p in PADDINGS] for seed in seeds]
    values = np.moveaxis(np.array(cells, float), -1, 0)
    if np.isnan(values).any():
        raise InputError("The tables of the four cells do not list the same prompts: run python -m memlib.training.minisd find, or replicates, again.")
    return Factorial(values, wide.index.get_level_values("copies").to_numpy(), wide.index.get_level_values("group").to_numpy())
