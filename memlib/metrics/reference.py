"""Sets of pictures that must not be copied, as descriptors with captions: those that a substrate is known to have been trained on repeatedly, or a folder.

A folder holds pictures (PNG, JPEG or WebP) or, in their place, `descriptors.npy`: float [R, D], one row a picture, of the descriptor in
use. `captions.csv` (columns file, caption, copies; of descriptors: caption, copies, in their order) may say which
caption comes with a picture, and how often.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memlib.base.errors import InputError, NotMeasured
from memlib.base.pictures import SUFFIXES, read_picture
from memlib.metrics import METRICS
from memlib.models.protocol import Substrate

PUBLISHED_SIDE = 224  # What the program of anti-memorization guidance resizes to, for SSCD.
ORDINARY = 100
_kept: dict[tuple, Any] = {}


@dataclass(frozen=True)
class Reference:
    """Descriptors [R, D] of length 1 with R captions (None where unknown) and how often each caption comes."""

    vectors: Tensor
    captions: tuple[str | None, ...]
    copies: tuple[int, ...]
    side: int | None = None

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or not len(self.vectors) == len(self.captions) == len(self.copies) > 0:
            raise InputError(
                f"A reference set has one descriptor, caption and count a picture, and at least one picture, not "
                f"{list(self.vectors.shape)}, {len(self.captions)} and {len(self.copies)}."
            )

    def published_size(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] resized as the program does it, where it resizes."""
        if self.side is None:
            return pictures
        return torch.nn.functional.interpolate(pictures, (self.side, self.side), mode="bilinear", align_corners=False)


def copy_metric(substrate: Substrate) -> Any:
    """Return the copy descriptor that the substrate is judged by; raises NotMeasured where its weights are not at hand."""
    key = ("metric", substrate.data.metrics, str(substrate.device))
    if key not in _kept:
        made = next((METRICS[name] for name in substrate.data.metrics if METRICS[name].role == "copy"), None)
        if made is None:
            raise NotMeasured(f"{substrate.name} has no copy metric among its metrics.")
        _kept[key] = made.make({}, substrate.device, None)
    return _kept[key]


def no_reference(substrate: Substrate, folder: str) -> str:
    """Return a sentence where there is no reference set for this substrate and folder, else an empty text."""
    if not folder and substrate.data.repeated is None:
        return (
            f"amg needs pictures to be kept away from, and the training set of {substrate.name} is not at hand: "
            "give a folder of pictures or descriptors as reference."
        )
    if folder and not Path(folder).is_dir():
        return f"There is no folder {folder!r}: give one with pictures or descriptors as reference."
    return ""


def fingerprint(folder: str) -> str:
    """Return a hash over the names and contents of a folder's files; an empty text for no folder or one that is not there."""
    if not folder or not Path(folder).is_dir():
        return ""
    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    state = tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    if ("fingerprint", folder, state) not in _kept:
        parts = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
        _kept["fingerprint", folder, state] = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return _kept["fingerprint", folder, state]


def reference_for(substrate: Substrate, metric: Any, folder: str = "", as_published: bool = False) -> Reference:
    """Return the reference set of a folder, or for an empty text the substrate's own repeated pictures, described by `metric`; kept in memory.

    With `as_published` the descriptor reads pictures in [0, 1] as they are. Raises InputError for a folder without pictures
    or with files that do not fit each other.
    """
    key = ("reference", metric.fingerprint, fingerprint(folder), "" if folder else substrate.name, as_published)
    if key not in _kept:
        _kept[key] = _folder_set(Path(folder), metric, as_published) if folder else _own_set(substrate, metric, as_published)
    return _kept[key]


def ordinary_similarity(substrate: Substrate, metric: Any, reference: Reference, quantile: float) -> float:
    """Return a quantile of the similarity of real pictures to the nearest of the set, for prompts that are not memorized.

    From 100 held-out pictures; raises InputError where no such pictures are at hand.
    """
    if substrate.data.held_out is None:
        raise InputError(f"amg takes its level from held-out pictures, which {substrate.name} does not have: give the level as a number.")
    key = ("ordinary", metric.fingerprint, reference.vectors.shape, float(reference.vectors.double().sum()))
    if key not in _kept:
        _kept[key] = (metric(substrate.data.held_out(ORDINARY)) @ reference.vectors.cpu().numpy().T).max(1)
    return float(np.quantile(_kept[key], quantile))


@torch.no_grad()
def _described(pictures: np.ndarray, metric: Any, as_published: bool, side: int | None) -> Tensor:
    if not as_published:
        return torch.from_numpy(metric(pictures))
    values = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    if side is not None:
        values = torch.nn.functional.interpolate(values, (side, side), mode="bilinear", align_corners=False)
    return torch.cat([metric.describe(part.to(metric.device), prepared=True).float().cpu() for part in values.split(metric.batch_size)])


def _side(metric: Any, as_published: bool) -> int | None:
    return PUBLISHED_SIDE if as_published and metric.fingerprint.startswith("sscd") else None


def _own_set(substrate: Substrate, metric: Any, as_published: bool) -> Reference:
    if substrate.data.repeated is None:
        raise InputError(no_reference(substrate, ""))
    found = substrate.data.repeated()
    return Reference(_described(found.pictures, metric, as_published, None), found.captions, found.copies)


def _folder_set(folder: Path, metric: Any, as_published: bool) -> Reference:
    side = _side(metric, as_published)
    rows = _captions(folder / "captions.csv")
    if (folder / "descriptors.npy").is_file():
        vectors = torch.from_numpy(np.load(folder / "descriptors.npy", allow_pickle=False)).float()
        if vectors.ndim != 2 or (rows and len(rows) != len(vectors)):
            raise InputError(f"descriptors.npy of {folder.name} must be [pictures, values] with as many rows as captions.csv has.")
        told = rows or [{}] * len(vectors)
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
    else:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        if not files:
            raise InputError(f"The reference folder {folder.name} holds neither pictures ({', '.join(SUFFIXES)}) nor descriptors.npy.")
        by_file = {row.get("file"): row for row in rows}
        told = [by_file.get(path.name, {}) for path in files]
        # One at a time: the pictures of a folder need not have one size.
        vectors = torch.cat([_described(read_picture(path)[None], metric, as_published, side) for path in files])
    captions = tuple(row.get("caption") or None for row in told)
    try:
        copies = tuple(int(row.get("copies") or 1) for row in told)
    except ValueError as error:
        raise InputError(f"captions.csv of {folder.name} has a count of copies that is no whole number ({error}).") from error
    return Reference(vectors, captions, copies, side)


def _captions(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))
