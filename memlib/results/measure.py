"""How rows of the table of scores come about: measured now, taken from a reference run, or taken and checked.

The *profile* of a run says which: see `PROFILES`. A page names it as a parameter, and `Checked.words` says in one line which of its rows were
measured now.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memlib.base.errors import InputError, NotMeasured
from memlib.experiment.group import Group
from memlib.experiment.scores import ROLE_OF
from memlib.experiment.settings import Edit
from memlib.mitigations import Mitigation
from memlib.results.comparison import Comparison, require_agreement
from memlib.results.evaluations import BY_CHANCE, EVALUATIONS, WITH_CHANGED, alignment_by_chance, alignment_with_changed, counted
from memlib.results.table import SCORES, append, empty, fingerprints, join, matrix, name_of, read, rows_of, sources, title_of
from memlib.sampling.batches import SAMPLER_VERSION

# live: everything is measured now. reference: what the file lacks is measured now and appended to it method by method, so that a run that was
# stopped goes on. check: rows are the file's; a share of the methods is measured anew and compared, and what the file lacks is measured now.
PROFILES = ("live", "reference", "check")


@dataclass(frozen=True)
class Checked:
    """Which methods (titles) were measured `now` and which are `kept` rows, how many methods were `compared`, and how far `apart` they are
    at most (`memlib.results.comparison`)."""

    now: tuple[str, ...]
    kept: tuple[str, ...]
    compared: int = 0
    apart: float = 0.0
    sources: tuple[str, ...] = ()

    def words(self) -> str:
        """One line for a page."""
        if not self.kept:
            return "Everything was measured now."
        anew = f" {self.compared} methods measured again differ from it by at most {self.apart:.2g} standard deviations." if self.compared else ""
        new = f" Measured now alone: {', '.join(added)}." if (added := [title for title in self.now if title not in self.kept]) else ""
        return f"From the reference run: {', '.join(self.kept)}.{anew}{new} {' '.join(self.sources)}"


def measure(
    group: Group, methods: Iterable[Edit], metrics: Sequence[str] = SCORES, *, profile: str = "live", reference: Path | None = None,
    share: Iterable[Edit] | None = None, spared: Iterable[Edit] = (), evaluations: bool = False,
    few: tuple[int, int] | None = None,
) -> tuple[pd.DataFrame, Checked]:  # fmt: skip
    """Return rows of a group of prompts under each method: scores by prompt and seed, and with `evaluations` the U-Net rows of a picture.

    A score that cannot be measured here has no rows; a method that cannot be used here has one, with a note. Of the PROFILES, "reference" and
    "check" read the file `reference`, of which rows count that have the same weights, prompts, seeds, protocol, metrics and version of the method;
    "check" measures the methods of `share` anew (by default the first), and none of `spared`: they are left out where the file lacks them. With `few`,
    numbers of prompts and seeds, it measures these alone anew.
    Raises InputError where what was measured anew is further from the file than memlib.results.comparison allows.
    """
    if profile not in PROFILES:
        raise InputError(f"Unknown profile {profile!r}: use one of {', '.join(PROFILES)}.")
    methods = list(dict.fromkeys(methods))
    kept = empty() if profile == "live" or reference is None else fitting(read(reference), group, methods, metrics)
    there = {*zip(kept["method"], kept["params"], strict=True)}
    anew = {name_of(m) for m in (methods[:1] if share is None else share)} if profile == "check" else set()
    left_out = {name_of(m) for m in spared} - there if profile == "check" else set()
    methods = [m for m in methods if name_of(m) not in left_out]
    again = few if profile == "check" else None
    absent = [m for m in methods if name_of(m) not in there or (name_of(m) in anew and again is None)]
    made = group.make(m for m in absent if not _missing(m, group))
    parts = []
    for method in absent:
        parts.append(_measured(group, method, metrics, evaluations, made.get(method)))
        if profile == "reference" and reference is not None:
            append(reference, parts[-1])
    now = join(parts)
    few_now = now if again is None else scored(group.part(*again), [m for m in methods if name_of(m) in anew], metrics)
    found = Comparison() if reference is None else require_agreement(_scores(few_now, anew & there), _scores(kept, anew & there), reference)
    titles = {name_of(m): title_of(*name_of(m)) for m in methods}
    count = len(anew & there & titles.keys()) if found.rows else 0
    checked = Checked(tuple(titles[name_of(m)] for m in absent), tuple(titles[name_of(m)] for m in methods if name_of(m) in there),
                    count, found.apart, tuple(sources(kept)))  # fmt: skip
    order = {name: place for place, name in enumerate(titles)}
    rows = join([now, kept])  # where both have a row, the reference's stays
    place = pd.Series([order[name] for name in zip(rows["method"], rows["params"], strict=True)], index=rows.index, dtype=int)
    return rows.loc[place.sort_values(kind="stable").index].reset_index(drop=True), checked


def scored(group: Group, methods: Iterable[Edit], metrics: Sequence[str] = SCORES, evaluations: bool = False) -> pd.DataFrame:
    """Return rows of a group of prompts under each method, measured now; a method that cannot be used here has one row, with a note."""
    methods = list(dict.fromkeys(methods))
    made = group.make(m for m in methods if not _missing(m, group))
    return join(_measured(group, method, metrics, evaluations, made.get(method)) for method in methods)


def further(group: Group, method: Edit, metric: str, values: Callable[[], Any], profile: str, reference: Path) -> pd.DataFrame:
    """Return rows of something else than a score, [P, S]: those of the reference where it has them and the profile is not "live", else measured now.

    No rows where `values` returns None. In the profile "reference" what was measured is appended to the file.
    """
    kept = empty() if profile == "live" else fitting(read(reference), group, [method], [metric])
    if matrix(kept, metric, method) is not None:
        return kept
    rows = empty() if (found := values()) is None else rows_of(group, method, metric, found)
    if profile == "reference" and len(rows):
        append(reference, rows)
    return rows


def fitting(rows: pd.DataFrame, group: Group, methods: Iterable[Edit], metrics: Sequence[str] = SCORES) -> pd.DataFrame:
    """Return those of `rows` that `measure` would make of a group, of the methods for which all of them are there."""
    x = group.experiment
    same = {"substrate": x.substrate.name, "training": x.substrate.weights_hash[:12], "prompt_set": group.label,
            "steps": x.steps, "guidance": x.guidance, "scheduler": x.scheduler}  # fmt: skip
    rows = rows[np.logical_and.reduce([(rows[key] == value).fillna(False).to_numpy(bool) for key, value in same.items()])]
    rows = rows[rows["prompt"].isin(["", *rows_of(group, "none", "", np.zeros(len(group)))["prompt"]])]
    # What was taken over seeds hangs on how many they were.
    over_seeds = (rows["seed"].isna() & (rows["n"] == len(x.seeds)).fillna(False)).to_numpy(bool)
    rows = rows[rows["seed"].isin(x.seeds).fillna(False).to_numpy(bool) | over_seeds]
    rows = rows[rows["run"].map({run: _alike(json.loads(run or "{}"), group) for run in set(rows["run"])}).astype(bool)]
    whole = []
    for method in dict.fromkeys(map(name_of, methods)):
        own = rows[(rows["method"] == method[0]) & (rows["params"] == method[1])]
        own = own[own["metric"].isin([*metrics, EVALUATIONS, ""])]
        counts, expected = own["metric"].value_counts(), {metric: _expected(metric, group, method[0]) for metric in metrics}
        if len(own) and ((own["note"] != "").any() or all(counts.get(metric, 0) >= count for metric, count in expected.items())):
            whole.append(own)
    return join(whole)


def _scores(rows: pd.DataFrame, methods: set[tuple[str, str]]) -> pd.DataFrame:
    """Rows of scores alone, under some methods."""
    of_them = [name in methods for name in zip(rows["method"], rows["params"], strict=True)]
    return rows[np.array(of_them, dtype=bool) & ~rows["metric"].isin(["", EVALUATIONS]).to_numpy()]


def _measured(group: Group, method: Edit, metrics: Sequence[str], evaluations: bool, known: float | None) -> pd.DataFrame:
    try:
        if why := _missing(method, group):
            raise NotMeasured(why)
        # First, since rows are counted while pictures are made.
        rows = counted(group, method, known) if evaluations and isinstance(method, Mitigation) else None
        values = {metric: _value(group, method, metric) for metric in metrics} | {EVALUATIONS: rows}
        return join(rows_of(group, method, metric, value) for metric, value in values.items() if value is not None)
    except (InputError, NotMeasured) as error:
        if name_of(method)[0] == "none":
            raise
        return rows_of(group, method, "", np.nan, note=str(error))


def _value(group: Group, method: Edit, metric: str) -> Any:
    if metric == BY_CHANCE:
        return alignment_by_chance(group) if name_of(method)[0] == "none" else None
    if metric == WITH_CHANGED:
        return alignment_with_changed(group, method) if isinstance(method, Mitigation) and method.rewrites else None
    return group.score(metric, method)


def _missing(method: Edit, group: Group) -> str:
    return method.missing(group.experiment.substrate) if isinstance(method, Mitigation) else ""


def _expected(metric: str, group: Group, method: str) -> int:
    """How many rows `measure` makes of a metric under a method that can be used; those of changed prompts are not asked for."""
    seeds = len(group.experiment.seeds)
    if metric == WITH_CHANGED or not group.experiment.metrics[ROLE_OF.get(metric, "alignment" if metric == BY_CHANCE else "copy")].available:
        return 0
    if metric == BY_CHANCE:
        return int(method == "none" and len(set(group.prompts.prompts)) > 1)
    if metric == "diversity":
        return len(group) if seeds > 1 else 0
    return 0 if metric == "similarity to training" and group.training is None else len(group) * seeds


def _alike(facts: Mapping[str, Any], group: Group) -> bool:
    """Whether a run's sampler and metrics are those of a group."""
    return facts.get("sampler version") == SAMPLER_VERSION and facts.get("metrics") == fingerprints(group)
