"""Sets of pictures that must not be copied, as descriptors with captions: those that MiniSD was trained on repeatedly, or a folder.

A folder holds pictures (PNG, JPEG or WebP) or, in their place, `descriptors.npy`: float [R, D], one row a picture, of the descriptor in
use. `captions.csv` (columns file, caption, copies; of descriptors: caption, copies, in their order) may say which
caption comes with a picture, and how often.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from memlib.base.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
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


def copy_metric(substrate: Any) -> Any:
    """Return the copy descriptor of the substrate's family; raises NotMeasured where its weights are not at hand."""
    from memlib.metrics import METRICS

    key = ("metric", substrate.family, str(substrate.device))
    if key not in _kept:
        [made] = [metric for metric in METRICS.values() if metric.family == substrate.family and metric.role == "copy"]
        _kept[key] = made.make({}, substrate.device, None)
    return _kept[key]


def no_reference(substrate: Any, folder: str) -> str:
    """Return a sentence where there is no reference set for this substrate and folder, else an empty text."""
    if not folder and substrate.family != "minisd":
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


def reference_for(substrate: Any, metric: Any, folder: str = "", as_published: bool = False) -> Reference:
    """Return the reference set of a folder, or of MiniSD for an empty text, described by `metric`; kept in memory.

    MiniSD's are its repeated pictures; of a model fine-tuned for a scenario, the pictures that the scenario's prompts bring back.
    With `as_published` the descriptor reads pictures in [0, 1] as they are. Raises InputError for a folder without pictures
    or with files that do not fit each other.
    """
    trained = "" if folder else substrate.name.rpartition("-")[2]  # small, ..., or dedup: what the model was trained on
    key = ("reference", metric.fingerprint, fingerprint(folder), trained, as_published)
    if key not in _kept:
        _kept[key] = _folder_set(Path(folder), metric, as_published) if folder else _minisd_set(metric, as_published, trained)
    return _kept[key]


def ordinary_similarity(substrate: Any, metric: Any, reference: Reference, quantile: float) -> float:
    """Return a quantile of the similarity of real pictures to the nearest of the set, for prompts that are not memorized.

    On MiniSD from 100 held-out pictures; raises InputError elsewhere, where no such pictures are at hand.
    """
    if substrate.family != "minisd":
        raise InputError(f"amg takes its level from held-out pictures, which {substrate.name} does not have: give the level as a number.")
    key = ("ordinary", metric.fingerprint, reference.vectors.shape, float(reference.vectors.double().sum()))
    if key not in _kept:
        from memlib.models.minisd.prompt_sets import held_out_pictures

        _kept[key] = (metric(held_out_pictures(ORDINARY)) @ reference.vectors.cpu().numpy().T).max(1)
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


def _minisd_set(metric: Any, as_published: bool, trained: str) -> Reference:
    from memlib.models.minisd.prompt_sets import corpus
    from memlib.models.minisd.scenarios import SCENARIOS, pairs

    known = corpus()
    found = pairs(known, trained) if trained in SCENARIOS else known.repeated
    counts: Counter[str] = Counter()
    for pair in found:
        counts[pair.caption] += 1 if trained == "dedup" else pair.copies
    pictures = np.stack([known.picture(pair.scene) for pair in found])
    captions = tuple(pair.caption for pair in found)
    return Reference(_described(pictures, metric, as_published, None), captions, tuple(counts[caption] for caption in captions))


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
        vectors = torch.cat([_described(_picture(path), metric, as_published, side) for path in files])
    captions = tuple(row.get("caption") or None for row in told)
    try:
        copies = tuple(int(row.get("copies") or 1) for row in told)
    except ValueError as error:
        raise InputError(f"captions.csv of {folder.name} has a count of copies that is no whole number ({error}).") from error
    return Reference(vectors, captions, copies, side)


def _picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))[None]
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{path.name} of the reference folder is no readable picture ({error}): remove or replace it.") from error


def _captions(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))
