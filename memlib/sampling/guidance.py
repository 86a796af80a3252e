"""Classifier-free guidance as a rule that gives, at each step, one scale per sample.

Convention, as in diffusers: guided = unconditional + scale * (conditional - unconditional). A scale of
1 is no guidance (the conditional prediction alone), 0 ignores the prompt, a negative scale moves away
from it. Ho and Salimans write 1 + w for this scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from memlib.base.errors import InputError
from memlib.base.numbers import is_number


@dataclass(frozen=True)
class StepInfo:
    """What a guidance rule may look at before it chooses the scale of a step.

    `index` counts from 0 (the noisiest step) to `steps` - 1; `t` is the scheduler's time; the tensors
    are [B, C, h, w], float32; the predictions are converted to noise (epsilon) whatever the model
    predicts.
    """

    index: int
    steps: int
    t: float
    latents: Tensor
    epsilon_uncond: Tensor
    epsilon_cond: Tensor

    @cached_property
    def magnitude(self) -> Tensor:
        """L2 norm [B] of the difference between conditional and unconditional noise, per sample."""
        return (self.epsilon_cond - self.epsilon_uncond).flatten(1).norm(dim=1)


Scales = Callable[[StepInfo], Tensor]


@runtime_checkable
class Rule(Protocol):
    """A guidance rule: `name` and `params` identify it (for the store), `start` begins one trajectory.

    `start(batch)` returns a function that is called once per step, in order, and gives the scales [B].
    Whatever a rule remembers between steps lives in that function and is kept per sample, so that a
    sample's scale does not depend on the batch it is in. The function may have a method `shift(info)`, called after it at each
    step, that gives noise [B, C, h, w] to be added to the guided noise (guidance by something else than the prompt). One that remembers something
    is an object with the attribute `rule`, which may be exchanged in mid-run for the same rule made for another scale, and says by `settled()`
    that predictions no longer matter to it.

    A rule whose scales do not depend on the predictions may also have `ahead(index, steps, t)`, the scale of a step for all samples,
    known before the step is computed: sampling can then leave out predictions that a scale of 0 or 1 makes no use of, and begin where other
    prompts and rules have been before the first scale that is not 0.
    """

    @property
    def name(self) -> str: ...

    @property
    def params(self) -> dict[str, Any]: ...

    def start(self, batch: int) -> Scales: ...


class Scheduled:
    """A rule whose scales do not depend on the predictions: `ahead` gives that of a step, for all samples, before it is computed."""

    def ahead(self, index: int, steps: int, t: float) -> float:
        raise NotImplementedError

    def start(self, batch: int) -> Scales:
        """See `Rule`."""

        def scales(info: StepInfo) -> Tensor:
            return torch.full((batch,), float(self.ahead(info.index, info.steps, info.t)), device=info.latents.device)

        return scales


@dataclass(frozen=True)
class Constant(Scheduled):
    """The same scale at every step: ordinary classifier-free guidance."""

    scale: float
    name: ClassVar[str] = "constant"

    @property
    def params(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def ahead(self, index: int, steps: int, t: float) -> float:
        return self.scale


def constant(scale: float) -> Constant:
    """Return the rule that uses one scale throughout; 1 means no guidance.

    Raises InputError if the scale is not a finite number.
    """
    if not is_number(scale):
        raise InputError(f"Guidance {scale!r} is not usable: give a finite number (7.5 is usual, 1 is none).")
    return Constant(float(scale))


def as_rule(guidance: float | Rule) -> Rule:
    """Return a rule: a number becomes `constant(number)`, a rule is returned unchanged."""
    return guidance if isinstance(guidance, Rule) else constant(guidance)
