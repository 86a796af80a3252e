"""Distance between two sets of pictures: Fréchet distance (FID) and kernel distance (KID).

Both work on features of any network. With few pictures FID is dominated by their number (methods page);
KID is unbiased and comes with the spread over its subsets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import linalg
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d
from torchvision.models.inception import Inception3, InceptionA, InceptionC, InceptionE

from memlib.base.errors import InputError
from memlib.metrics.pictures import centred, flat, in_batches
from memlib.metrics.weights import read_state, weight_file


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean [D] and covariance [D, D] (divided by M − 1) of features [M, D], in float64."""
    if features.ndim != 2 or len(features) < 2:
        raise InputError(f"A covariance needs features [M, D] with M of at least 2, not {list(features.shape)}.")
    features = features.astype(np.float64)
    return features.mean(0), np.cov(features, rowvar=False).reshape(features.shape[1], -1)


def frechet_distance(first_mean: np.ndarray, first_cov: np.ndarray, second_mean: np.ndarray, second_cov: np.ndarray) -> float:
    """Return |m1 − m2|² + tr(C1 + C2 − 2 (C1 C2)^½), at least 0. Source: Heusel et al. 2017."""
    # The eigenvalues of C1 C2 are those of C1^½ C2 C1^½, which is symmetric: no complex square root needed.
    values, vectors = linalg.eigh(first_cov)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    middle = linalg.eigvalsh(root @ second_cov @ root)
    covariance_part = np.trace(first_cov) + np.trace(second_cov) - 2 * np.sqrt(np.maximum(middle, 0)).sum()
    return float(max(0.0, ((first_mean - second_mean) ** 2).sum() + covariance_part))


def fid(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Fréchet distance between Gaussians fitted to features [M, D] and [N, D]."""
    return frechet_distance(*moments(first), *moments(second))


def kernel_distance(
    first: np.ndarray,
    second: np.ndarray,
    generator: np.random.Generator,
    subset_size: int = 1000,
    subsets: int = 100,
) -> tuple[float, float]:
    """Return mean and standard deviation over random subsets of the unbiased MMD², kernel (x·y/D + 1)³.

    Subsets are drawn without replacement and are as large as `subset_size` and both sets allow. The mean
    may be below zero. Source: Bińkowski et al. 2018.
    """
    size = min(subset_size, len(first), len(second))
    if size < 2:
        raise InputError("The kernel distance needs at least two pictures on both sides: pass more.")
    values = [
        _mmd(
            first[generator.choice(len(first), size, replace=False)],
            second[generator.choice(len(second), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def _mmd(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first.astype(np.float64), second.astype(np.float64)
    count, width = first.shape
    within_first, within_second, between = ((left @ right.T / width + 1) ** 3 for left, right in ((first, first), (second, second), (first, second)))
    # A picture is not compared with itself: that is what makes the estimate unbiased.
    inner = within_first.sum() - np.trace(within_first) + within_second.sum() - np.trace(within_second)
    return float(inner / (count * (count - 1)) - 2 * between.mean())


class _Pooled:
    """An Inception block whose pooling branch does not count the padding, as in the original network."""

    branch_pool: torch.nn.Module

    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        *others, _ = super()._forward(x)  # type: ignore[misc]  # the block's, which comes after this class
        return [*others, self.branch_pool(avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False))]


class _PooledA(_Pooled, InceptionA):
    pass


class _PooledC(_Pooled, InceptionC):
    pass


class _PooledE(_Pooled, InceptionE):
    pass


class _MaxPooledE(InceptionE):
    """The last block of the original network pools by maximum."""

    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        *others, _ = super()._forward(x)
        return [*others, self.branch_pool(max_pool2d(x, 3, stride=1, padding=1))]


def fid_inception() -> Inception3:
    """Return the Inception v3 of the FID literature without weights: 1,008 classes, its own pooling."""
    network = Inception3(num_classes=1008, aux_logits=False, transform_input=False, init_weights=False)
    network.Mixed_5b = _PooledA(192, pool_features=32)
    network.Mixed_5c = _PooledA(256, pool_features=64)
    network.Mixed_5d = _PooledA(288, pool_features=64)
    network.Mixed_6b = _PooledC(768, channels_7x7=128)
    network.Mixed_6c = _PooledC(768, channels_7x7=160)
    network.Mixed_6d = _PooledC(768, channels_7x7=160)
    network.Mixed_6e = _PooledC(768, channels_7x7=192)
    network.Mixed_7b = _PooledE(1280)
    network.Mixed_7c = _MaxPooledE(2048)
    return network.eval()


class InceptionFeatures:
    """Features for FID and KID: float32 [M, 2048] of uint8 pictures, resized to 299 x 299 without antialiasing.

    The resizing is that of pytorch-fid, which `basin` uses; another one shifts FID by several points.
    """

    available = True
    role = "distribution"
    name = "Inception v3 (FID)"
    fingerprint = "inception_fid"

    def __init__(self, network: torch.nn.Module, device: Any = "cpu", batch_size: int = 50):
        network.fc = torch.nn.Identity()
        self.device, self.batch_size, self._network = device, batch_size, network.to(device).eval()

    def __call__(self, pictures: Any) -> np.ndarray:
        """Return features [..., 2048] of uint8 pictures [..., H, W, 3]."""
        rows, shape = flat(pictures)
        return in_batches(self._network, self._prepare, rows, self.device, self.batch_size).numpy().reshape(*shape, -1)

    @staticmethod
    def _prepare(pictures: np.ndarray) -> torch.Tensor:
        return interpolate(centred(pictures), size=(299, 299), mode="bilinear", align_corners=False)


def load_inception(device: Any = "cpu") -> InceptionFeatures:
    """Return the feature extractor with the published weights. Raises NotMeasured if they are not at hand."""
    network = fid_inception()
    network.load_state_dict(read_state(weight_file("inception_fid")))
    return InceptionFeatures(network, device)
