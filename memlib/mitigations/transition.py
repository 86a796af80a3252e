"""Mitigations that change guidance from step to step: the transition points of `basin`, and published relatives.

None of them touches the embedding or costs U-Net evaluations; the rules themselves are in `memlib.sampling.rules`. Times are those of a schedule of
1,000 training steps, as Stable Diffusion's and MiniSD's are, so that they name a share of the schedule whatever the number of steps.
According to `basin` a transition exists for memorized prompts only: on others these mitigations may cost alignment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from memlib.base.declared import NotNegative, Whole
from memlib.mitigations.base import Difference, Mitigation, register
from memlib.sampling import rules
from memlib.sampling.guidance import Rule


class _Guided(Mitigation):
    """A mitigation that is a guidance rule: `rule(scale)` makes it for the scale that would be used throughout."""

    family: ClassVar[str] = "guidance"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rule(7.5)  # refuses parameters that no rule takes together

    def rule(self, scale: float) -> Rule:
        raise NotImplementedError

    def guidance(self, scale: float | Rule) -> Rule:
        return self.rule(self.own_scale(scale))


@register
@dataclass(frozen=True)
class StaticTransition(_Guided):
    """Guidance that starts at one point for all: at scheduler time `time`, or at the step with index `step` if given."""

    time: float = 500.0
    before: float = 0.0
    step: Whole | None = None

    name: ClassVar[str] = "static-transition"
    label: ClassVar[str] = "guidance from t*"
    summary: ClassVar[str] = "The prompt is ignored until the middle of the schedule (t = 500), then guidance starts."
    source: ClassVar[str] = "basin 5, Tables 1, 2 and 5"
    reported: ClassVar[tuple[str, ...]] = ("stp", "cfg_from_700", "cfg_from_600")
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = ("time", (650.0, 500.0))

    def rule(self, scale: float) -> Rule:
        if self.step is not None:
            return rules.StaticTransition(scale, self.step, self.before)
        return rules.StaticTransition(scale, None, self.before, self.time)


@register
@dataclass(frozen=True)
class StaticTransitionOpposite(StaticTransition):
    """Opposite guidance until a point that is the same for all. The defaults are those of the authors' program."""

    time: float = 650.0
    before: float = -2.0

    name: ClassVar[str] = "static-transition-opposite"
    label: ClassVar[str] = "opposite until t*"
    summary: ClassVar[str] = "Guidance leads away from the prompt (scale -2) until t = 650, then towards it."
    source: ClassVar[str] = "basin 5.1, Table 1"
    reported: ClassVar[tuple[str, ...]] = ("og_stp",)


@register
@dataclass(frozen=True)
class DynamicTransition(_Guided):
    """Guidance that starts for each picture at its own first local minimum of the magnitude; see the rule for `variant`."""

    variant: Literal["text", "as_published"] = "text"

    name: ClassVar[str] = "dynamic-transition"
    label: ClassVar[str] = "guidance from minimum"
    summary: ClassVar[str] = "The prompt is ignored until a picture's magnitude has passed its first local minimum, then guidance starts."
    source: ClassVar[str] = "basin 5, Algorithm 1, Tables 3 and 4"
    reported: ClassVar[tuple[str, ...]] = ("dtp",)
    differences: ClassVar[tuple[Difference, ...]] = (Difference("guidance is 1 before the transition, not 0", {"variant": "as_published"}, "6"),)

    def rule(self, scale: float) -> Rule:
        return rules.DynamicTransition(scale, None, self.variant)


@register
@dataclass(frozen=True)
class DynamicTransitionOpposite(_Guided):
    """Opposite guidance until the local minimum, `strength` times as strong as the guidance after it (1 in Algorithm 1)."""

    strength: NotNegative = 1.0

    name: ClassVar[str] = "dynamic-transition-opposite"
    label: ClassVar[str] = "opposite until minimum"
    summary: ClassVar[str] = "Guidance leads away from the prompt until a picture's magnitude has passed its first local minimum, then towards it."
    source: ClassVar[str] = "basin 5.1, Algorithm 1, Tables 3 and 4"
    reported: ClassVar[tuple[str, ...]] = ("og_dtp",)
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = ("strength", (0.25, 1.0))

    def rule(self, scale: float) -> Rule:
        return rules.DynamicTransition(scale, -self.strength * scale)


@register
@dataclass(frozen=True)
class AnnealedGuidance(_Guided):
    """Guidance that rises over the whole schedule, from `before` to the usual scale."""

    before: float = 1.0
    shape: Literal["linear", "cosine"] = "linear"

    name: ClassVar[str] = "annealed-guidance"
    label: ClassVar[str] = "rising guidance"
    summary: ClassVar[str] = "Guidance rises evenly from none at the first step to its full scale at the last."
    source: ClassVar[str] = "Wang et al., 2024; Chang et al., 2023"
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = ("before", (1.0, 0.0))

    def rule(self, scale: float) -> Rule:
        return rules.Annealed(scale, self.before, self.shape)


@register
@dataclass(frozen=True)
class IntervalGuidance(_Guided):
    """Guidance in the middle of the schedule only, for scheduler times above `low` and at most `high`."""

    high: float = 812.0
    low: float = 72.0
    outside: float = 1.0

    name: ClassVar[str] = "interval-guidance"
    label: ClassVar[str] = "guidance in the middle"
    summary: ClassVar[str] = "Guidance acts in the middle of the schedule only; at its beginning and end there is none."
    source: ClassVar[str] = "Kynkäänniemi et al., 2024"
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = ("high", (812.0, 500.0))

    def rule(self, scale: float) -> Rule:
        return rules.LimitedInterval(scale, self.high, self.low, self.outside)
