"""Composed scenes: which things stand where on what, and the drawing of them.

A scene is a small frozen record, so that it can be drawn again, captioned in many ways and judged attribute by
attribute. Everything is a pure function of a NumPy generator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
from PIL import Image

from memlib.models.minisd.ingredients import RENDERINGS, Concept, Ingredients

SIZE = 64  # pixels per side of a picture
COLOURS = {
    "red": (214, 48, 49), "orange": (243, 146, 55), "yellow": (250, 219, 94), "green": (88, 169, 87),
    "teal": (38, 166, 154), "blue": (64, 115, 216), "navy": (32, 44, 96), "purple": (138, 86, 188),
    "pink": (246, 166, 196), "brown": (130, 88, 60), "gray": (150, 152, 156), "black": (24, 24, 28),
    "white": (250, 250, 248),
}  # fmt: skip
KINDS = ("plain", "gradient", "stripes", "dots", "checks")
# layout name -> places, each (x, y) of the centre and the range of sizes, in pixels
LAYOUTS: dict[str, tuple[tuple[str, float, float, int, int], ...]] = {
    "centre": (("centre", 32, 32, 38, 54),),
    "left": (("left", 19, 33, 24, 34),),
    "right": (("right", 45, 33, 24, 34),),
    "top": (("top", 32, 18, 24, 32),),
    "bottom": (("bottom", 32, 46, 24, 32),),
    "side by side": (("left", 17, 33, 23, 31), ("right", 47, 33, 23, 31)),
    "stacked": (("top", 32, 16, 22, 29), ("bottom", 32, 48, 22, 29)),
    "triangle": (("top", 32, 15, 20, 25), ("bottom left", 16, 47, 20, 25), ("bottom right", 48, 47, 20, 25)),
}
LAYOUT_SHARES = {"centre": 0.40, "left": 0.06, "right": 0.06, "top": 0.04, "bottom": 0.04, "side by side": 0.20,
                 "stacked": 0.10, "triangle": 0.10}  # fmt: skip


@dataclass(frozen=True)
class Background:
    """`kind` of KINDS, with one colour ("plain") or two: gradient from-to, otherwise ground and pattern."""

    kind: str
    first: str
    second: str | None = None

    @property
    def colours(self) -> tuple[str, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)


@dataclass(frozen=True)
class Thing:
    """One drawing in a scene: concept index, place word, centre and size in pixels."""

    concept: int
    place: str
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Scene:
    """What is where on what, in which rendering. `tone` is set for the people of the template group only."""

    things: tuple[Thing, ...]
    background: Background
    rendering: str
    layout: str
    tone: int | None = None

    @property
    def main(self) -> Thing:
        return max(self.things, key=lambda thing: thing.size)

    def with_main(self, concept: int) -> Scene:
        """The same scene with another concept in the main thing's place."""
        main = self.main
        return replace(self, things=tuple(replace(t, concept=concept) if t is main else t for t in self.things))


def held_out_combination(first: int, second: int | str, share: float = 0.1) -> bool:
    """Whether a pair of concepts, or a concept on a background colour, is kept out of training (a fixed tenth)."""
    pair = f"{min(first, second)}-{max(first, second)}" if isinstance(second, int) else f"{first}-{second}"
    return crc32(pair.encode()) % 1000 < 1000 * share


def held_out_combinations(scene: Scene) -> bool:
    """Whether a scene has a pair of concepts, or a main concept on a background, that is kept out of training."""
    ids = [thing.concept for thing in scene.things]
    pairs = [(a, b) for i, a in enumerate(ids) for b in ids[i + 1 :]]
    return any(held_out_combination(a, b) for a, b in pairs) or held_out_combination(ids[0], scene.background.first)


def draw_background(rng: np.random.Generator) -> Background:
    """Half plain, a quarter graded, a quarter patterned; two colours differ."""
    kind = str(rng.choice(KINDS, p=(0.5, 0.2, 0.1, 0.1, 0.1)))
    first, second = (str(c) for c in rng.choice(list(COLOURS), 2, replace=False))
    return Background(kind, first, None if kind == "plain" else second)


def draw_scene(rng: np.random.Generator, concepts: tuple[Concept, ...], combinations: str = "trained") -> Scene:
    """A random scene of `concepts`; `combinations` is "trained", "held out" or "any"."""
    while True:
        layout = str(rng.choice(list(LAYOUT_SHARES), p=list(LAYOUT_SHARES.values())))
        places = LAYOUTS[layout]
        chosen = rng.choice(len(concepts), len(places), replace=False)
        things = tuple(
            Thing(concepts[c].index, place, round(x + rng.uniform(-3, 3)), round(y + rng.uniform(-3, 3)), int(rng.integers(low, high + 1)))
            for c, (place, x, y, low, high) in zip(chosen, places, strict=True)
        )  # fmt: skip
        scene = Scene(things, draw_background(rng), str(rng.choice(RENDERINGS)), layout)
        if combinations == "any" or held_out_combinations(scene) == (combinations == "held out"):
            return scene


_RAMP = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None, None]
_Y, _X = np.mgrid[:SIZE, :SIZE]
_MASKS = {
    "stripes": ((_X + _Y) // 8 % 2).astype(np.float32)[..., None],
    "dots": (((_X % 16 - 8) ** 2 + (_Y % 16 - 8) ** 2) <= 16).astype(np.float32)[..., None],
    "checks": ((_X // 16 + _Y // 16) % 2).astype(np.float32)[..., None],
}


def paint_background(background: Background) -> np.ndarray:
    """uint8 [64,64,3]."""
    first = np.array(COLOURS[background.first], np.float32)
    if background.second is None:
        return np.broadcast_to(first, (SIZE, SIZE, 3)).astype(np.uint8)
    second = np.array(COLOURS[background.second], np.float32)
    mix = _RAMP if background.kind == "gradient" else _MASKS[background.kind]
    return (first + mix * (second - first)).round().astype(np.uint8) * np.ones((1, SIZE, 1), np.uint8)


def paint(scene: Scene, ingredients: Ingredients) -> np.ndarray:
    """The picture of a scene, uint8 [64,64,3]."""
    canvas = Image.fromarray(paint_background(scene.background))
    for thing in scene.things:
        sheet, cell = (scene.rendering, thing.concept) if scene.tone is None else ("people", thing.concept * 6 + scene.tone)
        drawing = ingredients.drawing(sheet, cell, thing.size)
        canvas.paste(drawing, (thing.x - thing.size // 2, thing.y - thing.size // 2), drawing)
    return np.asarray(canvas)
