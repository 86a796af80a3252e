"""What the training-time mitigations did: shares reproduced beside plain training, the price in quality, whom the filters caught.

The tables are those of `memlib.training.minisd.mitigated`, the plain trainings are in replicates.csv. A mitigated training is compared with the
plain one of the same seed. Pairs and trainings are both samples, so the bootstrap draws both, crossed, pairs within their level of
duplication (`memlib.judging.estimates.crossed_interval`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from memlib.base.errors import InputError
from memlib.judging.estimates import LEVEL, Estimate, crossed_interval
from memlib.training.minisd import replicates
from memlib.training.minisd.mitigated import PLAIN, table
from memlib.training.minisd.training_cost import cost_file
from memlib.training.minisd.training_mitigations import TRAINING_MITIGATIONS

JUDGED_LEVELS = (16, 64, 128)  # copies in an epoch at which a pair can be memorized in trainings of this length
COMMAND = "python -m memlib.training.minisd mitigated"


@dataclass(frozen=True)
class Compared:
    """Reproduced or not after plain training and after training with one mitigation: `plain`, `mitigated` [N pairs, R seeds] of 0 and 1.

    `copies` [N] in an epoch and `group` [N], "duplicated" or "template"; `seeds` [R] of training.
    """

    plain: np.ndarray
    mitigated: np.ndarray
    copies: np.ndarray
    group: np.ndarray
    seeds: tuple[int, ...]

    def select(self, rows: np.ndarray) -> Compared:
        """Return the pairs where the mask or index `rows` [N] says so."""
        return Compared(self.plain[rows], self.mitigated[rows], self.copies[rows], self.group[rows], self.seeds)

    def judged(self) -> Compared:
        """The pairs with one picture and 16 to 128 copies."""
        return self.select((self.group == "duplicated") & np.isin(self.copies, JUDGED_LEVELS))

    def templates(self) -> Compared:
        """The captions with six colourings of one composition, of which any one counts as reproduced."""
        return self.select(self.group == "template")

    def shares(self) -> tuple[Estimate, Estimate]:
        """Share of these pairs reproduced after plain and after mitigated training."""
        return crossed_interval(self.plain, self.copies), crossed_interval(self.mitigated, self.copies)

    def difference(self) -> Estimate:
        """Share after mitigated minus share after plain training, -1 to 1, paired by pair and seed."""
        return crossed_interval(self.mitigated - self.plain, self.copies, signed=True)

    def by_level(self) -> tuple[dict[int, Estimate], dict[int, Estimate]]:
        """Share reproduced by copies in an epoch, after plain and after mitigated training."""
        parts = {int(n): self.select(self.copies == n).shares() for n in np.unique(self.copies)}
        return {n: shares[0] for n, shares in parts.items()}, {n: shares[1] for n, shares in parts.items()}


def measured() -> list[str]:
    """The mitigations with at least one training in training_mitigations.csv, in the order of the registry."""
    found = {row["mitigation"] for row in table("training_mitigations").rows()}
    return [name for name in TRAINING_MITIGATIONS if name in found]


def compared(mitigation: str) -> Compared:
    """Both trainings of every seed that has them. Raises InputError where a table is missing, or no seed has both."""
    plain = _read(replicates.table_file(), "python -m memlib.training.minisd replicates")
    plain = plain[(plain["padding"] == "v1") & (plain["duplicated"] == 1)]
    other = _read(table("training_mitigations").file, COMMAND)
    other = other[other["mitigation"] == mitigation]
    key = ["training_picture", "group", "copies"]
    columns = ["training_seed", "steps"]
    a, b = (t.pivot(index=key, columns=columns, values="memorized") for t in (plain, other))
    both = [run for run in b.columns if run in a.columns]
    if not both:
        raise InputError(f"No training seed has both a plain training and one with {mitigation}: run memlib.training.minisd replicates, then mitigated.")
    if not a.index.equals(b.index) or a[both].isna().any(axis=None) or b[both].isna().any(axis=None):
        raise InputError(f"replicates.csv and training_mitigations.csv do not list the same prompts: run {COMMAND} again.")
    return Compared(a[both].to_numpy(float), b[both].to_numpy(float), a.index.get_level_values("copies").to_numpy(),
                    a.index.get_level_values("group").to_numpy(), tuple(int(seed) for seed, _ in both))  # fmt: skip


def quality(mitigation: str) -> dict[str, Estimate]:
    """Alignment (as a share of what real pictures reach) and share of right backgrounds on held-out prompts, after either training.

    Keys "alignment", "background", the same with "plain ", and "change of ...": mitigated minus plain, paired by prompt and seed.
    Raises InputError where there are no two trainings of one seed.
    """
    rows = _read(table("training_quality").file, COMMAND)
    wide = {}
    for name in ("alignment", "background_right"):
        found = {m: t.pivot(index="prompt", columns=["training_seed", "steps"], values=name) for m, t in rows.groupby("mitigation")}
        if not {PLAIN, mitigation} <= set(found):
            raise InputError(f"The quality of the plain trainings or of those with {mitigation} is not measured yet: run {COMMAND}.")
        both = [run for run in found[mitigation].columns if run in found[PLAIN].columns]
        if not both:
            raise InputError(f"No training seed has the quality of both a plain training and one with {mitigation}: run {COMMAND}.")
        wide[name] = [found[m][both].to_numpy(float) for m in (PLAIN, mitigation)]
    real = rows.drop_duplicates("prompt")["alignment_of_real"].mean()
    pairs = {"alignment": [values / real for values in wide["alignment"]], "background": wide["background_right"]}
    result = {}
    for name, (plain, mitigated) in pairs.items():
        result |= {f"plain {name}": crossed_interval(plain), name: crossed_interval(mitigated),
                   f"change of {name}": crossed_interval(mitigated - plain, signed=name == "background")}  # fmt: skip
    return result


def marked(mitigation: str, last_half: bool = False) -> dict[str, dict[int, Estimate]]:
    """Share of samples that a mitigation acted on, by kind and by first step of each tenth of the training.

    Kinds are "seen once" (fresh scenes), "1 copy" to "128 copies" and "templates". The value is the mean over trainings, `low` and `high`
    the smallest and largest of them. With `last_half` the second half of the training is one tenth. Raises InputError without a table.
    """
    rows = _read(table("training_marks").file, COMMAND)
    rows = rows[rows["mitigation"] == mitigation]
    if rows.empty:
        raise InputError(f"No training with {mitigation} is recorded yet: run {COMMAND}.")
    names = {"fresh": "seen once", "template": "templates"}
    rows = rows.assign(kind=[names.get(g, f"{c} {'copy' if c == 1 else 'copies'}") for g, c in zip(rows["group"], rows["copies"])])
    if last_half:
        middle = (rows["last_step"].max() + 1) // 2
        rows = rows[rows["first_step"] >= middle].assign(first_step=middle)
    counts = rows.groupby(["group", "copies", "kind", "first_step", "training_seed"])[["seen", "marked"]].sum().reset_index()
    counts = counts[counts["seen"] > 0]
    found: dict[str, dict[int, Estimate]] = {}
    for (_, _, kind, step), runs in counts.groupby(["group", "copies", "kind", "first_step"]):
        shares = (runs["marked"] / runs["seen"]).to_numpy()
        ends = [float(end) for end in (shares.mean(), shares.min(), shares.max())]
        found.setdefault(kind, {})[int(step)] = Estimate(*ends, int(runs["seen"].sum()), len(shares), LEVEL)
    return found


def costs() -> dict[str, Estimate]:
    """Time of a training step as a ratio to the plain step of the same turn: median, and the middle half as `low` and `high`.

    Raises InputError where it was not timed.
    """
    rows = _read(cost_file(), f"{COMMAND} --cost 12")
    wide = rows.pivot(index="repeat", columns="mitigation", values="seconds")
    ratios = wide.drop(columns=PLAIN).div(wide[PLAIN], axis=0)
    spread = ratios.quantile([0.5, 0.25, 0.75])
    return {name: Estimate(*spread[name].to_list(), len(ratios), 1, 0.5) for name in TRAINING_MITIGATIONS if name in ratios}


def _read(path, command: str) -> pd.DataFrame:
    if not path.exists():
        raise InputError(f"There is no {path.name} in data/minisd: run {command}.")
    return pd.read_csv(path, keep_default_na=False)  # a plain training is "none", which is no missing value
