"""What a training-time mitigation is: a named object with parameters and hooks into a training step of the U-Net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from memlib.base.registry import Registered, find
from memlib.models.minisd.corpus import TrainingCorpus
from memlib.models.minisd.scenes import Scene

TRAINING_MITIGATIONS: dict[str, TrainingMitigation] = {}


@dataclass(frozen=True)
class Noised:
    """B samples as a U-Net is trained on them: `noisy` latents and the `noise` in them [B, C, h, w], `times` [B], text `states`
    [B, 77, d], whose caption was `dropped` [B] (on the CPU), and the `weight` of each in the loss [B]."""

    noisy: Tensor
    noise: Tensor
    times: Tensor
    states: Tensor
    dropped: Tensor
    weight: Tensor


@dataclass(frozen=True)
class TrainingMitigation(Registered):
    """Base: fields are parameters; hooks, in the order of a training step, are `caption` and `forward`; `prepare` comes once before.

    What pages say of each stands in data/training_mitigations.yml (`memlib.results.trainings.methods`).
    """

    kind: ClassVar[str] = "training-time mitigation"
    described: ClassVar[tuple[str, ...]] = ("name",)  # the rest stands in the file
    registry: ClassVar[dict[str, TrainingMitigation]] = TRAINING_MITIGATIONS

    name: ClassVar[str]

    def prepare(self, unet: nn.Module) -> None:
        """Make the U-Net ready for `forward`."""

    def caption(self, example: tuple[Scene, str, int], corpus: TrainingCorpus, tokenizer: Any, rng: np.random.Generator) -> str:
        """Return the caption to train with for `example` (`Corpus.example`: scene, caption, index of the pair or -1)."""
        return example[1]

    def forward(self, unet: Any, batch: Noised, empty: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the predicted noise [B, C, h, w] and, for a filter, a score [B] of each sample (0 without a caption).

        `empty` [77, d] are the text states of the empty caption. Scores are float32, on the CPU and without gradient.
        """
        return unet(batch.noisy, batch.times, batch.states).sample, None


def get(name: str, **params: Any) -> TrainingMitigation:
    """Return the registered mitigation `name` with these parameters in place of its defaults; raises InputError for either unknown."""
    return find(TrainingMitigation, name, params)
