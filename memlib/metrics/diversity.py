"""Diversity of the pictures that one prompt gives under different seeds.

A memorized prompt gives the same picture under every seed. `clip` (Section 4.2) measures this by LPIPS
between seeds; where LPIPS is not at hand, one minus copy similarity says the same in other units.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memlib.base.errors import InputError
from memlib.metrics.pictures import centred
from memlib.metrics.weights import read_state, weight_file


class SeedDiversity:
    """The mean distance over all pairs of seeds of one prompt; larger means more diverse."""

    available = True
    role = "diversity"

    def __init__(self, name: str, distances: Callable[[np.ndarray], np.ndarray], fingerprint: str = ""):
        self.name, self.fingerprint, self._distances = name, fingerprint, distances

    def __call__(self, pictures: Any) -> np.ndarray:
        """Return the diversity [P] of uint8 pictures [P, S, H, W, 3]; at least two seeds are needed."""
        pictures = np.asarray(pictures)
        if pictures.ndim != 5 or pictures.dtype != np.uint8:
            raise InputError(f"Diversity across seeds takes pictures as uint8 [prompts, seeds, height, width, 3], not {pictures.dtype} {list(pictures.shape)}.")
        _two_seeds(pictures.shape[1])
        return self._distances(pictures)


def seed_diversity(descriptors: np.ndarray) -> np.ndarray:
    """Return [P]: the mean of 1 − cosine over all pairs of seeds, for unit descriptors [P, S, D]."""
    seeds = descriptors.shape[1]
    _two_seeds(seeds)
    cosines = np.einsum("psd,ptd->pst", descriptors, descriptors)
    upper = np.triu_indices(seeds, 1)
    return 1 - cosines[:, upper[0], upper[1]].mean(axis=1)


def descriptor_diversity(descriptor: Any) -> SeedDiversity:
    """Return diversity measured as 1 − copy similarity by `descriptor` (CopyDescriptor), in 0..2."""
    return SeedDiversity("1 − copy similarity", lambda pictures: seed_diversity(descriptor(pictures)), descriptor.fingerprint)


def load_lpips(device: Any = "cpu") -> SeedDiversity:
    """Return LPIPS (AlexNet, version 0.1) between seeds, 0 meaning equal pictures.

    Raises NotMeasured if AlexNet's weights are not at hand. Source: Zhang et al. 2018.
    """
    network = lpips_network(weight_file("alexnet_imagenet")).to(device)

    @torch.no_grad()
    def distances(pictures: np.ndarray) -> np.ndarray:
        return np.array([_mean_over_pairs(network, centred(row).to(device)) for row in pictures])

    return SeedDiversity("LPIPS AlexNet", distances, "lpips-alex-0.1")


def lpips_network(path: Path) -> torch.nn.Module:
    """Return LPIPS with its trunk's weights taken from the AlexNet checkpoint at `path`.

    It takes pictures in [-1, 1]. Made with an untrained trunk, which is then filled: lpips would fetch the
    trunk by itself, unchecked.
    """
    import lpips

    with warnings.catch_warnings():
        # lpips calls torchvision in a way that it discourages; that is not the reader's concern.
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        network = lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)
    state = read_state(path)
    for piece in (network.net.slice1, network.net.slice2, network.net.slice3, network.net.slice4, network.net.slice5):
        for number, layer in piece.named_children():
            names = {part: f"features.{number}.{part}" for part, _ in layer.named_parameters()}
            if names:
                layer.load_state_dict({part: state[name] for part, name in names.items()})
    return network.eval()


def _mean_over_pairs(network: torch.nn.Module, pictures: torch.Tensor, block: int = 16) -> float:
    pairs = list(combinations(range(len(pictures)), 2))
    total = 0.0
    for start in range(0, len(pairs), block):
        first, second = zip(*pairs[start : start + block])
        total += float(network(pictures[list(first)], pictures[list(second)]).sum())
    return total / len(pairs)


def _two_seeds(seeds: int) -> None:
    if seeds < 2:
        raise InputError("Diversity across seeds needs at least two seeds: sample more of them.")
