"""What a model must show before a claim is tested on it (data/premises.yml): measured with intervals by one command, ``memlib premises``, on any substrate.

A figure that a substrate has no data for is reported with what is missing. No figure looks at a claim.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from memlib.base.errors import InputError, NotMeasured
from memlib.base.paths import data_folder
from memlib.base.writing import replacing
from memlib.judging.estimates import Estimate
from memlib.probes.premise_figures import FIGURES, Case

KEYS = {"says", "at_least", "at_most"}


@dataclass(frozen=True)
class Figure:
    """One figure of a premise with its bar: at least, at most, or both."""

    name: str
    premise: str
    says: str
    at_least: float | None = None
    at_most: float | None = None

    def state(self, estimate: Estimate) -> str:
        """ "met" if all of the interval lies within the bar, "missed" if none of it does, else "open". A figure without interval is a point."""
        low, high = (estimate.value if bound != bound else bound for bound in (estimate.low, estimate.high))
        floor, ceiling = (-float("inf") if self.at_least is None else self.at_least), (float("inf") if self.at_most is None else self.at_most)
        if floor <= low and high <= ceiling:
            return "met"
        return "missed" if high < floor or low > ceiling else "open"

    @property
    def bar(self) -> str:
        sides = (f"≥ {self.at_least:g}" if self.at_least is not None else "", f"≤ {self.at_most:g}" if self.at_most is not None else "")
        return ", ".join(side for side in sides if side)


@dataclass(frozen=True)
class Finding:
    """A figure as found on a substrate: an estimate, or the reason why it was not measured."""

    figure: Figure
    estimate: Estimate | None
    reason: str = ""

    @property
    def state(self) -> str:
        return "not measured" if self.estimate is None else self.figure.state(self.estimate)

    def line(self) -> str:
        found = self.reason if self.estimate is None else f"{self.estimate.text(3)} (bar {self.figure.bar}): {self.state}"
        return f"{self.figure.name}: {found}"


@lru_cache
def figures(path: Path | None = None) -> dict[str, Figure]:
    """The figures of data/premises.yml by name, in its order. Raises InputError for a file that is not as described there."""
    path = path or data_folder() / "premises.yml"
    found: dict[str, Figure] = {}
    for premise, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        if not isinstance(entry, dict) or set(entry) != {"says", "figures"}:
            raise InputError(f"{path}: the premise {premise!r} must have `says` and `figures`, and nothing else.")
        for name, given in entry["figures"].items():
            if unknown := set(given) - KEYS:
                raise InputError(f"{path}: the figure {name!r} has {', '.join(sorted(unknown))}: allowed are {', '.join(sorted(KEYS))}.")
            if "says" not in given or len(given) == 1:
                raise InputError(f"{path}: the figure {name!r} needs `says` and a bar, `at_least` or `at_most`.")
            if name not in FIGURES:
                raise InputError(f"{path}: nothing measures the figure {name!r}: known are {', '.join(FIGURES)}.")
            if name in found:
                raise InputError(f"{path}: the figure {name!r} is there twice.")
            found[name] = Figure(name, premise, **given)
    return found


def measure(case: Case, names: Iterable[str] | None = None) -> list[Finding]:
    """Measure the figures `names` (default: all) on a case, in the file's order. Raises InputError for an unknown name."""
    known = figures()
    wanted = list(known) if names is None else list(names)
    if unknown := [name for name in wanted if name not in known]:
        raise InputError(f"Unknown figure {unknown[0]!r}: use some of {', '.join(known)}.")
    found = []
    for name, figure in known.items():
        if name in wanted:
            try:
                found.append(Finding(figure, FIGURES[name](case)))
            except NotMeasured as error:
                found.append(Finding(figure, None, f"not measured: {error}"))
    return found


def kept_path(substrate: str) -> Path:
    """The file of a substrate's kept figures, given by name or folder."""
    return data_folder() / "premises" / f"{Path(substrate).name}.json"


def keep(substrate: str, findings: Iterable[Finding]) -> Path:
    """Write findings for later books, in place of those that are kept under the same names; return the file."""
    path = kept_path(substrate)
    found = {finding.figure.name: finding for finding in [*kept(substrate), *findings]}
    told = {
        name: {"reason": finding.reason} if finding.estimate is None else {part: round(value, 4) for part, value in finding.estimate.to_json().items()}
        for name, finding in found.items()
    }
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(told, indent=1).replace("NaN", "null") + "\n", encoding="utf-8")
    return path


def kept(substrate: str) -> list[Finding]:
    """What `keep` wrote, in the order of the figures; empty where nothing is kept. Figures that are no longer asked for are left out."""
    path = kept_path(substrate)
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = []
    for name, figure in figures().items():
        if "value" in told.get(name, ()):
            parts = {part: float("nan") if value is None else value for part, value in told[name].items()}
            found.append(Finding(figure, Estimate.from_json(parts)))
        elif name in told:
            found.append(Finding(figure, None, told[name]["reason"]))
    return found
