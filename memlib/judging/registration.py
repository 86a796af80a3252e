"""What is asked of every claim before it is measured, and what the texts' own figures answer.

`data/registration.yml` fixes for each claim its parts, their bounds with reasons, the contrast and the numbers of prompts and seeds. A criterion judges the
text's statement only if the text's own reported figures can pass it: `put_through` compares them by the comparison that measured intervals go through
(`part_verdict`), and `claim_verdict` makes one verdict of the parts.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from memlib.base.errors import InputError
from memlib.base.paths import data_folder

TEXTS = {"C": "clip", "B": "basin", "A": "attn", "D": "dori"}  # by a claim's first letter
BOUNDS = ("strict", "lax", "near", "lost")
PartVerdict = Literal["met", "refuted", "undecided", "not reported"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextFigure(_Strict):
    """Rows of data/reported/reported.csv: the sum of `add` minus that of `subtract`, or as a share of `share_of`.

    A row is named by place, method and metric, and before them by its text where that is not the claim's own.
    """

    add: tuple[tuple[str, ...], ...] = Field(min_length=1)
    subtract: tuple[tuple[str, ...], ...] = ()
    share_of: tuple[str, ...] | None = None


class Part(_Strict):
    """One comparison: the whole interval of `quantity` against `bound`, a number or one of BOUNDS."""

    name: str
    kind: Literal["direction", "strength"]
    quantity: str
    relation: Literal["<", "<=", ">", ">="]
    bound: Literal["strict", "lax", "near", "lost"] | float
    reason: str | None = None
    text: TextFigure | None = None
    stands_for: str | None = None
    text_value: float | None = None
    text_source: str | None = None

    @model_validator(mode="after")
    def _says_why(self) -> Part:
        if self.kind == "strength" and not self.reason:
            raise ValueError("a part of the kind strength gives a reason for its bound")
        if (self.text is not None and self.text_value is not None) or (self.text_value is None) != (self.text_source is None):
            raise ValueError("a figure of the text is either rows of reported.csv or a text_value with its text_source")
        return self


class RegisteredClaim(_Strict):
    """A claim with the text's words for strength (`says`), the design of its measurement and its parts."""

    id: str
    says: str
    design: str
    parts: tuple[Part, ...] = Field(min_length=1)
    first_edition: str | None = None
    note: str | None = None


class Registration(_Strict):
    """The whole file: when it was fixed, models measured before, bounds of the published descriptor, designs by name, claims."""

    registered: dict[Literal["date", "commit"], str]
    measured_before: tuple[str, ...] = ()
    bounds: dict[str, float]
    designs: dict[str, dict[str, str | int]]
    claims: tuple[RegisteredClaim, ...]

    @model_validator(mode="after")
    def _fits(self) -> Registration:
        if set(self.bounds) != set(BOUNDS):
            raise ValueError(f"bounds are {', '.join(BOUNDS)}")
        ids = [claim.id for claim in self.claims]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"registered twice: {', '.join(twice)}")
        if unknown := sorted({claim.design for claim in self.claims} - set(self.designs)):
            raise ValueError(f"no design is called {', '.join(unknown)}")
        return self

    def claim(self, name: str) -> RegisteredClaim:
        """The claim with this id. Raises InputError where none has it."""
        for claim in self.claims:
            if claim.id == name:
                return claim
        raise InputError(f"No claim {name!r} is registered: there are {', '.join(claim.id for claim in self.claims)}.")

    def bounds_for(self, strict: float) -> dict[str, float]:
        """The bounds of a descriptor whose strict bound is `strict`, in the proportions of the published one."""
        return {name: value * strict / self.bounds["strict"] for name, value in self.bounds.items()}


def load(path: Path | None = None) -> Registration:
    """Read the registration. Raises InputError where the file does not say what it must."""
    path = path or data_folder() / "registration.yml"
    try:
        return Registration.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        raise InputError(f"{path.name} is not understood at {place or 'its top'}: {first['msg']}.") from None


def part_verdict(part: Part, low: float, high: float, bounds: Mapping[str, float]) -> PartVerdict:
    """Compare an interval with the part's bound: met if all of it lies on the claimed side, refuted if all of it lies on the other."""
    bound = bounds[part.bound] if isinstance(part.bound, str) else part.bound
    sides = {">": (low > bound, high <= bound), ">=": (low >= bound, high < bound), "<": (high < bound, low >= bound), "<=": (high <= bound, low > bound)}
    met, refuted = sides[part.relation]
    return "met" if met else "refuted" if refuted else "undecided"


def claim_verdict(parts: Sequence[PartVerdict]) -> str:
    """One verdict of the parts that were measured or reported: holds, does not hold, holds in part, undecided, or not reported."""
    given = [verdict for verdict in parts if verdict != "not reported"]
    if not given:
        return "not reported"
    if {"met", "refuted"} <= set(given):
        return "holds in part"
    if "undecided" in given:
        return "undecided"
    return "holds" if given[0] == "met" else "does not hold"


def reported_figures() -> dict[tuple[str, ...], float]:
    """The figures of data/reported/reported.csv by text, place, method and metric."""
    with open(data_folder() / "reported" / "reported.csv", encoding="utf-8", newline="") as file:
        return {(row["text"], row["place"], row["method"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}


def text_figure(claim: RegisteredClaim, part: Part, reported: Mapping[tuple[str, ...], float]) -> float | None:
    """The text's own figure for a part, or None where it reports none. Raises InputError for a row that is not there."""
    if part.text is None:
        return part.text_value

    def value(row: tuple[str, ...]) -> float:
        key = row if len(row) == 4 else (TEXTS[claim.id[0]], *row)
        if key not in reported:
            raise InputError(f"{claim.id}, part {part.name!r}: reported.csv has no row {', '.join(key)}.")
        return reported[key]

    total = sum(map(value, part.text.add)) - sum(map(value, part.text.subtract))
    return total if part.text.share_of is None else total / value(part.text.share_of)


def put_through(registration: Registration) -> list[dict[str, str | float | None]]:
    """The texts' own figures, part by part: claim, part, kind, value (None where none is reported) and verdict.

    The texts print no intervals, so that a figure counts as an interval without width.
    """
    reported = reported_figures()
    rows: list[dict[str, str | float | None]] = []
    for claim in registration.claims:
        for part in claim.parts:
            value = text_figure(claim, part, reported)
            verdict = "not reported" if value is None else part_verdict(part, value, value, registration.bounds)
            rows.append({"claim": claim.id, "part": part.name, "kind": part.kind, "value": value, "verdict": verdict})
    return rows
