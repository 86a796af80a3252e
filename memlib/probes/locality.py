"""How local a memory is: what pruning finds for a prompt, and how far what it finds from several triggers of one picture agrees (claim D4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from memlib.experiment.group import Group
from memlib.mitigations.pruning import Wanda, pruning
from memlib.mitigations.weights import WeightSet, pruned
from memlib.mitigations.weights.weight_sets import acting_weight
from memlib.models.protocol import Substrate
from memlib.probes.triggers import by_chance, most_active, overlaps
from memlib.prompts.embedding import Embedding

# Units of a layer that a search chooses among, and how many places of a set of weights one of them stands for.
UNITS: Mapping[str, Callable[[Any], tuple[int, int]]] = {
    "activations": lambda layer: (layer.in_features, 1),
    "nemo": lambda layer: (layer.out_features, layer.in_features),
    "wanda": lambda layer: (layer.weight.numel(), 1),
}

# What is compared: from one trigger found twice, from triggers of one picture, from triggers of different pictures, and sets as large drawn at random.
COMPARED = REPEAT, SAME, OTHERS, CHANCE = ("same trigger, other noise", "two triggers of one picture", "triggers of two pictures", "as many at random")


def found_for(group: Group, name: str) -> list[WeightSet]:
    """The set of weights that the pruning `name` finds for each prompt of a group."""
    return pruning(name).for_prompts(group.experiment.substrate, group.embedding.tokens)


def sizes(group: Group, name: str) -> np.ndarray:
    """How many units the pruning `name` finds for each prompt of a group, [P]: neurons (NeMo), or weights."""
    unet, neurons = group.experiment.substrate.unet, pruning(name).neurons

    def units(found: WeightSet) -> int:
        return sum(len(places) // (unet.get_submodule(layer).in_features if neurons else 1) for layer, places in found.chosen.items())

    return np.array([units(found) for found in found_for(group, name)])


@dataclass(frozen=True)
class Removed:
    """What was seen of a model while a set of weights was out of it: zeros of its layers before and inside, and whether all came back."""

    weights: int
    file_kb: float
    zeros_before: int
    zeros_inside: int
    given_back: bool

    def __str__(self) -> str:
        return (
            f"{self.weights:,} weights in a file of {self.file_kb:,.0f} kB; {self.zeros_inside:,} zeros inside the context, "
            f"{self.zeros_before:,} before it; the same weights after it: {self.given_back}"
        )


def removed(substrate: Substrate, weights: WeightSet) -> Removed:
    """Save a set of weights, read it again, prune the model with it, and compare the layers inside the context and after it with those before."""
    layers = [substrate.unet.get_submodule(place) for place in weights.chosen]
    before = [layer.weight.detach().clone() for layer in layers]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        weights.save(path)
        size, again = path.stat().st_size, WeightSet.read(path)
    with pruned(substrate, again):
        inside = sum(int((acting_weight(layer) == 0).sum()) for layer in layers)
    same = all(bool((layer.weight == own).all()) for layer, own in zip(layers, before, strict=True))
    return Removed(len(weights), size / 1e3, sum(int((own == 0).sum()) for own in before), inside, same)


def sets_of(substrate: Substrate, triggers: Sequence[Sequence[Embedding]], kind: str, first_seed: int = 0) -> list[list[WeightSet]]:
    """What is found from every trigger of every picture: the most active inputs ("activations"), or the weights of a pruning by name."""
    if kind == "activations":
        looking = Wanda(first_seed=first_seed)
        return [[most_active(looking.norms(substrate, one)[0]) for one in own] for own in triggers]
    return [[pruning(kind, first_seed=first_seed).weights(substrate, one)[0] for one in own] for own in triggers]


def agreement(substrate: Substrate, triggers: Sequence[Sequence[Embedding]], kind: str) -> dict[str, np.ndarray]:
    """Overlaps of what `kind` finds from the triggers of M pictures, at least two, by what is compared (COMPARED): [M] each in 0..1, NaN where nothing
    was found."""
    sets = sets_of(substrate, triggers, kind)
    measured = overlaps(sets, sets_of(substrate, triggers, kind, first_seed=100))
    units = {name: UNITS[kind](substrate.unet.get_submodule(name)) for own in sets for one in own for name in one.chosen}
    return dict(zip(COMPARED, (measured.repeat, measured.same, measured.others, by_chance(sets, units)), strict=True))
