"""A model of one's own: its training pictures with their captions as a prompt set, and what pictures are compared by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memlib.base.errors import InputError
from memlib.base.pictures import read_pictures
from memlib.metrics import METRICS, metric, metrics_for
from memlib.metrics.similarity import CopyDescriptor, by_clip, by_pixels
from memlib.models.substrate import Substrate
from memlib.prompts.sets import PromptSet
from memlib.training.finetune.examples import TrainingSet

MOST = 4000  # Training pictures that are held at once: 3 GB at 512 pixels.
QUANTILE = 0.99
FEWEST_PAIRS = 10
# Asked for by name alone: neither was trained to tell copies, and neither gives figures that compare with anyone's.
MAKESHIFT = ("pixels", "clip")
JUDGES = ("copy", "alignment")


@dataclass(frozen=True)
class Judged:
    """What copies are told by: the descriptor with its threshold, where that comes from in words, and how alike different training pictures are."""

    metric: CopyDescriptor
    threshold_from: str
    unlike: float


def captions_of(examples: TrainingSet, count: int, source: str) -> PromptSet:
    """Return at most `count` captions of a training set with their pictures, those that came most often first; of equals a fixed draw.

    Columns: prompt, training_picture (paths, " | " between them) and copies. A larger count holds the smaller one's captions. Raises InputError
    where these have more than MOST pictures.
    """
    table = pd.DataFrame([{"prompt": e.caption, "training_picture": e.picture, "copies": e.copies} for e in examples.examples])
    table = table.groupby("prompt", sort=False).agg({"training_picture": " | ".join, "copies": "sum"}).reset_index()
    drawn = table.iloc[np.random.default_rng(0).permutation(len(table))].sort_values("copies", ascending=False, kind="stable")
    chosen = drawn.head(count).reset_index(drop=True)
    pictures = sum(entry.count(" | ") + 1 for entry in chosen["training_picture"])
    if pictures > MOST:
        raise InputError(f"The first {len(chosen)} captions have {pictures} training pictures, and {MOST} are held at once: ask for fewer --prompts.")
    return PromptSet(examples.name, tuple(chosen["prompt"]), chosen, source, "the user's own")


def equip(model: Substrate, pictures_given: bool, shown: str, makeshift: bool) -> None:
    """Give a loaded model what a report asks of its data: metrics for copies and alignment alone, and pictures read at its own size.

    Whoever brings the pictures may see them, so that pages show them in full unless `shown` says otherwise; those of a model by name are shown
    as its data says.
    """
    named = [name for name in model.data.metrics if metric(name).role in JUDGES and not (makeshift and metric(name).role == "copy")]
    model.data = replace(model.data, metrics=tuple(named))
    if pictures_given:
        side = model.resolution
        model.data = replace(
            model.data, free=shown in ("auto", "full"), training_pictures=lambda entry: read_pictures([Path(path) for path in entry.split(" | ")], side)
        )


def judge(model: Substrate, name: str, alignment: Any, training: Sequence[np.ndarray]) -> Judged:
    """Return the copy metric `name` for a model whose prompts have `training` pictures [K, H, W, 3] each.

    "auto" is the model's own: MiniSD's, or SSCD. MAKESHIFT ones take their threshold from the training pictures themselves. Raises InputError
    where the metric is not at hand: it is never replaced by another one unasked.
    """
    if name not in ("auto", *MAKESHIFT) and (name not in METRICS or METRICS[name].role != "copy"):
        known = ["auto", *(known for known, m in METRICS.items() if m.role == "copy"), *MAKESHIFT]
        raise InputError(f"Unknown copy metric {name!r}: use one of {', '.join(known)}.")
    if name == "clip" and not alignment.available:
        raise InputError(f"Pictures cannot be compared by CLIP here: {alignment.reason}")
    if name in MAKESHIFT:
        bare = by_pixels() if name == "pixels" else by_clip(alignment)
        unlike = unlike_pairs(bare, training)
        if len(unlike) < FEWEST_PAIRS:
            raise InputError(
                f"The threshold of {name!r} comes from pairs of different training pictures, and there are {len(unlike)}: give at least 5 captions."
            )
        usual = float(np.quantile(unlike, QUANTILE))
        # What is just more alike than usual shares a ground or a subject; a copy lies nearer to the picture itself.
        threshold = (1 + usual) / 2
        words = f"half-way from {usual:.2f}, below which {QUANTILE:.0%} of {len(unlike):,} pairs of different training pictures lie, to 1"
        return Judged(by_pixels(threshold) if name == "pixels" else by_clip(alignment, threshold), words, float(unlike.mean()))
    if name != "auto":
        model.data = replace(model.data, metrics=(name, *(known for known in model.data.metrics if METRICS[known].role != "copy")))
    found = metrics_for(model)
    if "copy" not in found or not found["copy"].available:
        reason = found["copy"].reason if "copy" in found else f"{model.name} names none."
        raise InputError(f"No copy metric is at hand ({reason.rstrip('.')}): give --metric pixels or --metric clip to do without it.")
    unlike = unlike_pairs(found["copy"], training)
    return Judged(found["copy"], "the metric's own", float(unlike.mean()) if len(unlike) else 0.0)


def unlike_pairs(described: CopyDescriptor, training: Sequence[np.ndarray]) -> np.ndarray:
    """Return the similarities [M] of the first training picture of each prompt to those of all others."""
    vectors = described(np.stack([pictures[0] for pictures in training]))
    return (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
