"""Copy similarity: cosine between descriptors that were trained to recognise copies.

Source: Pizzi et al. 2022 (SSCD); `clip` Section 3 and `basin` Section 6 use it as the measure of
memorization. Similarities of other weights or other pre-processing are not comparable.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memlib.base.errors import InputError, NotMeasured
from memlib.metrics.pictures import centred, flat, in_batches, through_pil
from memlib.metrics.weights import thresholds, weight_file
from memlib.models.minisd.judges import load_descriptor

SSCD_SIDE = 320
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class CopyDescriptor:
    """A copy descriptor: pictures to unit vectors, two of which are compared by their cosine.

    `threshold` is the cosine from which two pictures count as copies, `strict_threshold` a second one
    that is shown beside it (or None). `fingerprint` identifies the weights in store keys.
    """

    available = True
    role = "copy"

    def __init__(
        self,
        name: str,
        network: Callable[[torch.Tensor], torch.Tensor],
        prepare: Callable[[np.ndarray], torch.Tensor],
        threshold: float,
        *,
        strict_threshold: float | None = None,
        fingerprint: str = "",
        device: Any = "cpu",
        batch_size: int = 64,
        from_values: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        self.name, self.threshold, self.strict_threshold = name, float(threshold), strict_threshold
        self.fingerprint, self.device, self.batch_size = fingerprint, device, batch_size
        self._network, self._prepare, self._from_values = network, prepare, from_values

    def __call__(self, pictures: Any) -> np.ndarray:
        """Return float32 descriptors [..., D] of length 1 for uint8 pictures [..., H, W, 3]."""
        rows, shape = flat(pictures)
        vectors = in_batches(self._network, self._prepare, rows, self.device, self.batch_size)
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return vectors.numpy().reshape(*shape, -1)

    def describe(self, values: torch.Tensor, prepared: bool = False) -> torch.Tensor:
        """Return descriptors [B, D] of length 1 for float pictures [B, 3, H, W] in [-1, 1], with gradients back to them.

        The same pre-processing as for uint8 pictures, but for rounding; with `prepared` none at all: the network reads what is given.
        """
        if not prepared and self._from_values is not None:
            values = self._from_values(values)
        return torch.nn.functional.normalize(self._network(values), dim=-1)

    def similarity(self, first: Any, second: Any) -> np.ndarray:
        """Return cosines in [-1, 1] of pictures (uint8 [..., H, W, 3]) or descriptors ([..., D]), broadcast.

        For instance [P, S] pictures against [P, 1] training pictures give [P, S].
        """
        return cosine(self._described(first), self._described(second))

    def _described(self, item: Any) -> np.ndarray:
        item = np.asarray(item)
        return self(item) if item.dtype == np.uint8 else item


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the cosine of vectors [..., D] along the last axis, in [-1, 1]."""
    if first.shape[-1] != second.shape[-1]:
        raise InputError(f"Descriptors of {first.shape[-1]} and {second.shape[-1]} values cannot be compared: take both from one descriptor.")
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return (first * second).sum(-1) / np.maximum(lengths, 1e-12)


def nearest(descriptors: np.ndarray, references: np.ndarray, block: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest cosine [M] of unit vectors [M, D] to any of [R, D], and which one it is [M]."""
    found = [
        (cosines.max(1), cosines.argmax(1)) for cosines in (descriptors[start : start + block] @ references.T for start in range(0, len(descriptors), block))
    ]
    values, places = zip(*found)
    return np.concatenate(values), np.concatenate(places)


def load_sscd(device: Any = "cpu") -> CopyDescriptor:
    """Return SSCD (disc_mixup, 512 values): pictures squashed to 320 x 320, ImageNet statistics.

    Raises NotMeasured if the weights are not at hand. Source: Pizzi et al. 2022 and its README.
    """
    from torchvision.transforms import v2

    path = weight_file("sscd_disc_mixup")
    # TorchScript is a program: it is loaded only after its hash has been checked.
    network = torch.jit.load(str(path), map_location=device).eval()
    transform = v2.Compose(
        [
            v2.Resize((SSCD_SIDE, SSCD_SIDE), antialias=True),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    bounds = thresholds("sscd_disc_mixup")
    return CopyDescriptor(
        "SSCD disc_mixup",
        network,
        lambda pictures: through_pil(pictures, transform),
        bounds["copy"],
        strict_threshold=bounds["strict"],
        fingerprint=f"sscd_disc_mixup-{SSCD_SIDE}",
        device=device,
        batch_size=32,
        from_values=_sscd_values,
    )


def by_pixels(threshold: float = math.nan, side: int = 32) -> CopyDescriptor:
    """Return a descriptor without any weights: the correlation of two pictures, area-averaged to `side` x `side` in colour.

    It misses what is moved, cut or mirrored and calls alike what shares its colours and layout. It has no threshold of its own: NaN calls nothing
    a copy.
    """

    def network(values: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.adaptive_avg_pool2d(values, side).flatten(1)
        return small - small.mean(1, keepdim=True)

    return CopyDescriptor("pixel correlation", network, centred, threshold, fingerprint=f"pixels-{side}")


def by_clip(alignment: Any, threshold: float = math.nan) -> CopyDescriptor:
    """Return a descriptor of the picture side of a CLIP judge (`memlib.metrics.alignment.TextAlignment`): alike is what shows the same things.

    It was not trained to tell copies, and has no threshold of its own: NaN calls nothing a copy.
    """
    return CopyDescriptor(
        f"CLIP pictures ({alignment.name})", alignment.encode_image, alignment.prepare, threshold, fingerprint=f"clip-pictures-{alignment.fingerprint}",
        device=alignment.device, batch_size=alignment.batch_size,
    )  # fmt: skip


def _sscd_values(values: torch.Tensor) -> torch.Tensor:
    from torchvision.transforms.v2 import functional

    resized = functional.resize((values + 1) / 2, [SSCD_SIDE, SSCD_SIDE], antialias=True)
    return functional.normalize(resized, list(IMAGENET_MEAN), list(IMAGENET_STD))


def load_minisd_descriptor(folder: Path, device: Any = "cpu") -> CopyDescriptor:
    """Return MiniSD's own descriptor from `folder`, with the threshold in its ``config.json``.

    Raises NotMeasured if the folder is not there.
    """
    if not (folder / "config.json").is_file():
        raise NotMeasured(f"MiniSD's copy descriptor is not in {folder}: train it with `memlib minisd train descriptor`.")
    config = json.loads((folder / "config.json").read_text())
    network = load_descriptor(folder).to(device).eval()
    return CopyDescriptor(
        "MiniSD descriptor",
        network,
        centred,
        config["threshold"],
        strict_threshold=config.get("strict_threshold"),
        fingerprint=folder_fingerprint(folder),
        device=device,
        batch_size=256,
    )


def folder_fingerprint(folder: Path) -> str:
    """Return a hash over the weights and configuration files of `folder`."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
    return hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()
