"""What a picture of the second miniature's world shows, judged by drawing scenes again: its background, and the things on it.

`describe` is a copy descriptor throughout: uint8 pictures [..., 64, 64, 3] to unit vectors [..., D].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from memlib.models.minisd.scenes import COLOURS, KINDS, SIZE, Background, Scene, Thing, paint_background
from memlib.models.minisd2.painter import Painter
from memlib.models.minisd2.scenes import GRID, LAYOUTS, RENDERING, concepts

Describe = Callable[[np.ndarray], np.ndarray]
NEAR = 40  # of 255, in the channel that differs most: a colour of a picture is a background's if it is as near


def _variants(thing: Thing, layout: str) -> list[Thing]:
    """The thing in each of its sizes, in the middle of where it may stand: a caption says neither its size nor its exact place."""
    word, sizes, corner = next(place for place in LAYOUTS[layout][1] if place[0] == thing.place)
    found = []
    for size in sizes:
        if corner is None:
            x = y = (SIZE - size) // 2
        else:
            x, y = (GRID * round((corner[k] + min(corner[k + 1], SIZE - size)) / 2 / GRID) for k in (0, 2))
        found.append(Thing(thing.concept, word, x + size // 2, y + size // 2, size))
    return found


def concept_ranks(describe: Describe, painter: Painter, pictures: np.ndarray, scene: Scene, index: int) -> np.ndarray:
    """How many concepts are nearer to each picture [S, 64, 64, 3] than that of the scene's `index`-th thing: int [S], 0 is first.

    A concept is as near as the scene with it in that thing's place, in the likeliest size: the rest being as captioned, only that thing decides.
    """
    variants = _variants(scene.things[index], scene.layout)
    drawn = [
        replace(scene, things=tuple(replace(variant, concept=concept) if i == index else thing for i, thing in enumerate(scene.things)))
        for concept in concepts()
        for variant in variants
    ]
    vectors = describe(painter(drawn).cpu().numpy()).reshape(len(concepts()), len(variants), -1)
    near = np.einsum("sd,cvd->scv", describe(pictures), vectors).max(2)
    own = list(concepts()).index(scene.things[index].concept)
    return (near > near[:, [own]]).sum(1)


@lru_cache(1)
def _grounds() -> tuple[list[Background], np.ndarray]:
    """Every background there is, and their borders, int16 [B, P, 3]."""
    found = [Background("plain", colour) for colour in COLOURS]
    found += [Background(kind, a, b) for kind in KINDS if kind != "plain" for a in COLOURS for b in COLOURS if a != b]
    return found, np.stack([paint_background(background)[_border()] for background in found]).astype(np.int16)


@lru_cache(1)
def _border() -> np.ndarray:
    mask = np.ones((SIZE, SIZE), bool)
    mask[4:-4, 4:-4] = False
    return mask


def nearest_grounds(pictures: np.ndarray) -> tuple[list[Background], np.ndarray]:
    """The background whose border agrees best with each picture's [N, 64, 64, 3], and the share of the border that agrees with it, [N]."""
    grounds, borders = _grounds()
    found, shares = [], []
    for picture in pictures:
        agrees = (np.abs(borders - picture[_border()].astype(np.int16)).max(2) <= NEAR).mean(1)
        found.append(grounds[int(agrees.argmax())])
        shares.append(agrees.max())
    return found, np.array(shares)


def nearest_things(describe: Describe, painter: Painter, pictures: np.ndarray, other_than: Sequence[set[int]] | None = None) -> np.ndarray:
    """Copy similarity of each picture [N, 64, 64, 3] to the nearest picture of one thing on the background it has: float [N].

    Over all concepts, and every place and size that a thing can have; those of `other_than` are left out, one set a picture.
    """
    backgrounds, _ = nearest_grounds(pictures)
    seats = [(layout, place) for layout, (_, places) in LAYOUTS.items() for place in places]
    things = {thing for layout, place in seats for thing in _variants(Thing(0, place[0], 0, 0, 0), layout)}
    vectors, nearest = describe(pictures), []
    for i, (picture, background) in enumerate(zip(vectors, backgrounds)):
        left_out = other_than[i] if other_than is not None else set()
        drawn = [Scene((replace(thing, concept=c),), background, RENDERING, "centre") for c in concepts() if c not in left_out for thing in things]
        nearest.append(float((describe(painter(drawn).cpu().numpy()) @ picture).max()))
    return np.array(nearest)
