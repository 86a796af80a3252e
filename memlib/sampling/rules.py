"""Guidance rules that change from step to step: transition points, opposite guidance, and published relatives.

Every rule decides for each sample on its own from what the sampling loop has computed anyway, so that no rule adds U-Net
evaluations. Steps are counted from 0, the noisiest. `scale` is the guidance after the change, `before` the one before it: 0 ignores the
prompt, a negative one is opposite guidance (`basin` Section 5.1, equation 5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from memlib.base.declared import Declared, Whole
from memlib.base.errors import InputError
from memlib.sampling.guidance import Scales, Scheduled, StepInfo

DEFAULT_STEP = 10


@dataclass(frozen=True)
class StaticTransition(Scheduled, Declared):
    """Guidance `before` up to a step that is the same for all samples, `scale` from then on.

    Either `step`, the index of the first step with `scale` (0 is plain guidance; 10 where neither is given), or `time`: `scale`
    from the first step on whose scheduler time t is at or below `time`. A time means the same part of the schedule whatever the number of
    steps. Source: `basin` Section 5 (t* = 500 in its scenario 1, 600 and 700 in scenario 2).

    Raises InputError for numbers that are not finite, a step that is not a whole number from 0 on, or both step and time.
    """

    scale: float = 7.5
    step: Whole | None = None
    before: float = 0.0
    time: float | None = None
    name: ClassVar[str] = "static-transition"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step is not None and self.time is not None:
            raise InputError("A static transition has a step or a time, not both: leave one of them out.")
        if self.time is None and self.step is None:
            object.__setattr__(self, "step", DEFAULT_STEP)

    @property
    def params(self) -> dict[str, Any]:
        where = {"step": self.step} if self.time is None else {"time": float(self.time)}
        return {"scale": float(self.scale), "before": float(self.before), **where}

    def ahead(self, index: int, steps: int, t: float) -> float:
        on = index >= (self.step or 0) if self.time is None else t <= self.time
        return float(self.scale if on else self.before)


@dataclass(frozen=True)
class DynamicTransition(Declared):
    """Guidance `before` until a sample's magnitude has passed its first local minimum, `scale` from then on.

    The magnitude is d_t = || eps_c - eps_u ||^2 of one sample, in noise whatever the model predicts. With the values of the last two steps
    remembered, `scale` is used from the first step on at which d_{t+2} > d_{t+1} and d_{t+1} < d_t, both strictly: one step after
    the minimum, and at the earliest the third step. A sample without a local minimum keeps `before` to the end.

    `variant` "text" is `basin` Algorithm 1; `before` is 0 there, and -scale for opposite guidance. "as_published" is the authors'
    program, which takes the norm in place of its square (the same decision) and guides with 1, the conditional prediction, before
    the transition. Its program for opposite guidance tests another quantity and does not run, so a negative `before` needs "text".

    Raises InputError for numbers that are not finite, an unknown variant, or a negative `before` with "as_published".
    """

    scale: float = 7.5
    before: float | None = None
    variant: Literal["text", "as_published"] = "text"
    name: ClassVar[str] = "dynamic-transition"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.before is None:
            object.__setattr__(self, "before", 0.0 if self.variant == "text" else 1.0)
        if self.variant == "as_published" and (self.before or 0.0) < 0:
            raise InputError("The published program for opposite guidance does not run: use variant 'text' with a negative before.")

    @property
    def params(self) -> dict[str, Any]:
        return {"scale": float(self.scale), "before": float(self.before or 0.0), "variant": self.variant}

    def start(self, batch: int) -> Scales:
        return _Switching(self, batch)


class _Switching:
    """The scales of one trajectory under a dynamic transition; `rule` may be exchanged for one of another scale in its middle."""

    def __init__(self, rule: DynamicTransition, batch: int):
        self.rule = rule
        self._seen: list[Tensor] = []
        self._switched = torch.zeros(batch, dtype=torch.bool)

    def __call__(self, info: StepInfo) -> Tensor:
        now = info.magnitude.square() if self.rule.variant == "text" else info.magnitude
        self._switched = self._switched.to(now.device)
        # The memory begins at minus infinity, so that nothing can happen before the third step.
        if len(self._seen) == 2:
            self._switched = self._switched | ((self._seen[0] > self._seen[1]) & (self._seen[1] < now))
        self._seen = [*self._seen[-1:], now]
        return torch.where(self._switched, float(self.rule.scale), float(self.rule.before or 0.0)).to(torch.float32)

    def settled(self) -> bool:
        """Whether every sample has passed its transition, after which predictions no longer count."""
        return bool(self._switched.all())


@dataclass(frozen=True)
class Annealed(Scheduled, Declared):
    """Guidance that rises from `before` at the first step to `scale` at the last one, evenly or as half a cosine.

    The published schedules raise the weight w = scale - 1 of the difference from 0, hence `before` = 1. They are not normalised here to
    the mean of a constant scale. Source: Chang et al. 2023 (Muse), linear; Wang et al. 2024, monotone weight schedulers.

    Raises InputError for numbers that are not finite or an unknown shape.
    """

    scale: float = 7.5
    before: float = 1.0
    shape: Literal["linear", "cosine"] = "linear"
    name: ClassVar[str] = "annealed"

    @property
    def params(self) -> dict[str, Any]:
        return {"scale": float(self.scale), "before": float(self.before), "shape": self.shape}

    def ahead(self, index: int, steps: int, t: float) -> float:
        done = index / max(1, steps - 1)
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.before + done * (self.scale - self.before)


@dataclass(frozen=True)
class LimitedInterval(Scheduled, Declared):
    """Guidance `scale` while the scheduler's time t is above `low` and at most `high`, `outside` at all other times.

    The published interval is one of noise levels, with no guidance (`outside` = 1) around it, and its best ends depend on the model.
    The default times are those at which Stable Diffusion's noise levels are 5.4 and 0.28, a choice and not a recommendation.
    `outside` = 0 ignores the prompt there, as before a transition point. Source: Kynkäänniemi et al. 2024.

    Raises InputError for numbers that are not finite, or a `low` that is not below `high`.
    """

    scale: float = 7.5
    high: float = 812.0
    low: float = 72.0
    outside: float = 1.0
    name: ClassVar[str] = "limited-interval"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low >= self.high:
            raise InputError(f"The interval of {self.name} runs from {self.high!r} down to {self.low!r}: give a high time above the low one.")

    @property
    def params(self) -> dict[str, Any]:
        return {name: float(getattr(self, name)) for name in ("scale", "high", "low", "outside")}

    def ahead(self, index: int, steps: int, t: float) -> float:
        return float(self.scale if self.low < t <= self.high else self.outside)
