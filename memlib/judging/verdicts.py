"""Verdicts on claims: what they hold, how a notebook shows them, how they are read back from one."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memlib.base.errors import InputError
from memlib.base.numbers import counted
from memlib.judging.estimates import Estimate

VERDICTS = ("holds", "holds in part", "undecided", "does not hold", "not testable here")
MIME = "application/vnd.memlib.verdict+json"
# Solid colours with white text keep a contrast above 4.5 on light and on dark pages.
BADGES = {
    "holds": ("✓", "#1a7f37"),
    "holds in part": ("◐", "#8a5a00"),
    "undecided": ("?", "#4a5a8a"),
    "does not hold": ("✗", "#b42318"),
    "not testable here": ("–", "#57606a"),
}


MANY = 1000
# A part's outcome as a sign beside its word.
PART_SIGNS = {"met": "✓", "refuted": "✗", "undecided": "?", "not measured": "–", "not reported": "–"}


@dataclass(frozen=True)
class PartOutcome:
    """How one part of a claim came out, and the text's own figure under the same comparison (`memlib.judging.judge`).

    `asked` is the comparison in words and `why` the reason of its bound; `needed` is how many prompts an undecided part would take.
    """

    part: str
    quantity: str
    kind: str
    asked: str
    outcome: str
    why: str = ""
    estimate: Estimate | None = None
    bound: float | None = None
    needed: int | None = None
    reported: float | None = None
    reported_outcome: str = "not reported"


@dataclass(frozen=True)
class Verdict:
    """A claim judged on one substrate; shows itself as a badge with its parts, effects and intervals in a notebook.

    `n_seeds` is 0 where nothing was sampled, `n_prompts` where the claim was not tested; `unit` says what `n_prompts` counts. `trainings` has the
    verdict by training of the model where several were measured; `before`: whether the model had been measured before the criteria were fixed.
    """

    claim: str
    title: str
    source: str
    substrate: str
    verdict: str
    reason: str
    n_prompts: int = 0
    n_seeds: int = 0
    quantities: Mapping[str, Estimate] = field(default_factory=dict)
    parts: tuple[PartOutcome, ...] = ()
    trainings: Mapping[str, str] = field(default_factory=dict)
    before: bool = False
    unit: str = "prompt"

    def to_json(self) -> dict[str, Any]:
        """Return plain values; NaN becomes None, since JSON has no NaN."""
        fields = asdict(self)
        for estimate in (*fields["quantities"].values(), *(part["estimate"] for part in fields["parts"] if part["estimate"])):
            estimate.update({name: None for name, value in estimate.items() if value != value})
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Verdict:
        """Return the verdict that `to_json` described."""
        fields = dict(fields)
        fields["quantities"] = {name: _estimate(estimate) for name, estimate in fields["quantities"].items()}
        parts = fields.get("parts", ())
        fields["parts"] = tuple(PartOutcome(**{**part, "estimate": part["estimate"] and _estimate(part["estimate"])}) for part in parts)
        return cls(**fields)

    def __str__(self) -> str:
        lines = [f"{self.claim} on {self.substrate}: {self.verdict}", f"  {self.reason}"]
        if self.parts:
            lines += [f"  {PART_SIGNS[part.outcome]} {_told(part)}" for part in self.parts]
        else:
            lines += [f"  {name} = {estimate.text(3)}" for name, estimate in self.quantities.items()]
        return "\n".join([*lines, f"  {self._sample()}"] if self.n_prompts else lines)

    def _sample(self) -> str:
        return counted(self.n_prompts, self.unit) + (f", {counted(self.n_seeds, 'seed')} each" if self.n_seeds else "")

    def _sample_with_trainings(self) -> str:
        """How many prompts, seeds and trainings a verdict stands on."""
        alike = sum(verdict == self.verdict for verdict in self.trainings.values())
        several = f"the same in {alike} of {len(self.trainings)} trainings" if self.trainings else "one training"
        trained = "" if self.unit == "training" else f", {several} of the model"
        return self._sample() + trained + ("; measured before the criteria were fixed" if self.before else "")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/plain": str(self), "text/html": self.to_html(), MIME: self.to_json()}

    def to_html(self) -> str:
        """Return badge, reason and quantities as HTML; text takes the page's colours."""
        if self.parts:
            return self._parts_to_html()
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(name)}</td><td style='text-align:right'>{html.escape(estimate.text(3))}</td></tr>"
            for name, estimate in self.quantities.items()
        )
        table = f"<table><thead><tr><th>quantity</th><th>mean [95 % interval]</th></tr></thead><tbody>{rows}</tbody></table>"
        return (
            f"<div class='memlib-verdict'><p>{badge(self.verdict)} <strong>{html.escape(self.claim)}</strong> "
            f"{html.escape(self.title)} <em>({html.escape(self.source)})</em></p>"
            f"<p>On {html.escape(self.substrate)}: {html.escape(self.reason)}</p>{table if rows else ''}"
            f"{f'<p><small>{self._sample()}</small></p>' if self.n_prompts else ''}</div>"
        )

    def _parts_to_html(self) -> str:
        lines = "".join(f"<li><span title='{part.outcome}'>{PART_SIGNS[part.outcome]}</span> {html.escape(_told(part))}</li>" for part in self.parts)
        sample = f"{self._sample_with_trainings()}. " if self.n_prompts else f"{self.reason} "
        return (
            f"<div class='memlib-verdict'><p>{badge(self.verdict)} <strong>{html.escape(self.claim)}</strong> {html.escape(self.title)}</p>"
            f"<ul class='memlib-parts'>{lines}</ul><p><small>On {html.escape(self.substrate)}: {html.escape(sample)}"
            f"✓ met, ✗ refuted, ? undecided.</small></p></div>"
        )


def many(needed: int) -> str:
    """How many prompts an undecided part would take, in words: beyond MANY the number says only that the estimate lies at the bound."""
    return f"some {needed:,}" if needed <= MANY else f"more than {MANY:,}"


def _told(part: PartOutcome) -> str:
    """A part in one line: its name, what was measured and what was asked."""
    effect = part.outcome if part.estimate is None else part.estimate.text()
    more = f"; {many(part.needed)} would {'have to ' if part.needed > MANY else ''}decide" if part.needed else ""
    return f"{part.part}: {effect} (asked: {part.asked}{more})"


def _estimate(fields: Mapping[str, Any]) -> Estimate:
    return Estimate.from_json({name: math.nan if value is None else value for name, value in fields.items()})


def badge(verdict: str) -> str:
    """Return a small HTML label for one of the verdicts, told apart by sign and word as well as colour."""
    if verdict not in BADGES:
        raise InputError(f"Unknown verdict {verdict!r}: use one of {', '.join(VERDICTS)}.")
    sign, colour = BADGES[verdict]
    return (
        f"<span class='memlib-badge' style='background:{colour};color:#ffffff;border-radius:0.4em;"
        f"padding:0.1em 0.5em;white-space:nowrap'>{sign} {verdict}</span>"
    )


def read_verdicts(notebook: str | Path) -> list[dict[str, Any]]:
    """Return the verdicts stored in an executed notebook file, in order, as `Verdict.to_json` wrote them.

    `Verdict.from_json` turns one back into a Verdict. Raises InputError for a file that is not a notebook.
    """
    path = Path(notebook)
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError) as error:
        raise InputError(f"{path.name} is not a notebook that can be read: execute it again.") from error
    bundles = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return [bundle[MIME] for bundle in bundles if MIME in bundle]
