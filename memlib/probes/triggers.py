"""Triggers of one picture, embeddings that bring it up: how far apart they lie, what lies between them, what they use of the model.

Distances are Euclidean over all 77 x d numbers, those that an attack moves. They are read beside the distances among ordinary prompts, and
beside those among the points where the searches began: from points far apart a search that moves little ends far apart, whatever
the model. What is told by them is therefore never the distance alone, but that triggers were found so far apart at all. Source: `dori`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch

from memlib.base.errors import InputError
from memlib.mitigations.weights.wanda import Norms
from memlib.mitigations.weights.weight_sets import WeightSet, overlap
from memlib.models.protocol import Substrate
from memlib.probes.attack.runs import Attack, Attacked, joined
from memlib.prompts.embedding import Embedding, encode_prompts


def distances(states: Any) -> np.ndarray:
    """Return the Euclidean distances [K (K - 1) / 2] between K embeddings [K, 77, d]; empty for fewer than two."""
    flat = torch.as_tensor(np.asarray(states, dtype=np.float32)).flatten(1)
    return torch.nn.functional.pdist(flat).numpy() if len(flat) > 1 else np.zeros(0, np.float32)


@dataclass(frozen=True)
class Spread:
    """By picture [P]: mean distance among its triggers and among their starts, both over the mean distance among ordinary prompts, how far
    triggers are from their starts by the same measure, and the number of triggers. NaN for pictures with fewer than two."""

    triggers: np.ndarray
    starts: np.ndarray
    moved: np.ndarray
    counts: np.ndarray


def spread(states: np.ndarray, starts: np.ndarray, succeeded: np.ndarray, ordinary: Any) -> Spread:
    """Return how far the triggers of each picture are spread: `states` and `starts` [P, R, 77, d], `succeeded` [P, R], `ordinary` prompts'
    states [N, 77, d].

    Raises InputError for fewer than two ordinary prompts.
    """
    apart = distances(ordinary)
    if not len(apart):
        raise InputError("Distances are measured in those among ordinary prompts: give at least two of them.")
    unit, rows = float(apart.mean()), []
    for own, begun, done in zip(states, starts, succeeded, strict=True):
        if done.sum() < 2:
            rows.append((np.nan,) * 3)
            continue
        moved = np.linalg.norm((own - begun)[done].reshape(int(done.sum()), -1), axis=1)
        rows.append((distances(own[done]).mean() / unit, distances(begun[done]).mean() / unit, moved.mean() / unit))
    triggers, begun, moved = np.array(rows, dtype=float).reshape(-1, 3).T
    return Spread(triggers, begun, moved, succeeded.sum(1))


def between(attack: Attack, attacked: Attacked, shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)) -> np.ndarray | None:
    """Return copy similarities [M, W, S] on the straight lines between the first two triggers of each of M pictures that have two.

    `shares` [W] say how much of the second trigger is mixed in; `attack` is the `memlib.probes.attack.Attack` that found them. None where no picture
    has two. At the ends they are those of the triggers themselves, to the precision that they are kept in.
    """
    rows = np.flatnonzero(attacked.succeeded.sum(1) >= 2)
    if not len(rows):
        return None
    mixed, parts, pictures = [], [], []
    for row in rows:
        first, second = (torch.from_numpy(attacked.states[row, place]) for place in np.flatnonzero(attacked.succeeded[row])[:2])
        part = encode_prompts(attack.experiment.substrate, attacked.targets.prompts[row])
        mixed += [(1 - a) * first + a * second for a in shares]
        parts += [part] * len(shares)
        pictures += [attacked.targets.pictures[row]] * len(shares)
    found = attack.similarities(torch.stack(mixed), joined(parts), np.stack(pictures))
    return found.reshape(len(rows), len(shares), -1)


def most_active(norms: Norms, share: float = 0.1) -> WeightSet:
    """Return the inputs of feed-forward layers that are most active in a run: the `share` of each layer's with the highest norm, root mean
    square over the steps looked at (`memlib.mitigations.weights.wanda.input_norms`)."""
    chosen = {}
    for name, values in norms.items():
        total = np.square(values).mean(0)
        chosen[name] = np.argsort(-total, kind="stable")[: max(1, round(share * len(total)))]
    return WeightSet(chosen)


@dataclass(frozen=True)
class Overlaps:
    """Intersection over union by picture [M], means over pairs: of sets from different triggers of it (`same`), from one trigger found twice
    with other noise (`repeat`), and from a trigger of it and one of another picture (`others`)."""

    same: np.ndarray
    repeat: np.ndarray
    others: np.ndarray


def overlaps(sets: Sequence[Sequence[WeightSet]], again: Sequence[Sequence[WeightSet]]) -> Overlaps:
    """Return the overlaps of sets found from the triggers of M pictures, `sets[m]` one for each trigger and `again[m]` the same found
    with other noise.

    `others` is the baseline of triggers dealt out at random: pairs of triggers of different pictures. A pair of empty sets has no overlap and is
    left out. Raises InputError for pictures with fewer than two triggers, or fewer than two pictures.
    """
    if len(sets) < 2 or any(len(own) < 2 or len(own) != len(twin) for own, twin in zip(sets, again, strict=True)):
        raise InputError("Overlaps need at least two pictures with two triggers each, and each trigger's set found twice.")
    same = [_mean(overlap(a, b) for a, b in combinations(own, 2)) for own in sets]
    repeat = [_mean(overlap(a, b) for a, b in zip(own, twin, strict=True)) for own, twin in zip(sets, again, strict=True)]
    others = [_mean(overlap(a, b) for a in own for n, other in enumerate(sets) if n != m for b in other) for m, own in enumerate(sets)]
    return Overlaps(*(np.array(part, dtype=float) for part in (same, repeat, others)))


def by_chance(sets: Sequence[Sequence[WeightSet]], units: Mapping[str, tuple[int, int]], draws: int = 1000) -> np.ndarray:
    """Return for each picture the overlap [M] to be expected of sets as large as its own but drawn at random, pairs averaged.

    `units` says for each layer how many units there are to draw, and how many places of a set each stands for: (weights, 1), or (neurons, weights
    of one). Sets draw independently, so that what two share in a layer has a hypergeometric distribution; the mean over `draws` from it.
    """
    rng = np.random.default_rng(0)

    def expected(first: WeightSet, second: WeightSet) -> float:
        both = np.zeros(draws)
        for name, places in first.chosen.items():
            (count, width), other = units[name], len(second.chosen.get(name, ()))
            own = len(places) // width
            both += width * rng.hypergeometric(own, count - own, other // width, draws) if other else 0
        either = len(first) + len(second) - both
        return float((both / either).mean()) if len(first) + len(second) else float("nan")

    return np.array([_mean(expected(a, b) for a, b in combinations(own, 2)) for own in sets], dtype=float)


def _mean(values: Any) -> float:
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else float("nan")


def trigger_embedding(substrate: Substrate, attacked: Attacked, row: int, count: int | None = None) -> Embedding:
    """Return the triggers of one picture as an embedding with its own prompt's tokens, at most `count` of them."""
    places = np.flatnonzero(attacked.succeeded[row])[:count]
    part = encode_prompts(substrate, attacked.targets.prompts[row])
    return joined([part] * len(places)).replace(torch.from_numpy(attacked.states[row, places]))
