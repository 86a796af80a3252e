"""Claims of the texts, the criteria they are held against, and the judging that ends in a verdict.

A claim is read from ``data/claims.yml``, where its criteria were fixed before anything was measured. Judging
compares estimates with these criteria and knows nothing about how the estimates came about.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pandas as pd
import yaml
from pydantic import ConfigDict, Field, Strict, TypeAdapter, ValidationError

from memlib.base.errors import InputError
from memlib.base.paths import data_folder
from memlib.judging.estimates import Estimate
from memlib.judging.verdicts import Outcome, Verdict

Text = Literal["clip", "clip-news", "basin", "dori", "attn"]
TEXTS = get_args(Text)
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Words = Annotated[str, Field(min_length=1)]
RELATIONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
# Fields that a class does not have are mistakes: a misspelt one would otherwise be left out without a word.
STRICTLY = ConfigDict(extra="forbid")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Criterion:
    """A comparison of one quantity with a bound: a number, a rising pair for "between", or a name known at run time.

    `uses` says what is compared: the ``low`` or ``high`` end of the interval, the ``value`` alone, or
    (with "between") the whole ``interval``. Raises InputError for a bound that is not finite, does not rise or does not fit the relation.
    """

    quantity: Words
    relation: Literal[">=", "<=", ">", "<", "between"]
    threshold: Number | Words | tuple[Number, Number]
    uses: Literal["value", "low", "high", "interval"]

    __pydantic_config__ = STRICTLY

    def __post_init__(self) -> None:
        allowed = ("value", "interval") if self.relation == "between" else ("value", "low", "high")
        if self.relation not in (*RELATIONS, "between") or self.uses not in allowed:
            raise InputError(
                f"The criterion on {self.quantity} has the relation {self.relation!r} with uses={self.uses!r}: allowed "
                f"are >=, <=, >, < with value, low or high, and between with value or interval."
            )
        if not isinstance(self.threshold, str):
            _checked(self.threshold, self.relation, f"criterion on {self.quantity}")

    def bound(self, thresholds: Mapping[str, float]) -> float | tuple[float, float]:
        """Return the threshold as a number; raises InputError if its name has none in `thresholds`, or one that is no bound."""
        if not isinstance(self.threshold, str):
            return self.threshold
        if self.threshold not in thresholds:
            raise InputError(f"The threshold {self.threshold!r} has no value here: pass thresholds={{{self.threshold!r}: …}}.")
        return _checked(thresholds[self.threshold], self.relation, f"threshold {self.threshold!r}")

    def met(self, estimate: Estimate, bound: Any) -> bool:
        """Say whether the compared end of `estimate` fulfils the relation."""
        if self.relation == "between":
            ends = (estimate.value,) * 2 if self.uses == "value" else (estimate.low, estimate.high)
            return bound[0] <= ends[0] and ends[1] <= bound[1]
        return RELATIONS[self.relation](getattr(estimate, self.uses), bound)

    def missed(self, estimate: Estimate, bound: Any) -> bool:
        """Say whether no point of the interval of `estimate` fulfils the relation."""
        if self.relation == "between":
            return estimate.high < bound[0] or estimate.low > bound[1]
        return not RELATIONS[self.relation](estimate.high if ">" in self.relation else estimate.low, bound)

    def text(self, bound: Any) -> str:
        """Return the comparison in words, with the number that a named threshold stands for."""
        what = {"low": "low end of ", "high": "high end of ", "value": "value of ", "interval": "interval of "}[self.uses]
        shown = " to ".join(f"{part:g}" for part in bound) if isinstance(bound, tuple) else f"{bound:g}"
        return f"{what}{self.quantity} {self.relation} {f'{self.threshold} ({shown})' if isinstance(self.threshold, str) else shown}"


@dataclass(frozen=True)
class Refutation:
    """What would refute a claim: in words, and as conditions of which all or any must be met."""

    words: Words
    match: Literal["all", "any"] = "all"
    criteria: tuple[Criterion, ...] = ()

    __pydantic_config__ = STRICTLY


@dataclass(frozen=True)
class Claim:
    """One claim of ``data/claims.yml``; `criteria` is empty while its status is ``planned``.

    `quantities` says in words what is measured, by name; `criterion` and `refuted_if.words` say in words what
    the criteria say exactly; `reported` points to the paper's own figures (place, method, metric). Raises InputError for a criterion
    on a quantity that the claim does not list, and for a tested claim without criteria or notebook.
    """

    id: Words
    text: Text
    place: Words
    title: Words
    statement: Words
    quantities: Mapping[str, Words]
    criterion: Words
    refuted_if: Refutation
    criteria: tuple[Criterion, ...] = ()
    reported: tuple[Mapping[Literal["place", "method", "metric"], str], ...] = ()
    reported_note: str = ""
    notebook: str | None = None
    status: Literal["tested", "planned"] = "planned"

    __pydantic_config__ = STRICTLY

    def __post_init__(self) -> None:
        for criterion in (*self.criteria, *self.refuted_if.criteria):
            if criterion.quantity not in self.quantities:
                raise InputError(f"The claim {self.id} has a criterion on {criterion.quantity}, which is not among its quantities.")
        if self.status == "tested" and not (self.criteria and self.notebook):
            raise InputError(f"The claim {self.id} is tested but has no criteria or no notebook: add them.")

    @property
    def source(self) -> str:
        """Where the claim stands: the key of the text, and the section, table or figure in it."""
        return f"{self.text}, {self.place}"

    def reported_rows(self) -> pd.DataFrame:
        """Return what the text itself reports for this claim; see `reported`."""
        parts = [reported(self.text, **{str(name): value for name, value in pointer.items()}) for pointer in self.reported]
        return pd.concat(parts, ignore_index=True) if parts else reported().iloc[:0]


def load_claims(path: str | Path | None = None) -> dict[str, Claim]:
    """Return the claims by id, in the order of the file (``data/claims.yml`` by default).

    Raises InputError, naming the claim and the line, for all that does not follow the classes above: a field that is missing, unknown
    or of another kind, a bound that is not finite or reversed, a repeated id, a criterion on a quantity that the claim does not list.
    """
    path = Path(path) if path is not None else data_folder() / "claims.yml"
    text = path.read_text(encoding="utf-8")
    try:
        rows, nodes = yaml.load(text, Loader=_LOADER), yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise InputError(f"{path.name} is not YAML ({' '.join(str(error).split())}): correct it.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path.name} must be a list of claims, each with its fields.")
    try:
        claims = TypeAdapter(list[Claim]).validate_python(rows)
    except ValidationError as error:
        # The sentences of the classes above say more than those about the other kinds that a field could also have.
        first = min(error.errors(), key=lambda found: (found["loc"][0], found["type"] != "value_error"))
        where = " ".join(map(str, first["loc"][1:]))
        told = str(first.get("ctx", {}).get("error", first["msg"])).rstrip(".")
        name = rows[int(first["loc"][0])].get("id", "without id")
        raise InputError(f"{path.name}, line {_line(nodes, first['loc'])}: the claim {name} has {where or 'a fault'}: {told}.") from error
    for place, known in enumerate(claims):
        if any(known.id == other.id for other in claims[:place]):
            raise InputError(f"{path.name}, line {_line(nodes, (place,))}: the claim {known.id} stands twice: give each claim its own id.")
    return {known.id: known for known in claims}


def _line(node: Any, where: Sequence[int | str]) -> int:
    """The line of the file where the value stands that pydantic names by its place, or as much of it as is there."""
    line = node.start_mark.line + 1
    for part in where:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == part:
                    node, line = value, key.start_mark.line + 1
                    break
    return line


def _checked(bound: Any, relation: str, what: str) -> float | tuple[float, float]:
    """`bound` as one finite number, or for "between" as two, the first not above the second; NaN fulfils neither."""
    ends = tuple(bound) if isinstance(bound, (tuple, list)) else (bound,)
    wanted = 2 if relation == "between" else 1
    if len(ends) != wanted or not all(math.isfinite(end) for end in ends) or ends[0] > ends[-1]:
        raise InputError(f"The {what} has the bound {bound!r}: {relation} needs {('one finite number', 'two finite numbers, the lower first')[wanted - 1]}.")
    return ends if wanted == 2 else float(ends[0])


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
    used = {name: estimate for name in claim.quantities if (estimate := quantities.get(name)) is not None}

    details = []
    for criterion in claim.criteria:
        bound, estimate = criterion.bound(thresholds), used[criterion.quantity]
        outcome = "met" if criterion.met(estimate, bound) else "missed" if criterion.missed(estimate, bound) else "open"
        details.append(Outcome(criterion.text(bound), criterion.quantity, outcome))
    against = [criterion.met(used[criterion.quantity], criterion.bound(thresholds)) for criterion in claim.refuted_if.criteria]
    refuted = bool(against) and (all(against) if claim.refuted_if.match == "all" else any(against))
    verdict, reason = _decide(claim, details, refuted)
    return Verdict(
        claim.id, claim.title, claim.source, substrate, verdict, reason,
        n_prompts=min(estimate.n_prompts for estimate in used.values()),
        n_seeds=min(estimate.n_seeds for estimate in used.values()),
        quantities=used, thresholds=thresholds, details=tuple(details),
    )  # fmt: skip


def not_testable(claim: Claim, substrate: str, reason: str) -> Verdict:
    """Return the verdict that `claim` cannot be tested on `substrate`, with the `reason` as a sentence."""
    return Verdict(claim.id, claim.title, claim.source, substrate, "not testable here", reason)


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
