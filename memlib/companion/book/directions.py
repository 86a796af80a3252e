"""Reported against measured directions: one row a claim, a sign for each of its parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from memlib.companion.book.ledger import Entry
from memlib.judging.estimates import Estimate
from memlib.judging.judge import registration
from memlib.judging.registration import put_through
from memlib.judging.verdicts import Verdict

SIGNS = {"met": "▲", "refuted": "▼", "undecided": "◆", "not reported": "–", "not measured": "–"}
Drawn = tuple[Estimate, float, str, str]  # an estimate, its bound, the relation that the text says, the state
HALF = 90  # what the farther end of an interval, or its bound, is drawn at


@dataclass(frozen=True)
class Part:
    """A sign with what it says: ``state`` is one of SIGNS."""

    state: str
    says: str

    @property
    def sign(self) -> str:
        return SIGNS[self.state]


@dataclass(frozen=True)
class Bar:
    """An interval drawn against its bound at 0, to the right where the text expects it, the farthest end at HALF."""

    low: float
    value: float
    high: float
    state: str
    told: str


@dataclass(frozen=True)
class Row:
    """A claim: the signs of what its text reports and of what was measured, and the bar of the first part."""

    title: str
    link: str
    reported: tuple[Part, ...]
    measured: tuple[Part, ...]
    bar: Bar | None


@cache
def _put_through() -> dict[str, list[dict]]:
    rows: dict[str, list[dict]] = {}
    for row in put_through(registration()):
        rows.setdefault(str(row["claim"]), []).append(row)
    return rows


def row_of(entry: Entry, verdict: Verdict | None, link: str) -> Row:
    """The row of a claim, with `verdict` as what was measured."""
    claim = entry.claim
    texts = _put_through().get(claim.id, [])
    reported = tuple(Part(str(row["verdict"]), row["part"] if row["value"] is None else f"{row['part']}: {row['value']:.3g}") for row in texts)
    parts = list(_measured(entry, verdict))
    bar = next((_bar(*found) for *_, found in parts if found is not None), None)
    return Row(claim.title, link, reported, tuple(Part(state, says) for state, says, _ in parts), bar)


def _measured(entry: Entry, verdict: Verdict | None) -> Iterator[tuple[str, str, Drawn | None]]:
    """State, words and (estimate, bound, relation, state) of each part of a verdict."""
    if verdict is None:
        return
    registered = {part.name: part for claim in registration().claims if claim.id == entry.claim.id for part in claim.parts}
    for part in verdict.parts:
        drawn: Drawn | None = None
        if part.estimate is not None and part.bound is not None and part.part in registered:
            drawn = (part.estimate, part.bound, registered[part.part].relation, part.outcome)
        yield part.outcome, f"{part.part}{'' if part.estimate is None else f': {part.estimate.text(2)}'}", drawn


def _bar(estimate: Estimate, bound: float, relation: str, state: str) -> Bar | None:
    if estimate.low != estimate.low or estimate.high != estimate.high:
        return None
    way = 1 if ">" in relation else -1
    ends = [way * (end - bound) for end in (estimate.low, estimate.value, estimate.high)]
    farthest = max(map(abs, ends)) or 1.0
    low, value, high = sorted(round(HALF * end / farthest, 1) for end in ends)
    return Bar(low, value, high, state, f"{estimate.text(2)} against {bound:.3g}".replace("-", "−"))
