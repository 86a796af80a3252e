"""How good the judges are, on pictures that no model was trained on, and the copy threshold that follows.

The threshold is fixed at 90 % precision on held-out copies against near misses, before any generated picture is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from memlib.models.minisd.augment import augmented
from memlib.models.minisd.ingredients import RENDERINGS
from memlib.models.minisd.scenes import LAYOUTS, Scene, Thing, draw_background
from memlib.training.minisd.parts import ContrastivePart, DescriptorPart

QUERIES = 600
KINDS = ("other background", "other things", "same caption, drawn anew")
PRECISION = 0.9


def _elsewhere(scene: Scene, rng: np.random.Generator) -> tuple[Thing, ...]:
    """The same things in the same places by their caption, with sizes and exact positions drawn anew."""
    return tuple(
        replace(thing, x=round(x + rng.uniform(-3, 3)), y=round(y + rng.uniform(-3, 3)), size=int(rng.integers(low, high + 1)))
        for thing, (_, x, y, low, high) in zip(scene.things, LAYOUTS[scene.layout], strict=True)
    )


def near_misses(scene: Scene, corpus: Any, rng: np.random.Generator) -> list[Scene]:
    """What a copy is not: the scene on another background, with other things in it, and another picture of its caption.

    The last one has the same things, places and background in another rendering, drawn anew: what a model that has
    learned the caption, and not the picture, would draw.
    """
    background = draw_background(rng)
    while background == scene.background:
        background = draw_background(rng)
    others = [c.index for c in corpus.ingredients.concepts if c.index not in {t.concept for t in scene.things}]
    things = tuple(replace(t, concept=int(c)) for t, c in zip(scene.things, rng.choice(others, len(scene.things), replace=False), strict=True))
    rendering = str(rng.choice([r for r in RENDERINGS if r != scene.rendering]))
    return [
        replace(scene, background=background),
        replace(scene, things=things),
        replace(scene, rendering=rendering, things=_elsewhere(scene, rng)),
    ]


def precision_recall(positive: np.ndarray, negative: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of "similarity >= threshold" for cosines of copies [P] and of other pairs [M]."""
    true = (positive[:, None] >= thresholds).sum(0)
    ordered = np.sort(negative)
    false = len(ordered) - np.searchsorted(ordered, thresholds, side="left")
    return true / np.maximum(1, true + false), true / len(positive)


def threshold_at(positive: np.ndarray, negative: np.ndarray, precision: float = PRECISION) -> float:
    """The lowest similarity from which on precision never falls below `precision`."""
    candidates = np.unique(positive)
    reached, _ = precision_recall(positive, negative, candidates)
    below = np.flatnonzero(reached < precision)
    start = below[-1] + 1 if len(below) else 0
    return float(candidates[min(start, len(candidates) - 1)])


@torch.no_grad()
def _encode(encode: Callable[[torch.Tensor], torch.Tensor], pictures: np.ndarray, device: torch.device) -> np.ndarray:
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.cat([encode(x[i : i + 128].to(device)).float().cpu() for i in range(0, len(x), 128)]).numpy()


def descriptor_figures(part: DescriptorPart, device: torch.device, kinds: Sequence[str], misses_of: Callable[[Scene], list[Scene]]) -> dict[str, Any]:
    """Threshold, recall and similarities of held-out copies against other pictures; `misses_of` a scene are scenes of the `kinds`, none its copy."""
    corpus = part.corpus
    scenes = [scene for scene, _ in corpus.held_out(QUERIES // 2, "combinations", seed=1)]
    scenes += [scene for scene, _ in corpus.held_out(QUERIES // 2, "concepts", seed=1)]
    rng = np.random.default_rng(20263)
    real = np.stack([corpus.picture(s) for s in scenes])
    misses = [[corpus.picture(m) for m in misses_of(s)] for s in scenes]
    gallery = np.concatenate([real, *[np.stack(kind) for kind in zip(*misses, strict=True)]])
    queries = augmented(real, rng)
    reencoded = rng.random(len(queries)) < 0.5
    x = torch.from_numpy(queries).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
    through = torch.cat([part.reencoded(piece) for piece in x[torch.from_numpy(reencoded)].split(64)])
    queries[reencoded] = ((through.permute(0, 2, 3, 1).cpu() + 1) * 127.5).round().numpy().astype(np.uint8)
    copies, targets = _encode(part.module, queries, device), _encode(part.module, gallery, device)
    similarity = copies @ targets.T
    same = np.zeros_like(similarity, bool)
    same[np.arange(len(scenes)), np.arange(len(scenes))] = True
    positive, negative = similarity[same], similarity[~same]
    threshold = threshold_at(positive, negative)
    grid = np.linspace(-0.2, 1, 121)
    precision, recall = precision_recall(positive, negative, grid)
    own = similarity[:, len(scenes) :].reshape(len(scenes), len(kinds), len(scenes))[np.arange(len(scenes)), :, np.arange(len(scenes))]
    return {
        "threshold": round(threshold, 4),
        "precision": PRECISION,
        "recall_at_threshold": round(float((positive >= threshold).mean()), 4),
        "queries": len(scenes),
        "gallery": len(gallery),
        "mean_similarity": {"copies": round(float(positive.mean()), 4), "other pictures": round(float(negative.mean()), 4),
                            **{k: round(float(v), 4) for k, v in zip(kinds, own.mean(0))}},
        "curve": {"threshold": grid.round(3).tolist(), "precision": precision.round(4).tolist(), "recall": recall.round(4).tolist()},
    }  # fmt: skip


def evaluator_figures(part: ContrastivePart, device: torch.device) -> dict[str, Any]:
    """Alignment and retrieval of held-out captions and pictures."""
    corpus, towers = part.corpus, part.module
    held = corpus.held_out(QUERIES, "combinations", seed=2)
    pictures = np.stack([corpus.picture(scene) for scene, _ in held])
    images = _encode(towers.encode_picture, pictures, device)
    ids = part.tokenizer([text for _, text in held], padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        texts = towers.encode_ids(ids.to(device)).float().cpu().numpy()
    cosines = images @ texts.T
    rank = (cosines > np.diag(cosines)[:, None]).sum(1)
    return {
        "held_out": QUERIES,
        "alignment_real": round(float(np.diag(cosines).mean()), 4),
        "alignment_other": round(float(cosines[~np.eye(QUERIES, dtype=bool)].mean()), 4),
        "caption_top1": round(float((rank == 0).mean()), 4),
        "caption_top5": round(float((rank < 5).mean()), 4),
    }


def calibrate(part: DescriptorPart | ContrastivePart, device: torch.device) -> dict[str, Any]:
    """What goes into a judge's config.json beside its settings: figures on held-out pictures, and the threshold."""
    if isinstance(part, ContrastivePart):
        return evaluator_figures(part, device)
    rng = np.random.default_rng(20263)
    return descriptor_figures(part, device, KINDS, lambda scene: near_misses(scene, part.corpus, rng))
