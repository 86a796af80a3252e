"""Figures and verdicts in words and signs, as templates ask for them."""

from __future__ import annotations

import re

from markupsafe import Markup

from memlib.experiment import page
from memlib.judging.estimates import Estimate
from memlib.judging.verdicts import BADGES
from memlib.mitigations import REGISTRY
from memlib.prompts.interventions import INTERVENTIONS


def sign(verdict: str) -> str:
    """The sign of a verdict."""
    return BADGES[verdict][0] if verdict in BADGES else "○"


def badge(verdict: str) -> Markup:
    """A verdict as a coloured label; the words say the same as sign and colour."""
    return Markup('<span class="verdict verdict-{}">{} {}</span>').format(verdict.replace(" ", "-"), sign(verdict), verdict)


def told(estimate: Estimate | None, digits: int = 2) -> str:
    """A figure with its interval, or "not measured"."""
    return page.told(estimate, digits).replace("-", "−")


def percent(estimate: Estimate | None) -> str:
    """A share with its interval in per cent, with its sign."""
    if estimate is None:
        return page.NOT_MEASURED
    value, low, high = (f"{round(100 * part):+d}".replace("-", "−").replace("+0", "0") for part in (estimate.value, estimate.low, estimate.high))
    return f"{value} % [{low}, {high}]"


def with_edits(text: str) -> str:
    """Words of the registration with edits by name: its letters are those of the text, its other keys those of reported.csv."""
    text = re.sub(r"\(([a-h])\)", lambda found: f"({INTERVENTIONS[found.group(1)].label})", text)
    for method in REGISTRY.values():
        for key in method.reported:
            text = re.sub(rf"(?<!\w){re.escape(key)}(?!\w)", method.label, text) if "_" in key else text
    return text


def ucfirst(text: str) -> str:
    """A sentence's beginning; all other letters stay."""
    return text[:1].upper() + text[1:]


def side(estimate: Estimate | None, bound: float = 0.0) -> str:
    """Where a whole interval lies: "above" or "below" a bound, or "open" where it holds it; "" where nothing was measured."""
    if estimate is None:
        return ""
    return "above" if estimate.low > bound else "below" if estimate.high < bound else "open"
