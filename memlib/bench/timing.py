"""Times of mitigations for a page: taken now, or those that ``python -m memlib.bench mitigations --runs`` left for the substrate.

A ratio of times hangs on the machine and on what runs beside it, not on the prompts. Where the benchmark was run with nothing else on the
machine, its runs are kept under ``data/bench`` and stand on every page about time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

from memlib.bench.mitigations import Run, Sampler, by_turn, measure
from memlib.errors import InputError
from memlib.mitigations import Mitigation, get
from memlib.sources import data_folder
from memlib.stats import Estimate, quantile_interval

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
        return None if not {title, other} <= set(values) else quantile_interval((values[title] / values[other]).to_numpy(), 0.5)

    def extreme(self, value: str, among: Sequence[str], largest: bool = False) -> str | None:
        """The mitigation among some with the smallest (or largest) median ratio to no mitigation; None where none of them was run."""
        values = by_turn(self.runs, value)
        medians = values.div(values["none"], axis=0).median().reindex(list(among)).dropna()
        return None if medians.empty else str(medians.idxmax() if largest else medians.idxmin())

    def table(self) -> pd.DataFrame:
        """One row a mitigation: U-Net evaluations and seconds a picture, medians, and the ratio of seconds to no mitigation."""
        seconds, evaluations = by_turn(self.runs, "seconds"), by_turn(self.runs, "evaluations")
        return pd.DataFrame({
            "U-Net evaluations per picture": evaluations.median().round(1), "seconds per picture": seconds.median().round(2),
            "time, as a multiple of none": {title: self.ratio("seconds", title).text(3) for title in seconds},
        })  # fmt: skip


def times(sampler: Sampler, mitigations: Sequence[Mitigation], prompts: Sequence[str], turns: int | None = None) -> Times:
    """Take the kept runs of the substrate if every mitigation is among them, or time `turns` turns now.

    With a number of `turns` they are always timed now. Mitigations that cannot be used on the substrate are left out.
    """
    name = sampler.substrate.name
    if turns is None and (found := kept(name)) is not None:
        wanted = ["none", *(m.title for m in mitigations)]
        if set(wanted) <= {run.mitigation for run in found.runs}:
            return Times([run for run in found.runs if run.mitigation in wanted], found.source)
    runs, _ = measure(sampler, [get("none"), *mitigations], {"prompts": list(prompts)}, TURNS if turns is None else turns)
    return Times(runs, "Timed in this run.")


def path_of(substrate: str) -> Path:
    """Return where the runs of a substrate are kept."""
    return data_folder() / "bench" / f"{Path(substrate).name}-runs.csv"


def write(runs: Sequence[Run], source: str, path: Path) -> None:
    """Write runs to a CSV file, one a row; `source`, where they come from, stands in the first row."""
    table = pd.DataFrame([asdict(run) for run in runs]).round(5)
    table["source"] = [source, *[""] * (len(table) - 1)]
    table.to_csv(path, index=False)


def kept(substrate: str) -> Times | None:
    """Return what is kept for a substrate, None where nothing is; raises InputError for a file that cannot be read."""
    path = path_of(substrate)
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path)
        names = [field.name for field in fields(Run)]
        return Times([Run(*row) for row in table[names].itertuples(index=False)], str(table["source"][0]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"The kept times {path.name} cannot be read: restore the file from the repository or delete it.") from error
