"""Magnitude of the text-conditional noise (Wen et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from memlib.base.declared import Whole
from memlib.experiment.group import Group
from memlib.probes.detectors.base import Detector, Scores, register
from memlib.probes.detectors.runs import first_steps, magnitudes


@register
@dataclass(frozen=True)
class Magnitude(Detector):
    """L2 norm of conditional minus unconditional noise, mean over the first `steps` steps (0: all), per prompt and seed.

    Predictions are converted to noise, so that models of noise and of velocity are measured alike. At the first step of a schedule of zero terminal
    SNR there is none to be measured alone; over several steps it counts as 0 for every prompt. Source: Wen et al. 2024,
    Section 3, along an ordinary guided run; several seeds are averaged.
    """

    steps: Whole = 1

    name = "magnitude"
    label = "magnitude, first step"
    summary = "norm of conditional minus unconditional noise at the first step"
    source = "Wen et al. 2024"

    def measure(self, group: Group) -> Scores:
        run = magnitudes(group, first_steps(group, self.steps))
        return Scores.priced(run["magnitude"].mean(-1), run["evaluations"][..., -1])


@register
@dataclass(frozen=True)
class MagnitudeTen(Magnitude):
    """The same over the first ten steps."""

    steps: Whole = 10

    name = "magnitude-ten"
    label = "magnitude, ten steps"
    summary = "the same, mean over the first ten steps"


@register
@dataclass(frozen=True)
class MagnitudeAll(Magnitude):
    """The same over all steps."""

    steps: Whole = 0

    name = "magnitude-all"
    label = "magnitude, all steps"
    summary = "the same, mean over all steps"
    needs = "whole run"
