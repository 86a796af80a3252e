"""What trainings of MiniSD showed: the 2 x 2 of padding and duplication, and what mitigations that act in training changed.

A pair is one prompt with its training picture; it counts as reproduced if at least nine of ten seeds give a copy. Pairs and trainings are both
samples: a conclusion about training has to hold for other pairs and for another seed of training. Effects of the 2 x 2 have Student's interval
over the trainings, since a bootstrap of three covers too little. Shares by level have a bootstrap that draws both anew, crossed
(`memlib.judging.estimates.crossed_interval`), and pairs within their level of duplication, since the levels are fixed by design. The tables are
kept in data/minisd; `memlib.training.minisd.family` writes them, and this module only reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from memlib.base.errors import InputError
from memlib.base.paths import data_folder
from memlib.judging.bounded import student_mean
from memlib.judging.estimates import LEVEL, Estimate, crossed_interval
from memlib.models.minisd.paths import minisd_folder
from memlib.prompts.sets import PromptSet, load_prompts

PADDINGS = ("v1", "v2")  # <eot>, `!`
# Of the 2 x 2, the model of each cell (padding, with duplicates or without).
CELLS = {(p, d): f"minisd-{p}{'' if d else '-dedup'}" for d in (True, False) for p in PADDINGS}
PLAIN = "none"  # what tables call a training without a mitigation
JUDGED_LEVELS = (16, 64, 128)  # copies in an epoch at which a pair can be memorized in trainings of the replicates' length
SHOWN_LEVELS, SHOWN_EACH, SHOWN_HELD_OUT = (16, 64, 128), 2, 4  # what a strip of pictures shows
COMMANDS = {"replicates": "replicates", "training_cost": "mitigated --cost 12"}  # by table; "mitigated" for all others


@dataclass(frozen=True)
class Reproduced:
    """Reproduced or not after each kind of training: `values`, by kind, [N pairs, R trainings] of 0 and 1, training r of all kinds with one seed.

    `copies` [N] is how often a pair comes in an epoch of the duplicated data, `group` [N] "duplicated" or "template"; `seeds` [R] of training.
    """

    values: Mapping[str, np.ndarray]
    copies: np.ndarray
    group: np.ndarray
    seeds: tuple[int, ...]

    def select(self, rows: np.ndarray) -> Reproduced:
        """Return the pairs where the mask or index `rows` [N] says so."""
        return Reproduced({kind: values[rows] for kind, values in self.values.items()}, self.copies[rows], self.group[rows], self.seeds)

    def pairs(self, levels: tuple[int, ...] | None = None) -> Reproduced:
        """The pairs with one picture, of these `levels` of copies (None: all)."""
        return self.select((self.group == "duplicated") & (np.isin(self.copies, levels) if levels else True))

    def exact(self) -> Reproduced:
        """The pairs with one picture and more than one copy, which can be memorized exactly."""
        return self.select((self.group == "duplicated") & (self.copies > 1))

    def templates(self) -> Reproduced:
        """The captions with six colourings of one composition, of which any one counts as reproduced."""
        return self.select(self.group == "template")

    def share(self, kind: str) -> Estimate:
        """Share of these pairs reproduced after one kind of training."""
        return crossed_interval(self.values[kind], self.copies)

    def by_level(self, kind: str) -> dict[int, Estimate]:
        """The same by copies in an epoch; after training without duplicates these pairs came once, and `copies` is what they would have."""
        return {int(n): self.select(self.copies == n).share(kind) for n in np.unique(self.copies)}

    def difference(self, first: str, second: str) -> Estimate:
        """Share after the first kind of training minus share after the second, -1 to 1, paired by pair and seed."""
        return crossed_interval(self.values[first] - self.values[second], self.copies, signed=True)

    def contrasts(self) -> dict[str, np.ndarray]:
        """Of the 2 x 2, whose kinds are the models of CELLS: main effects, their difference and interaction, and each factor changed alone, [N, R].

        Alone means from <eot> padding and duplicates. Differences of shares, -1 to 1, positive where <eot> padding or duplication raises the share.
        """
        v1, v2, v1_dedup, v2_dedup = (self.values[name] for name in CELLS.values())
        padding = (v1 - v2 + v1_dedup - v2_dedup) / 2
        duplication = (v1 - v1_dedup + v2 - v2_dedup) / 2
        return {
            "effect_of_padding": padding,
            "effect_of_duplication": duplication,
            "padding_minus_duplication": padding - duplication,
            "interaction": (v1 - v2) - (v1_dedup - v2_dedup),
            "padding_alone": v1 - v2,
            "duplication_alone": v1 - v1_dedup,
        }

    def effects(self) -> dict[str, Estimate]:
        """The means of `contrasts`: of several trainings with Student's interval over them, as registered; of one training over its pairs."""
        if len(self.seeds) > 1:
            return {name: student_mean(values.mean(0)) for name, values in self.contrasts().items()}
        return {name: crossed_interval(values, self.copies, signed=True) for name, values in self.contrasts().items()}


