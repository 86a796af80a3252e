"""Scenes of the second miniature: about a hundred things that can be told apart, on the grid of the latents.

Scenes, things and backgrounds are the first miniature's records; what differs is how they are drawn. Corners and sizes are multiples of the
pixels that one latent covers, and sizes are few, so that a thing looks alike to the autoencoder wherever it stands: the budget goes into
knowing the things, not into their resampling.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from memlib.models.minisd.scenes import COLOURS, KINDS, SIZE, Background, Scene, Thing, held_out_combinations
from memlib.models.minisd2.paths import minisd2_folder

RENDERING = "twemoji"  # one drawing a concept: three for each were more than a small U-Net learns
GRID = 4  # pixels a side of a latent
SIZES = (24, 28, 32, 40, 48)
KIND_SHARES = (0.5, 0.2, 0.1, 0.1, 0.1)
# layout: its share, and for each place the word, the sizes, and the range of the corner in pixels (x from, to, y from, to); None: about the middle
LAYOUTS: dict[str, tuple[float, tuple[tuple[str, tuple[int, ...], tuple[int, int, int, int] | None], ...]]] = {
    "centre": (0.42, (("centre", (40, 48), None),)),
    "left": (0.07, (("left", (28, 32), (0, 4, 12, 24)),)),
    "right": (0.07, (("right", (28, 32), (28, 32, 12, 24)),)),
    "top": (0.04, (("top", (28, 32), (12, 24, 0, 4)),)),
    "bottom": (0.04, (("bottom", (28, 32), (12, 24, 28, 32)),)),
    "side by side": (0.18, (("left", (24, 28), (0, 4, 12, 24)), ("right", (24, 28), (32, 36, 12, 24)))),
    "stacked": (0.08, (("top", (24, 28), (12, 24, 0, 4)), ("bottom", (24, 28), (12, 24, 32, 36)))),
    "triangle": (0.10, (("top", (24,), (16, 24, 0, 4)), ("bottom left", (24,), (0, 4, 36, 40)), ("bottom right", (24,), (36, 40, 36, 40)))),
}
_NAMES, _SHARES = list(LAYOUTS), [share for share, _ in LAYOUTS.values()]
_COLOURS = list(COLOURS)


@dataclass(frozen=True)
class Concept:
    """One nameable thing: `index` is its cell in the atlas, `words` are what titles say of it; `held_out` ones are never trained on."""

    index: int
    name: str
    words: tuple[str, ...]
    held_out: bool


@lru_cache(1)
def concepts() -> dict[int, Concept]:
    """The concepts of data/minisd2/concepts.csv by the index of their drawing, in the file's order."""
    with open(minisd2_folder() / "concepts.csv", encoding="utf-8", newline="") as handle:
        found = [Concept(int(r["index"]), r["name"], tuple(r["words"].split("; ")), r["held_out"] == "1") for r in csv.DictReader(handle)]
    return {concept.index: concept for concept in found}


@lru_cache(1)
def trained_concepts() -> list[int]:
    return [index for index, concept in concepts().items() if not concept.held_out]


def _on_grid(rng: Random, low: int, high: int) -> int:
    return GRID * rng.randint(low // GRID, high // GRID)


def _thing(rng: Random, concept: int, word: str, sizes: tuple[int, ...], corner: tuple[int, int, int, int] | None) -> Thing:
    size = sizes[rng.randrange(len(sizes))]
    middle = (SIZE - size) // 2
    if corner is None:
        x, y = (_on_grid(rng, middle - GRID, middle + GRID) for _ in range(2))
    else:
        x, y = _on_grid(rng, corner[0], min(corner[1], SIZE - size)), _on_grid(rng, corner[2], min(corner[3], SIZE - size))
    return Thing(concept, word, x + size // 2, y + size // 2, size)


def draw_background(rng: Random) -> Background:
    """Half plain, a fifth graded, the rest patterned; two colours differ."""
    kind = rng.choices(KINDS, KIND_SHARES)[0]
    first, second = rng.sample(_COLOURS, 2)
    return Background(kind, first, None if kind == "plain" else second)


def draw_scene(rng: Random, of: list[int], combinations: str = "trained", background: Background | None = None) -> Scene:
    """A random scene of the concepts `of`; `combinations` is "trained", "held out" or "any". A given `background` is kept."""
    while True:
        layout = rng.choices(_NAMES, _SHARES)[0]
        places = LAYOUTS[layout][1]
        chosen = rng.sample(of, len(places))
        things = tuple(_thing(rng, concept, *place) for concept, place in zip(chosen, places))
        scene = Scene(things, background or draw_background(rng), RENDERING, layout)
        if combinations == "any" or held_out_combinations(scene) == (combinations == "held out"):
            return scene
