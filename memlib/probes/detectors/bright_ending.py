"""Bright ending: the magnitude where the last step attends to ``<eot>`` (Chen et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from memlib.base.declared import Whole
from memlib.experiment.group import Group
from memlib.probes.detectors.base import Detector, Scores, register
from memlib.probes.detectors.runs import first_steps, whole_run


@register
@dataclass(frozen=True)
class BrightEnding(Detector):
    """Magnitude under a mask, mean over the first `steps` steps (0: all), per prompt and seed.

    The mask is the attention to ``<eot>`` at the last step of the same run, conditional half, mean over heads and over the
    finest cross-attention layers of the down path (Stable Diffusion's two 64-pixel layers), resized to the latents where they are finer;
    it is not made binary. Score at a step: ``||difference * mask|| / mean(mask)``, each image by its own mean. The mask exists
    only after a complete run, so every variant costs one. Source: Chen et al. 2025 (ICLR), program.
    """

    steps: Whole = 0

    name = "bright-ending"
    label = "bright ending, all steps"
    summary = "magnitude weighted by the last step's attention to <eot>, mean over all steps"
    source = "Chen et al. 2025"
    needs = "whole run with attention"
    published = "the program's mitigation divides by the mean mask of the batch, its detector by each image's own, as here"

    def measure(self, group: Group) -> Scores:
        steps, run = first_steps(group, self.steps), whole_run(group)
        return Scores.priced(run["masked"][..., :steps].mean(-1), run["evaluations"][..., -1])


@register
@dataclass(frozen=True)
class BrightEndingFirst(BrightEnding):
    """The same, read at the first step; the mask is still that of the last."""

    steps: Whole = 1

    name = "bright-ending-first"
    label = "bright ending, first step"
    summary = "the same at the first step, with the mask of the last"