def table_file(name: str) -> Path:
    """Where the table `name` lies: replicates, training_mitigations, training_quality, training_marks or training_cost."""
    return minisd_folder() / f"{name}.csv"


def main_models() -> Reproduced:
    """The four shipped models, one long training of each cell of the 2 x 2; raises InputError where one was not searched for memorized prompts."""
    tables = []
    for (padding, duplicated), name in CELLS.items():
        path = minisd_folder() / "prompts" / f"found-{name}.csv"
        if not path.exists():
            raise InputError(f"There is no {path.name} in data/minisd/prompts: run memlib minisd find {name}.")
        tables.append(pd.read_csv(path).assign(padding=padding, duplicated=int(duplicated), training_seed=0))
    return _square(pd.concat(tables))


def replicates() -> Reproduced:
    """The shorter trainings of the 2 x 2 with other seeds.

    A training seed of which a cell is still missing is left out. Raises InputError if no seed has all four.
    """
    table = _read("replicates")
    whole = table.groupby("training_seed").filter(lambda seed: len(seed[["padding", "duplicated"]].drop_duplicates()) == len(CELLS))
    if whole.empty:
        raise InputError("No training seed in replicates.csv has all four cells yet: run memlib minisd replicates again.")
    return _square(whole)


def _square(table: pd.DataFrame) -> Reproduced:
    kinds = [CELLS[p, bool(d)] for p, d in zip(table["padding"], table["duplicated"], strict=True)]
    return _reproduced(table.assign(kind=kinds), sorted(table["training_seed"].unique()), "the four cells")


def compared(mitigation: str) -> Reproduced:
    """The kinds PLAIN and `mitigation` for every seed that has both, each with the plain training of the same seed.

    Raises InputError where a table is missing, or no seed has both.
    """
    plain, other = _read("replicates"), _read("training_mitigations")
    plain = plain[(plain["padding"] == "v1") & (plain["duplicated"] == 1)]
    other = other[other["mitigation"] == mitigation]
    both = plain[["training_seed", "steps"]].merge(other[["training_seed", "steps"]]).drop_duplicates().sort_values("training_seed")
    if both.empty:
        raise InputError(f"No training seed has both a plain training and one with {mitigation}: run memlib minisd replicates, then mitigated.")
    joined = pd.concat([plain.assign(kind=PLAIN), other.assign(kind=mitigation)]).merge(both)
    return _reproduced(joined, list(both["training_seed"]), "replicates.csv and training_mitigations.csv")


def _reproduced(table: pd.DataFrame, seeds: list[int], what: str) -> Reproduced:
    # Training without duplicates lists the same prompts; their level is what the prompt set says, not what that training saw.
    wide = table.pivot(index=["training_picture", "group", "copies"], columns=["kind", "training_seed"], values="memorized")
    if wide.isna().any(axis=None):
        raise InputError(f"The tables of {what} do not list the same prompts: run memlib minisd again for what they lack.")
    values = {kind: wide[kind][seeds].to_numpy(float) for kind in dict.fromkeys(table["kind"])}
    level = wide.index.get_level_values
    return Reproduced(values, level("copies").to_numpy(), level("group").to_numpy(), tuple(map(int, seeds)))


def methods() -> dict[str, dict[str, Any]]:
    """The mitigations that act while MiniSD is trained, from data/training_mitigations.yml: by name, label, summary, source, cost, parameters."""
    return yaml.safe_load((data_folder() / "training_mitigations.yml").read_text(encoding="utf-8"))


def measured() -> list[str]:
    """The mitigations with at least one training, in the order of `methods`."""
    found = set(_read("training_mitigations")["mitigation"]) if table_file("training_mitigations").exists() else set()
    return [name for name in methods() if name in found]


def chosen(names: Sequence[str] | None = None) -> list[str]:
    """The mitigations called `names`, by default those `measured`; raises InputError for a name that there is not."""
    if unknown := [name for name in names or () if name not in methods()]:
        raise InputError(f"Unknown training-time mitigation {unknown[0]!r}: use one of {', '.join(methods())}.")
    return list(names or measured())


def quality(mitigation: str) -> dict[str, Estimate]:
    """Alignment (as a share of what real pictures reach) and share of right backgrounds on held-out prompts, after either training.

    Keys "alignment", "background", the same with "plain ", and "change of ...": mitigated minus plain, paired by prompt and seed.
    Raises InputError where there are no two trainings of one seed.
    """
    real = _read("training_quality").drop_duplicates("prompt")["alignment_of_real"].mean()
    result: dict[str, Estimate] = {}
    for name, column, unit in (("alignment", "alignment", real), ("background", "background_right", 1.0)):
        before, after = (values / unit for values in held_out(mitigation, column))
        result |= {f"plain {name}": crossed_interval(before), name: crossed_interval(after),
                   f"change of {name}": crossed_interval(after - before, signed=name == "background")}  # fmt: skip
    return result


