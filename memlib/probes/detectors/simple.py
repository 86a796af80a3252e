"""Simple detectors, which the others must beat: the length of the prompt, and the likeness of its pictures to each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memlib.base.errors import NotMeasured
from memlib.base.hashing import digest
from memlib.experiment.group import Group
from memlib.metrics.diversity import seed_diversity
from memlib.probes.detectors.agreement import picture_evaluations, several_seeds
from memlib.probes.detectors.base import Detector, Scores, register


@register
@dataclass(frozen=True)
class PromptLength(Detector):
    """Number of characters of the prompt, per prompt; no model is used. `clip` (Section 1) finds memorized prompts short."""

    name = "prompt-length"
    label = "length of the prompt"
    summary = "number of characters of the prompt"
    source = "a control; clip, Section 1, has memorized prompts short"
    sign = -1
    needs = "prompt alone"

    def measure(self, group: Group) -> Scores:
        return Scores(np.array([len(prompt) for prompt in group.prompts.prompts], dtype=float), 0.0, 0)


@register
@dataclass(frozen=True)
class PaddingShare(Detector):
    """Share of the 77 positions that hold padding, per prompt; the tokenizer is used and no model."""

    name = "padding-share"
    label = "share of padding"
    summary = "share of the 77 positions that hold padding"
    source = "a control; clip, Section 3.2, has memorization in the padding"
    needs = "prompt alone"

    def measure(self, group: Group) -> Scores:
        return Scores(group.embedding.tokens.pad.float().mean(1).double().numpy(), 0.0, 0)


@register
@dataclass(frozen=True)
class SeedSimilarity(Detector):
    """Mean copy similarity between the pictures of different seeds, over all pairs, per prompt."""

    name = "seed-similarity"
    label = "likeness across seeds"
    summary = "mean copy similarity between pictures of different seeds"
    source = "a control; clip, Section 4.2, measures diversity so"
    needs = "pictures"

    def measure(self, group: Group) -> Scores:
        seeds = several_seeds(group)
        copy = group.experiment.metrics.copy
        if not copy.available:
            raise NotMeasured(f"The copy descriptor is not at hand: {copy.reason}")
        pictures = group.pictures()
        key = {"score": "similarity across seeds", "metric": copy.fingerprint, "of": [digest(pictures)]}
        values = group.experiment.store.score(key, lambda: 1 - seed_diversity(copy(pictures)))
        return Scores(np.asarray(values, dtype=float), picture_evaluations(group), seeds)
