"""Agreement of several pictures of one prompt, tile by tile (Carlini et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import networkx
import numpy as np
from annotated_types import Ge

from memlib.base.declared import NotNegative
from memlib.base.errors import NotMeasured
from memlib.base.hashing import digest
from memlib.experiment.group import Group
from memlib.probes.detectors.base import Detector, Scores, register

TILES = 4


@register
@dataclass(frozen=True)
class TileAgreement(Detector):
    """The smallest distance within which `size` pictures of a prompt agree two by two, per prompt; smaller is memorized.

    Distance of two pictures: the largest over 4 x 4 tiles of the root mean square difference, values 0 to 1. That is the threshold
    at which a clique of `size` appears, so no threshold has to be chosen; with fewer seeds than `size`, all of them must agree.
    Source: Carlini et al. 2023, Section 4.2, read as a score.
    """

    size: Annotated[int, Ge(2)] = 3

    name = "tile-agreement"
    label = "tile agreement"
    summary = "smallest tile distance within which three pictures of the prompt agree"
    source = "Carlini et al. 2023, as a score"
    sign = -1
    needs = "pictures"

    def measure(self, group: Group) -> Scores:
        return _scores(group, lambda distances: agreement_distance(distances, self.size))


@register
@dataclass(frozen=True)
class TileClique(Detector):
    """Size of the largest set of pictures of a prompt that agree two by two within `threshold`, per prompt.

    `as_published` counts connected groups instead, as the public program does under the name of cliques: a chain of pictures, each
    like the next, is then one group. The threshold belongs to tiles measured by root mean square. Source: Carlini et al. 2023.
    """

    threshold: NotNegative = 0.15
    as_published: bool = False

    name = "tile-clique"
    label = "largest clique"
    summary = "number of pictures of the prompt that agree within a tile distance of 0.15"
    source = "Carlini et al. 2023"
    needs = "pictures"
    published = "the program (not the authors') takes connected groups for cliques (as_published)"

    def measure(self, group: Group) -> Scores:
        return _scores(group, lambda distances: largest_group(distances, self.threshold, connected=self.as_published))


def tile_distances(pictures: np.ndarray, tiles: int = TILES) -> np.ndarray:
    """Return distances [S, S] of pictures uint8 [S, H, W, 3]: the largest root mean square difference over tiles x tiles tiles, 0 to 1.

    Rows and columns of pixels that do not fill a tile are left out at the end.
    """
    height, width = (side // tiles for side in pictures.shape[1:3])
    cut = pictures[:, : height * tiles, : width * tiles].astype(np.float32) / 255
    cut = cut.reshape(len(cut), tiles, height, tiles, width, -1).transpose(0, 1, 3, 2, 4, 5).reshape(len(cut), tiles * tiles, -1)
    distances = np.zeros((len(cut), len(cut)), np.float32)
    for row in range(len(cut) - 1):
        apart = np.sqrt(np.square(cut[row + 1 :] - cut[row]).mean(-1)).max(-1)
        distances[row, row + 1 :] = distances[row + 1 :, row] = apart
    return distances


def agreement_distance(distances: np.ndarray, size: int) -> float:
    """Return the smallest threshold at which `size` of the S pictures with `distances` [S, S] agree two by two."""
    size = min(size, len(distances))
    if size == 2:
        return float(distances[np.triu_indices(len(distances), 1)].min())
    levels = np.unique(distances[np.triu_indices(len(distances), 1)])
    low, high = 0, len(levels) - 1  # At the largest distance all pictures agree.
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if largest_group(distances, levels[middle]) >= size else (middle + 1, high)
    return float(levels[low])


def largest_group(distances: np.ndarray, threshold: float, connected: bool = False) -> int:
    """Return how many pictures the largest clique has under `threshold` (inclusive), or the largest connected group."""
    graph = networkx.from_numpy_array((distances <= threshold) & ~np.eye(len(distances), dtype=bool))
    groups = networkx.connected_components(graph) if connected else networkx.find_cliques(graph)
    return max(map(len, groups))


def picture_evaluations(group: Group) -> float:
    """U-Net rows that the pictures of one prompt take, over all seeds: two for each step of the schedule."""
    x = group.experiment
    return 2.0 * len(x.seeds) * x.calls


def several_seeds(group: Group) -> int:
    """The number of seeds; raises NotMeasured for one, since a single picture agrees with nothing."""
    if len(group.experiment.seeds) < 2:
        raise NotMeasured("Agreement between pictures needs at least two seeds: raise n_seeds.")
    return len(group.experiment.seeds)


def _scores(group: Group, of_distances: Callable[[np.ndarray], float]) -> Scores:
    seeds = several_seeds(group)
    store = group.experiment.store
    values = [
        of_distances(store.score({"score": "tile distances", "tiles": TILES, "of": digest(pictures)}, partial(tile_distances, pictures)))
        for pictures in group.pictures()
    ]
    return Scores(np.array(values, dtype=float), picture_evaluations(group), seeds)