def held_out(mitigation: str, column: str = "alignment") -> tuple[np.ndarray, np.ndarray]:
    """A column of training_quality.csv on held-out prompts after plain training and after training with a mitigation, [N, R] each, training r of
    both with one seed. Raises InputError where there are no two trainings of one seed."""
    rows = _read("training_quality")
    if not {PLAIN, mitigation} <= set(rows["mitigation"]):
        raise InputError(f"The quality of the plain trainings or of those with {mitigation} is not measured yet: {_run('training_quality')}.")
    wide = rows.pivot(index="prompt", columns=["mitigation", "training_seed", "steps"], values=column)
    plain, mitigated = wide[PLAIN], wide[mitigation]
    both = [run for run in mitigated.columns if run in plain.columns]
    if not both:
        raise InputError(f"No training seed has the quality of both a plain training and one with {mitigation}: {_run('training_quality')}.")
    return plain[both].to_numpy(float), mitigated[both].to_numpy(float)


def marked(mitigation: str, last_half: bool = False) -> dict[str, dict[int, Estimate]]:
    """Share of samples that a mitigation acted on, by kind and by first step of each tenth of the training.

    Kinds are "seen once" (fresh scenes), "1 copy" to "128 copies" and "templates". The value is the mean over trainings, `low` and `high`
    the smallest and largest of them. With `last_half` the second half of the training is one tenth. Raises InputError without a table.
    """
    rows = _read("training_marks")
    rows = rows[rows["mitigation"] == mitigation]
    if rows.empty:
        raise InputError(f"No training with {mitigation} is recorded yet: {_run('training_marks')}.")
    names = {"fresh": "seen once", "template": "templates"}
    rows = rows.assign(kind=[names.get(g, f"{c} {'copy' if c == 1 else 'copies'}") for g, c in zip(rows["group"], rows["copies"], strict=True)])
    if last_half:
        middle = (rows["last_step"].max() + 1) // 2
        rows = rows[rows["first_step"] >= middle].assign(first_step=middle)
    counts = rows.groupby(["group", "copies", "kind", "first_step", "training_seed"])[["seen", "marked"]].sum().reset_index()
    counts = counts[counts["seen"] > 0]
    found: dict[str, dict[int, Estimate]] = {}
    for (_, _, kind, step), runs in counts.groupby(["group", "copies", "kind", "first_step"]):
        shares = (runs["marked"] / runs["seen"]).to_numpy()
        low, high = float(shares.min()), float(shares.max())
        found.setdefault(str(kind), {})[int(str(step))] = Estimate(float(shares.mean()), low, high, int(runs["seen"].sum()), len(shares), LEVEL)
    return found


def costs() -> dict[str, Estimate]:
    """Time of a training step as a ratio to the plain step of the same turn: median, and the middle half as `low` and `high`.

    Raises InputError where it was not timed.
    """
    wide = _read("training_cost").pivot(index="repeat", columns="mitigation", values="seconds")
    ratios = wide.drop(columns=PLAIN).div(wide[PLAIN], axis=0)
    middle, low, high = (ratios.quantile(q) for q in (0.5, 0.25, 0.75))
    return {name: Estimate(float(middle[name]), float(low[name]), float(high[name]), len(ratios), 1, 0.5) for name in methods() if name in ratios}


def shown_prompts() -> PromptSet:
    """The repeated prompts of a strip of pictures: the first two of 16, 64 and 128 copies."""
    pairs = load_prompts("minisd-duplicated")
    return pairs.select([i for level in SHOWN_LEVELS for i in np.flatnonzero(pairs.table["copies"].to_numpy() == level)[:SHOWN_EACH]])


def strip_file(mitigation: str) -> Path:
    """Where the pictures of the first training with a mitigation lie, one row: of `shown_prompts`, then of held-out prompts."""
    return minisd_folder() / "training_pictures" / f"{mitigation}.png"


def read_strip(mitigation: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The kept pictures of a run, uint8 [K, 64, 64, 3]: of repeated prompts, and of held-out ones; None where there are none."""
    if not strip_file(mitigation).exists():
        return None
    with Image.open(strip_file(mitigation)) as image:
        strip = np.asarray(image.convert("RGB"))
    pictures = np.stack(np.split(strip, strip.shape[1] // strip.shape[0], axis=1))
    return pictures[:-SHOWN_HELD_OUT], pictures[-SHOWN_HELD_OUT:]


def _run(table: str) -> str:
    return f"run memlib minisd {COMMANDS.get(table, 'mitigated')}"


def _read(name: str) -> pd.DataFrame:
    if not table_file(name).exists():
        raise InputError(f"There is no {name}.csv in data/minisd: {_run(name)}.")
    return pd.read_csv(table_file(name), keep_default_na=False)  # a plain training is "none", which is no missing value
