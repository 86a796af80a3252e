"""Picture quality: the LAION aesthetic predictor, and realism against a set of real pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.metrics.weights import read_state, weight_file

AESTHETIC_LAYERS = (768, 1024, 128, 64, 16, 1)
# The published checkpoint numbers its layers with dropout in between.
AESTHETIC_NAMES = (0, 2, 4, 6, 7)


class Quality:
    """A score per picture (larger is better) computed from image features [..., D] of length 1."""

    available = True
    role = "quality"

    def __init__(
        self,
        name: str,
        features: Callable[[Any], np.ndarray],
        score: Callable[[np.ndarray], np.ndarray],
        fingerprint: str = "",
    ):
        self.name, self.fingerprint = name, fingerprint
        self._features, self._score = features, score

    def __call__(self, pictures: Any) -> np.ndarray:
        """Return scores [...] of uint8 pictures [..., H, W, 3]."""
        features = self._features(pictures)
        return self._score(features.reshape(-1, features.shape[-1])).reshape(features.shape[:-1])


def load_aesthetic(clip: Any) -> Quality:
    """Return the LAION aesthetic predictor v2 on the picture features of `clip` (OpenAI ViT-L/14).

    Scores lie around 5 on a scale of 1 to 10. Raises NotMeasured if the weights are not at hand.
    Source: `clip` Section 3 (evaluation metrics); Schuhmann 2022.
    """
    head = aesthetic_head(weight_file("laion_aesthetic_v2"))

    @torch.no_grad()
    def score(features: np.ndarray) -> np.ndarray:
        return head(torch.from_numpy(features)).squeeze(-1).numpy()

    return Quality("LAION aesthetic v2", clip.pictures, score, f"laion_aesthetic_v2+{clip.fingerprint}")


def aesthetic_head(path: Path) -> nn.Module:
    """Return the predictor's five linear layers; it has no activation between them, only dropout in training."""
    layers = [nn.Linear(width, out) for width, out in zip(AESTHETIC_LAYERS, AESTHETIC_LAYERS[1:])]  # noqa: RUF007
    state = read_state(path)
    for name, layer in zip(AESTHETIC_NAMES, layers):
        layer.load_state_dict({part: state[f"layers.{name}.{part}"].float() for part in ("weight", "bias")})
    return nn.Sequential(*layers).eval()


def load_realism(judge: Any, reference: Any, neighbours: int = 3) -> Quality:
    """Return the realism score against real pictures `reference` (uint8 [R, H, W, 3]), in the features of `judge`.

    `judge` is a TextAlignment; pictures near the real ones score 1 and more.
    Source: Kynkäänniemi et al. 2019, Section 5.
    """
    real = judge.pictures(reference)
    prepared = realism_reference(real, neighbours)
    # Of the pictures and not of their features, whose last digits hang on the machine and its number of threads.
    fingerprint = digest([judge.fingerprint, neighbours, np.asarray(reference)])
    return Quality("realism", judge.pictures, lambda features: realism(features, *prepared), fingerprint)


def realism_reference(real: np.ndarray, neighbours: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return the real features kept and the radius of each: the distance to its k-th neighbour among the real.

    The half with the largest radii is left out: around outliers the balls are large and would call
    anything real. Source: Kynkäänniemi et al. 2019, Section 5.
    """
    if len(real) <= neighbours:
        raise InputError(f"Realism with {neighbours} neighbours needs more than {neighbours} real pictures, not {len(real)}.")
    # A picture is its own nearest neighbour, hence the k-th is at place k and not k - 1.
    radii = np.sort(_distances(real, real), axis=1)[:, neighbours]
    kept = radii <= np.median(radii)
    return real[kept], radii[kept]


def realism(features: np.ndarray, real: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Return, per row of `features` [M, D], the largest of radius / distance over the real features [R, D]."""
    return (radii[None] / np.maximum(_distances(features, real), 1e-8)).max(axis=1)


def _distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    first, second = first.astype(np.float64), second.astype(np.float64)
    squared = (first**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * first @ second.T
    return np.sqrt(np.maximum(squared, 0))
