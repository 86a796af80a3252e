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


@dataclass(frozen=True)
class Outcome:
    """How one criterion came out: ``met``, ``missed`` (wholly on the wrong side) or ``open``."""

    criterion: str
    quantity: str
    outcome: str


@dataclass(frozen=True)
class Verdict:
    """A claim judged on one substrate; shows itself as a badge with its quantities in a notebook.

    `n_seeds` is 0 where nothing was sampled, `n_prompts` where the claim was not tested.
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
    thresholds: Mapping[str, float] = field(default_factory=dict)
    details: tuple[Outcome, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values; NaN becomes None, since JSON has no NaN."""
        fields = asdict(self)
        for estimate in fields["quantities"].values():
            estimate.update({name: None for name, value in estimate.items() if value != value})
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Verdict:
        """Return the verdict that `to_json` described."""
        fields = dict(fields)
        fields["quantities"] = {
            name: Estimate.from_json({part: math.nan if value is None else value for part, value in estimate.items()})
            for name, estimate in fields["quantities"].items()
        }
        fields["details"] = tuple(Outcome(**detail) for detail in fields["details"])
        return cls(**fields)

    def __str__(self) -> str:
        lines = [f"{self.claim} on {self.substrate}: {self.verdict}", f"  {self.reason}"]
        lines += [f"  {name} = {estimate.text(3)}" for name, estimate in self.quantities.items()]
        return "\n".join([*lines, f"  {self._sample()}"] if self.n_prompts else lines)

    def _sample(self) -> str:
        return counted(self.n_prompts, "prompt") + (f", {counted(self.n_seeds, 'seed')} each" if self.n_seeds else "")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"text/plain": str(self), "text/html": self.to_html(), MIME: self.to_json()}

    def to_html(self) -> str:
        """Return badge, reason and quantities as HTML; text takes the page's colours."""
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
