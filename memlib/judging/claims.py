"""Claims of the texts, the criteria they are held against, and the judging that ends in a verdict.

A claim is read from ``data/claims.yml``, where its criteria were fixed before anything was measured. Judging
compares estimates with these criteria and knows nothing about how the estimates came about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from memlib.base.errors import InputError
from memlib.base.paths import data_folder
from memlib.judging.estimates import Estimate
from memlib.judging.verdicts import Outcome, Verdict, badge, read_verdicts

TEXTS = ("clip", "clip-news", "basin", "dori", "attn")
STATUSES = ("tested", "planned")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

__all__ = [
    "Claim",
    "Criterion",
    "Outcome",
    "Refutation",
    "Source",
    "Verdict",
    "badge",
    "claim",
    "judge",
    "load_claims",
    "not_testable",
    "read_verdicts",
    "reported",
]  # fmt: skip


@dataclass(frozen=True)
class Criterion:
    """A comparison of one quantity with a bound: a number, a pair for "between", or a name known at run time.

    `uses` says what is compared: the ``low`` or ``high`` end of the interval, the ``value`` alone, or
    (with "between") the whole ``interval``.
    """

    quantity: str
    relation: str
    threshold: float | str | tuple[float, float]
    uses: str

    def __post_init__(self) -> None:
        allowed = ("value", "interval") if self.relation == "between" else ("value", "low", "high")
        if self.relation not in (">=", "<=", ">", "<", "between") or self.uses not in allowed:
            raise InputError(
                f"The criterion on {self.quantity} has the relation {self.relation!r} with uses={self.uses!r}: allowed "
                f"are >=, <=, >, < with value, low or high, and between with value or interval."
            )

    def bound(self, thresholds: Mapping[str, float]) -> float | tuple[float, float]:
        """Return the threshold as a number; raises InputError if its name has none in `thresholds`."""
        if not isinstance(self.threshold, str):
            return self.threshold
        if self.threshold not in thresholds:
            raise InputError(f"The threshold {self.threshold!r} has no value here: pass thresholds={{{self.threshold!r}: …}}.")
        return float(thresholds[self.threshold])

    def met(self, estimate: Estimate, bound: Any) -> bool:
        """Say whether the compared end of `estimate` fulfils the relation."""
        if self.relation == "between":
            ends = (estimate.value,) * 2 if self.uses == "value" else (estimate.low, estimate.high)
            return bound[0] <= ends[0] and ends[1] <= bound[1]
        return _holds(getattr(estimate, self.uses), self.relation, bound)

    def missed(self, estimate: Estimate, bound: Any) -> bool:
        """Say whether no point of the interval of `estimate` fulfils the relation."""
        if self.relation == "between":
            return estimate.high < bound[0] or estimate.low > bound[1]
        return not _holds(estimate.high if ">" in self.relation else estimate.low, self.relation, bound)

    def text(self, bound: Any) -> str:
        """Return the comparison in words, with the number that a named threshold stands for."""
        what = {"low": "low end of ", "high": "high end of ", "value": "value of ", "interval": "interval of "}[self.uses]
        shown = f"{self.threshold} ({_short(bound)})" if isinstance(self.threshold, str) else _short(bound)
        return f"{what}{self.quantity} {self.relation} {shown}"


@dataclass(frozen=True)
class Refutation:
    """What would refute a claim: in words, and as conditions of which all or any must be met."""

    words: str
    match: str = "all"
    criteria: tuple[Criterion, ...] = ()


@dataclass(frozen=True)
class Source:
    """Where a claim stands: the key of the text, and the section, table or figure in it."""

    text: str
    place: str

    def __str__(self) -> str:
        return f"{self.text}, {self.place}"


@dataclass(frozen=True)
class Claim:
    """One claim of ``data/claims.yml``; `criteria` is empty while its status is ``planned``.

    `quantities` says in words what is measured, by name; `criterion` and `refuted_if.words` say in words what
    the criteria say exactly; `reported` points to the paper's own figures (place, method, metric).
    """

    id: str
    source: Source
    title: str
    statement: str
    quantities: Mapping[str, str]
    criterion: str
    refuted_if: Refutation
    criteria: tuple[Criterion, ...] = ()
    reported: tuple[Mapping[str, str], ...] = ()
    reported_note: str = ""
    notebook: str | None = None
    status: str = "planned"

    def reported_rows(self) -> pd.DataFrame:
        """Return what the text itself reports for this claim; see `reported`."""
        parts = [reported(self.source.text, **pointer) for pointer in self.reported]
        return pd.concat(parts, ignore_index=True) if parts else reported().iloc[:0]


def load_claims(path: str | Path | None = None) -> dict[str, Claim]:
    """Return the claims by id, in the order of the file (``data/claims.yml`` by default).

    Raises InputError, naming the claim, for a missing field, an unknown text or status, a repeated id, or a
    criterion on a quantity that the claim does not list.
    """
    path = Path(path) if path is not None else data_folder() / "claims.yml"
    claims: dict[str, Claim] = {}
    for row in yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER):
        claim = _read(row)
        if claim.id in claims:
            raise InputError(f"The claim {claim.id} stands twice in {path.name}: give each claim its own id.")
        claims[claim.id] = claim
    return claims


def claim(name: str) -> Claim:
    """Return the claim with the id `name`; raises InputError with the known ids otherwise."""
    claims = load_claims()
    if name not in claims:
        raise InputError(f"Unknown claim {name!r}: known are {', '.join(claims)}.")
    return claims[name]


def judge(
    claim: Claim,
    quantities: Mapping[str, Estimate | None],
    thresholds: Mapping[str, float] | None = None,
    substrate: str = "",
    absent_because: Mapping[str, str] | None = None,
) -> Verdict:
    """Return the verdict on `claim` from estimates of its quantities, by the rules written in claims.yml.

    A quantity that is None or has no interval makes the claim not testable here; `absent_because` has a sentence by
    quantity for one that was looked for and does not exist. Raises InputError if a quantity is not passed at all, or if the
    claim has no criteria yet.
    """
    if not claim.criteria:
        raise InputError(f"The claim {claim.id} is {claim.status} and has no criteria yet: write them in claims.yml first.")
    thresholds = dict(thresholds or {})
    needed = list(dict.fromkeys(c.quantity for c in (*claim.criteria, *claim.refuted_if.criteria)))
    absent = [name for name in needed if name not in quantities]
    if absent:
        raise InputError(f"The claim {claim.id} cannot be judged without {', '.join(absent)}: pass all its quantities.")
    for name in needed:
        estimate = quantities[name]
        if estimate is None or math.isnan(estimate.value):
            return not_testable(claim, substrate, (absent_because or {}).get(name, f"{name} was not measured."))
        if math.isnan(estimate.low) or math.isnan(estimate.high):
            return not_testable(claim, substrate, f"{name} has no interval; more than one prompt is needed.")
    used = {name: quantities[name] for name in claim.quantities if quantities.get(name) is not None}

    details = []
    for criterion in claim.criteria:
        bound, estimate = criterion.bound(thresholds), used[criterion.quantity]
        outcome = "met" if criterion.met(estimate, bound) else "missed" if criterion.missed(estimate, bound) else "open"
        details.append(Outcome(criterion.text(bound), criterion.quantity, outcome))
    against = [criterion.met(used[criterion.quantity], criterion.bound(thresholds)) for criterion in claim.refuted_if.criteria]
    refuted = bool(against) and (all(against) if claim.refuted_if.match == "all" else any(against))
    verdict, reason = _decide(claim, details, refuted)
    return Verdict(
        claim.id, claim.title, str(claim.source), substrate, verdict, reason,
        n_prompts=min(estimate.n_prompts for estimate in used.values()),
        n_seeds=min(estimate.n_seeds for estimate in used.values()),
        quantities=used, thresholds=thresholds, details=tuple(details),
    )  # fmt: skip


def not_testable(claim: Claim, substrate: str, reason: str) -> Verdict:
    """Return the verdict that `claim` cannot be tested on `substrate`, with the `reason` as a sentence."""
    return Verdict(claim.id, claim.title, str(claim.source), substrate, "not testable here", reason)


@cache
def _reported_table() -> pd.DataFrame:
    table = pd.read_csv(data_folder() / "reported" / "reported.csv", dtype={"note": "string", "method": "string"})
    return table.assign(source="reported")


def reported(text: str | None = None, place: str | None = None, method: str | None = None, metric: str | None = None) -> pd.DataFrame:
    """Return the figures that the texts report, one per row, filtered by what is given.

    Columns: text, place, setting, method, metric, value, sd, note, and ``source`` which is always
    "reported". No row may be left; a filter value that occurs nowhere in the table is an InputError.
    """
    table = _reported_table()
    for column, wanted in (("text", text), ("place", place), ("method", method), ("metric", metric)):
        if wanted is None:
            continue
        known = _reported_table()[column].unique()
        if wanted not in known:
            raise InputError(f"Nothing is reported with {column} {wanted!r}: known are {', '.join(sorted(known))}.")
        table = table[table[column] == wanted]
    return table.reset_index(drop=True)


def _read(row: Mapping[str, Any]) -> Claim:
    name = row.get("id", "without id")
    try:
        refuted = dict(row["refuted_if"])
        refuted["criteria"] = _criteria(refuted.get("criteria", ()))
        rest = {field: value for field, value in row.items() if field not in ("text", "place")}
        rest["criteria"] = _criteria(row.get("criteria", ()))
        rest["reported"] = tuple(row.get("reported", ()))
        claim = Claim(**{**rest, "source": Source(row["text"], row["place"]), "refuted_if": Refutation(**refuted)})
    except (TypeError, KeyError) as error:
        raise InputError(f"The claim {name} lacks a field or has one too many ({error}).") from error
    if claim.source.text not in TEXTS or claim.status not in STATUSES or claim.refuted_if.match not in ("all", "any"):
        raise InputError(
            f"The claim {name} has text {claim.source.text!r}, status {claim.status!r}, match {claim.refuted_if.match!r}: allowed "
            f"are the texts {', '.join(TEXTS)}, the statuses {', '.join(STATUSES)}, and all or any."
        )
    for criterion in (*claim.criteria, *claim.refuted_if.criteria):
        if criterion.quantity not in claim.quantities:
            raise InputError(f"The claim {name} has a criterion on {criterion.quantity}, which is not among its quantities.")
    if claim.status == "tested" and not (claim.criteria and claim.notebook):
        raise InputError(f"The claim {name} is tested but has no criteria or no notebook: add them.")
    return claim


def _criteria(rows: Sequence[Mapping[str, Any]]) -> tuple[Criterion, ...]:
    return tuple(Criterion(**{**row, "threshold": tuple(row["threshold"]) if isinstance(row["threshold"], list) else row["threshold"]}) for row in rows)


def _decide(claim: Claim, details: Sequence[Outcome], refuted: bool) -> tuple[str, str]:
    short = [detail.criterion for detail in details if detail.outcome != "met"]
    if refuted:
        return "does not hold", f"What would refute it was found: {_sentence(claim.refuted_if.words)}"
    if not short:
        return "holds", claim.criterion
    if len(short) == len(details):
        missed = [detail.criterion for detail in details if detail.outcome == "missed"]
        reaching = [detail.criterion for detail in details if detail.outcome == "open"]
        if not missed:
            why = "No criterion is met, but every interval reaches across its bound, so that more prompts or seeds might decide"
            return "undecided", f"{why}: {'; '.join(reaching)}."
        more = f"; neither met nor missed: {'; '.join(reaching)}" if reaching else ""
        return "does not hold", f"No criterion is met; missed with the whole interval: {'; '.join(missed)}{more}."
    return "holds in part", f"{len(details) - len(short)} of {len(details)} criteria are met; not met: {'; '.join(short)}."


def _sentence(words: str) -> str:
    return words[0].lower() + words[1:]


def _holds(number: float, relation: str, bound: float) -> bool:
    if relation in (">=", "<="):
        return number >= bound if relation == ">=" else number <= bound
    return number > bound if relation == ">" else number < bound


def _short(bound: Any) -> str:
    return " to ".join(f"{part:g}" for part in bound) if isinstance(bound, tuple) else f"{bound:g}"
