"""What a picture of a scene shows, judged by drawing scenes again: its background, and its main thing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from memlib.models.minisd.ingredients import RENDERINGS
from memlib.models.minisd.prompt_sets import corpus
from memlib.models.minisd.scenes import COLOURS, Background, Scene, paint, paint_background


def background_colours(pictures: np.ndarray) -> np.ndarray:
    """The two named colours nearest to most of a picture's border, [..., 2] as indices into COLOURS, commonest first.

    The border is the outer four pixels, where things seldom reach.
    """
    pictures = np.asarray(pictures)
    mask = np.ones(pictures.shape[-3:-1], bool)
    mask[4:-4, 4:-4] = False
    border = pictures[..., mask, :].astype(np.float32)
    named = np.array(list(COLOURS.values()), np.float32)
    nearest = ((border[..., None, :] - named) ** 2).sum(-1).argmin(-1)
    counts = (nearest[..., None] == np.arange(len(named))).sum(-2)
    return np.argsort(-counts, axis=-1, kind="stable")[..., :2]


def background_right(pictures: np.ndarray, kinds: Iterable[str], colours: Iterable[str]) -> np.ndarray:
    """Whether each picture [N, S, H, W, 3] has the background its caption names: bool [N, S].

    Plain: the commonest named colour of the border is the right one. Two colours: among all colour pairs of that kind, the
    painted border nearest to the picture's is the one named; the two may be swapped in stripes and checks.
    """
    right = np.zeros(pictures.shape[:2], bool)
    names = list(COLOURS)
    commonest = background_colours(pictures)
    mask = np.ones(pictures.shape[2:4], bool)
    mask[4:-4, 4:-4] = False
    templates: dict[str, tuple[list[tuple[str, str]], np.ndarray]] = {}
    for i, (kind, colour) in enumerate(zip(kinds, colours, strict=True)):
        if kind == "plain":
            right[i] = commonest[i, :, 0] == names.index(colour)
            continue
        if kind not in templates:
            pairs = [(a, b) for a in names for b in names if a != b]
            templates[kind] = (pairs, np.stack([paint_background(Background(kind, *pair)) for pair in pairs])[:, mask].astype(np.float32))
        pairs, painted = templates[kind]
        for s in range(pictures.shape[1]):
            distance = ((painted - pictures[i, s][mask].astype(np.float32)) ** 2).mean((1, 2))
            first, second = colour.split("; ")
            best = pairs[int(distance.argmin())]
            # Stripes, dots and checks in swapped roles are the same two colours; a gradient has a direction.
            right[i, s] = best == (first, second) or (kind in ("stripes", "checks") and set(best) == {first, second})
    return right


def retrieval(copy: Callable[[np.ndarray], np.ndarray], pictures: np.ndarray, scenes: Sequence[Scene], within: int = 5) -> np.ndarray:
    """Whether the main thing is among the `within` concepts nearest to each picture [N, S, H, W, 3]: bool [N, S].

    A concept is as near as the scene drawn with that concept in the main thing's place, by the copy descriptor and in the
    nearest of the three renderings (a reference caption names none): the rest of the scene being right, only the main
    thing decides. By chance: `within` in the number of concepts.
    """
    ingredients = corpus().ingredients
    right = np.zeros(pictures.shape[:2], bool)
    for i, scene in enumerate(scenes):
        drawn = [paint(replace(scene.with_main(k), rendering=r), ingredients) for k in range(len(ingredients.concepts)) for r in RENDERINGS]
        vectors = copy(np.stack(drawn)).reshape(len(ingredients.concepts), len(RENDERINGS), -1)
        near = np.einsum("sd,krd->skr", copy(pictures[i]), vectors).max(2)
        right[i] = (near > near[:, [scene.main.concept]]).sum(1) < within
    return right
