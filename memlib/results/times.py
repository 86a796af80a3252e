"""Times of mitigations for a page: taken now, or those that ``memlib bench mitigations --runs`` left for the substrate.

A ratio of times hangs on the machine and on what runs beside it, not on the prompts. Where the benchmark was run with nothing else on the
machine, its runs are kept under ``data/bench`` and stand on every page about time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memlib.base.paths import data_folder
from memlib.judging.estimates import Estimate, quantile_interval
from memlib.mitigations import Mitigation, get
from memlib.results.table import reading
from memlib.results.timed import Run, Sampler, by_turn, measure, read

# Turns where nothing is kept and no number is given.
TURNS = 5


@dataclass(frozen=True)
class Times:
    """Runs of several mitigations in turn, no mitigation among them, and where they come from."""

    runs: list[Run]
    source: str

    def ratio(self, value: str, title: str, other: str = "none") -> Estimate | None:
        """Median over turns of a quantity ("seconds", "evaluations") under one mitigation as a multiple of that under another in the same turn.

        With a bootstrap interval over turns; None where one of them was not run.
        """
        values = by_turn(self.runs, value)
        return None if not {title, other} <= set(values) else _median_ratio(values[title], values[other])

    def extreme(self, value: str, among: Sequence[str], largest: bool = False) -> str | None:
        """The mitigation among some with the smallest (or largest) median ratio to no mitigation; None where none of them was run."""
        values = by_turn(self.runs, value)
        medians = values.div(values["none"], axis=0).median().reindex(list(among)).dropna()
        return None if medians.empty else str(medians.idxmax() if largest else medians.idxmin())

    def against(self, ours: Sequence[str], leave_out: Sequence[str] = ()) -> dict[str, Estimate | None]:
        """The dearest of `ours` against no mitigation and against the cheapest of the others, in U-Net evaluations and in seconds, each chosen by
        its median: ``evaluations_to_none``, ``evaluations_to_cheapest``, and the same of seconds; None where one was not run."""
        timed, found = {run.mitigation for run in self.runs}, {}
        for what in ("evaluations", "seconds"):
            dearest = self.extreme(what, ours, largest=True) if set(ours) <= timed else None
            cheapest = self.extreme(what, sorted(timed - {"none", *ours, *leave_out}))
            found[f"{what}_to_none"] = None if dearest is None else self.ratio(what, dearest)
            found[f"{what}_to_cheapest"] = None if dearest is None or cheapest is None else self.ratio(what, dearest, cheapest)
        return found

    def table(self) -> pd.DataFrame:
        """One row a mitigation: U-Net evaluations and seconds a picture, medians, and the ratio of seconds to no mitigation."""
        seconds, evaluations = by_turn(self.runs, "seconds"), by_turn(self.runs, "evaluations")
        return pd.DataFrame({
            "U-Net evaluations per picture": evaluations.median().round(1), "seconds per picture": seconds.median().round(2),
            "time, as a multiple of none": {title: _median_ratio(seconds[title], seconds["none"]).text(3) for title in seconds},
        })  # fmt: skip


def kept_table(substrate: str) -> tuple[pd.DataFrame, str]:
    """Return the table of all mitigations (`for_page`) kept for a substrate and its provenance; an empty one, and what makes it, where there is none."""
    path = data_folder() / "bench" / f"{Path(substrate).name}.csv"
    if not path.is_file():
        return pd.DataFrame(), "Not measured here: memlib bench mitigations --out writes it."
    with reading(path, "table of kept times"):
        found = pd.read_csv(path)
        return for_page(found), str(found["provenance"].iloc[0])


def _median_ratio(values: pd.Series, others: pd.Series) -> Estimate:
    return quantile_interval((values / others).to_numpy(), 0.5)


def times(sampler: Sampler, mitigations: Sequence[Mitigation], prompts: Sequence[str], turns: int | None = None) -> Times:
    """Take the kept runs of the substrate if every mitigation is among them, or time `turns` turns now.

    With a number of `turns` they are always timed now. Mitigations that cannot be used on the substrate are left out.
    """
    name = sampler.substrate.name
    if turns is None and (kept := read(name)) is not None:
        runs, source = kept
        wanted = ["none", *(m.title for m in mitigations)]
        if set(wanted) <= {run.mitigation for run in runs}:
            return Times([run for run in runs if run.mitigation in wanted], source)
    runs, _ = measure(sampler, [get("none"), *mitigations], {"prompts": list(prompts)}, TURNS if turns is None else turns)
    return Times(runs, "Timed in this run.")


def ratio_text(row: Any, digits: int) -> str:
    """The ratio of a row of times to no mitigation, with its interval."""
    interval = "one picture" if np.isnan(row.ratio_low) else f"{row.ratio_low:.{digits}f}, {row.ratio_high:.{digits}f}"
    return f"{row.ratio:.{digits}f} [{interval}]"


def for_page(found: pd.DataFrame) -> pd.DataFrame:
    """The table (`table`, or what ``--out`` wrote of it) as a page shows it: a row a mitigation, columns by kind of prompts.

    None comes first and then what is quick with the first kind of prompts; the peak is the largest of all kinds. What was not measured is
    left out.
    """
    found = found[found["pictures"] > 0]
    kinds = {}
    for kind, part in found.set_index("mitigation").groupby("prompts", sort=False):
        ratios, evaluations = [ratio_text(row, 2) for row in part.itertuples()], part["evaluations"].round().astype(int)
        kinds[f"{kind} prompts"] = pd.DataFrame(
            {"seconds per picture": part["seconds"].round(2), "as a multiple of none": ratios, "U-Net evaluations": evaluations}
        )
    shown = pd.concat(kinds, axis=1)
    shown["memory", "peak in MiB"] = found.groupby("mitigation")["peak_mib"].max().round().astype(int)
    return shown
