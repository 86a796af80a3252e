"""One rule of verdicts: what was measured, part by part, against the registration.

A part compares one estimate with one bound. Its whole interval decides, for the text as against it; fewer prompts than `FEWEST` decide nothing. The
texts' own figures go through the same comparison beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from memlib.base.errors import InputError
from memlib.judging.bounded import FEWEST
from memlib.judging.claims import claim as claim_of
from memlib.judging.estimates import Estimate
from memlib.judging.registration import (
    BOUNDS,
    Part,
    PartVerdict,
    RegisteredClaim,
    Registration,
    claim_verdict,
    load,
    part_verdict,
    reported_figures,
    text_figure,
)
from memlib.judging.verdicts import PartOutcome, Verdict

FEWEST_TRAININGS = 3
# What an estimate's `n_prompts` counts, by the design of the claim.
UNITS = {"trainings": "training", "timing": "turn", "pictures": "picture"}
SIGNS = {">": "above", ">=": "at least", "<": "below", "<=": "at most"}
# What was not measured leaves a claim as open as what was measured without a decision.
_AS_DECIDED: dict[str, PartVerdict] = {"met": "met", "refuted": "refuted", "undecided": "undecided", "not measured": "undecided"}
Measured = Sequence[Estimate | None] | Mapping[str, Estimate | None]


@cache
def registration() -> Registration:
    """The registration, read once."""
    return load()


def judge(
    name: str,
    measured: Measured,
    substrate: str,
    strict: float | None = None,
    trainings: Mapping[str, str] | None = None,
    because: str = "",
) -> Verdict:
    """Return the verdict on a claim by its id.

    `measured` has an estimate for each part, in their order or by their names; None is not measured, and `because` is a sentence that says why.
    `strict` is the bound at which the copy descriptor calls pictures copies (other named bounds follow); `trainings` has the verdict by training
    of the model where several were measured. Raises InputError where the parts are not those of the registration.
    """
    claim, fixed = registration().claim(name), registration()
    estimates = _in_order(claim, measured)
    bounds = {} if strict is None else fixed.bounds_for(strict)
    parts = tuple(_outcome(claim, part, estimate, bounds) for part, estimate in zip(claim.parts, estimates, strict=True))
    known = [part.estimate for part in parts if part.outcome != "not measured" and part.estimate is not None]
    about = claim_of(name)
    verdict = Verdict(
        name, claim.says, about.source, substrate, "not testable here", because or "None of its parts was measured.", parts=parts,
        trainings=dict(trainings or {}), before=substrate in fixed.measured_before, unit=UNITS.get(claim.design, "prompt"),
    )  # fmt: skip
    if not known:
        return verdict
    count = Counter(part.outcome for part in parts)
    told = ", ".join(f"{count[outcome]} {outcome}" for outcome in ("met", "refuted", "undecided", "not measured") if count[outcome])
    return replace(
        verdict,
        verdict=claim_verdict([_AS_DECIDED[part.outcome] for part in parts]),
        reason=f"Of {len(parts)} parts {told}.",
        n_prompts=min(estimate.n_prompts for estimate in known),
        n_seeds=min(estimate.n_seeds for estimate in known),
        quantities={part.part: part.estimate for part in parts if part.estimate is not None},
    )


def asked(part: Part, bounds: Mapping[str, float]) -> str:
    """What a part asks of its quantity, in words: ``at least 0.41 (near)``."""
    if isinstance(part.bound, str):
        return f"{SIGNS[part.relation]} {bounds[part.bound]:.2f} ({part.bound})" if bounds else f"{SIGNS[part.relation]} the bound “{part.bound}”"
    return f"{SIGNS[part.relation]} {part.bound:g}"


def prompts_needed(estimate: Estimate, bound: float) -> int | None:
    """How many prompts an interval would take to end at `bound` if mean and spread stayed as they are; None where the mean lies on the bound.

    Widths of intervals fall with the square root of the number of prompts.
    """
    distance = abs(estimate.value - bound)
    half = estimate.value - estimate.low if bound < estimate.value else estimate.high - estimate.value
    return None if distance == 0 or not math.isfinite(half) else max(FEWEST, math.ceil(estimate.n_prompts * (half / distance) ** 2))


def _in_order(claim: RegisteredClaim, measured: Measured) -> list[Estimate | None]:
    names = [part.name for part in claim.parts]
    if isinstance(measured, Mapping):
        if unknown := sorted(set(measured) - set(names)):
            raise InputError(f"{claim.id} has no part {', '.join(unknown)}: its parts are {', '.join(names)}.")
        return [measured.get(name) for name in names]
    if len(measured) != len(names):
        raise InputError(f"{claim.id} has {len(names)} parts, and {len(measured)} estimates were given: give one for each of {', '.join(names)}.")
    return list(measured)


def _outcome(claim: RegisteredClaim, part: Part, estimate: Estimate | None, bounds: Mapping[str, float]) -> PartOutcome:
    value = text_figure(claim, part, _reported())
    answered = "not reported" if value is None else part_verdict(part, value, value, registration().bounds)
    unmeasured = PartOutcome(part.name, part.quantity, part.kind, asked(part, bounds), "not measured", part.reason or "",
                             reported=value, reported_outcome=answered)  # fmt: skip
    if estimate is None or math.isnan(estimate.value) or (part.bound in BOUNDS and not bounds):
        return unmeasured
    bound = bounds[part.bound] if isinstance(part.bound, str) else part.bound
    fewest = FEWEST_TRAININGS if claim.design == "trainings" else FEWEST
    if estimate.n_prompts < fewest or math.isnan(estimate.low) or math.isnan(estimate.high):
        return replace(unmeasured, outcome="undecided", estimate=estimate, bound=bound, needed=fewest)
    found = part_verdict(part, estimate.low, estimate.high, bounds)
    needed = prompts_needed(estimate, bound) if found == "undecided" else None
    return replace(unmeasured, outcome=found, estimate=estimate, bound=bound, needed=needed)


@cache
def _reported() -> dict[tuple[str, ...], float]:
    return reported_figures()
