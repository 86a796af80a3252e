"""A mitigation, a detector and a substrate that memlib finds by the entry points in pyproject.toml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from memlib.base.declared import Share
from memlib.experiment.group import Group
from memlib.mitigations import Mitigation
from memlib.models.catalogue import Source
from memlib.probes.detectors import Detector, Scores
from memlib.prompts.embedding import Tokens


@dataclass(frozen=True)
class PadFade(Mitigation):
    """Scale the padding states by `left`, 0 to 1."""

    left: Share = 0.5

    name: ClassVar[str] = "pad-fade"
    label: ClassVar[str] = "pad × left"
    summary: ClassVar[str] = "The padding states are scaled down."
    source: ClassVar[str] = "this example"

    def edit(self, states: Tensor, tokens: Tokens) -> Tensor:
        return states.where(~tokens.pad.to(states.device)[..., None], states * self.left)


@dataclass(frozen=True)
class Capitals(Detector):
    """The share of words that begin with a capital letter."""

    name = "capitals"
    label = "capitals"
    summary = "share of words that begin with a capital letter"
    source = "this example"
    needs = "prompt alone"

    def measure(self, group: Group) -> Scores:
        shares = [np.mean([word[0].isupper() for word in prompt.split()]) for prompt in group.prompts.prompts]
        return Scores(np.array(shares), 0.0, 0)


# A diffusers folder that lies in the package; `memlib.models.catalogue.described` makes a Source of a YAML file with prompts and pictures.
MODEL = Source("example-model", "the example's model", folder=Path(__file__).parent / "weights")
