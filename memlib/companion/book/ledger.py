"""The claims ledger: each claim of data/claims.yml with the verdicts that executed notebooks hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from memlib.base.errors import InputError
from memlib.judging.claims import Claim, load_claims
from memlib.judging.verdicts import Verdict, read_verdicts

NOT_TESTED = "not tested yet"
METRIC_NAMES = {
    "sscd_to_original": "SSCD to the unedited picture",
    "sscd_to_training": "SSCD to the training picture",
    "clip_score": "CLIPScore",
    "aesthetic": "aesthetic score",
    "lpips": "LPIPS across seeds",
}


@dataclass(frozen=True)
class Entry:
    """A claim, the verdict on each substrate, and the notebook to read about it, if that is among those given."""

    claim: Claim
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    notebook: str | None = None

    def reported(self) -> list[tuple[str, str]]:
        """What the text itself reports: quantity in words with its place, and figure with its spread where given."""
        lines = []
        for row in self.claim.reported_rows().to_dict("records"):
            name = METRIC_NAMES.get(row["metric"], str(row["metric"]).replace("_", " "))
            method = "" if pd.isna(row["method"]) else f", {_method(str(row['method']))}"
            spread = "" if pd.isna(row["sd"]) else f" ± {row['sd']:g}"
            lines.append((f"{name}{method} ({row['place']})", f"{row['value']:g}{spread}"))
        return lines


def collect(claims: Path, notebooks: Iterable[Path], others: Iterable[Verdict] = ()) -> list[Entry]:
    """One entry a claim, in the order of `claims`; `others` are verdicts from elsewhere, which never replace these.

    Raises InputError for a claims file or a notebook that cannot be read, and for a verdict on an unknown claim.
    """
    listed = load_claims(claims)
    found: dict[str, dict[str, Verdict]] = {name: {} for name in listed}
    judged_in: dict[str, str] = {}
    paths = list(notebooks)
    for path in paths:
        for verdict in map(Verdict.from_json, read_verdicts(path)):
            _add(verdict, found, path.stem)
            judged_in.setdefault(verdict.claim, path.stem)
    for verdict in others:
        _add(verdict, found, "elsewhere")
    stems = {path.stem for path in paths}
    # Before a claim was judged, the notebook that claims.yml promises is the one to read, if it is there.
    return [Entry(claim, found[name], judged_in.get(name) or (claim.notebook if claim.notebook in stems else None)) for name, claim in listed.items()]


def counts(entries: Iterable[Entry]) -> dict[str, Counter]:
    """How often each verdict was reached, by substrate."""
    result: dict[str, Counter] = {}
    for entry in entries:
        for substrate, verdict in entry.verdicts.items():
            result.setdefault(substrate, Counter())[verdict.verdict] += 1
    return result


def as_text(entries: Iterable[Entry]) -> str:
    """The ledger as lines for a terminal."""
    lines = []
    for entry in entries:
        told = "; ".join(f"{name}: {v.verdict}" for name, v in entry.verdicts.items()) or NOT_TESTED
        lines.append(f"{entry.claim.id:<4} {entry.claim.title:<72.72} {told}")
    return "\n".join(lines)


def _add(verdict: Verdict, found: dict[str, dict[str, Verdict]], where: str) -> None:
    if verdict.claim not in found:
        raise InputError(f"A verdict in {where} is on the claim {verdict.claim}, which data/claims.yml does not list.")
    found[verdict.claim].setdefault(verdict.substrate, verdict)


def _method(key: str) -> str:
    return f"({key})" if len(key) == 1 else key.replace("_", " ")
