"""How local a memory is: what pruning finds for a prompt, and how far what it finds from several triggers of one picture agrees (claim D4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from memlib.experiment.group import Group
from memlib.experiment.tables import mean_of_those
from memlib.judging.estimates import Estimate, mean_interval, paired_difference
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


def found_for(group: Group, name: str) -> list[WeightSet]:
    """The set of weights that the pruning `name` finds for each prompt of a group."""
    return pruning(name).for_prompts(group.experiment.substrate, group.embedding.tokens)


def sizes(groups: Sequence[Group], names: Sequence[str]) -> pd.DataFrame:
    """Median and range of the number of neurons (NeMo) or weights found per prompt, and of prompts for which nothing was."""
    rows = {}
    for group in groups:
        for name in names:
            unit = "neurons" if pruning(name).neurons else "weights"
            sets = found_for(group, name)
            counts = np.array([sum(len(places) // _width(group, layer, unit) for layer, places in one.chosen.items()) for one in sets])
            rows[group.label, name] = {
                "unit": unit, "median": f"{np.median(counts):.0f}", "fewest": counts.min(), "most": counts.max(),
                "nothing found for": f"{(counts == 0).sum()} of {len(counts)}",
            }  # fmt: skip
    return pd.DataFrame(rows).T.rename_axis(["prompts", "method"])


def _width(group: Group, layer: str, unit: str) -> int:
    return group.experiment.substrate.unet.get_submodule(layer).in_features if unit == "neurons" else 1


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
            f"{self.weights:,} weights of all memorized prompts in a file of {self.file_kb:,.0f} kB; {self.zeros_inside:,} zeros inside the context, "
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


@dataclass(frozen=True)
class Agreement:
    """Overlaps of what is found from triggers: the quantities of claim D4, and means by what is compared (None where nothing was found)."""

    quantities: Mapping[str, Estimate]
    lines: Mapping[str, Estimate | None]


def agreement(substrate: Substrate, triggers: Sequence[Sequence[Embedding]], kind: str) -> Agreement:
    """Overlaps of what `kind` finds from the triggers of at least two pictures, beside those of the same triggers with other noise, of triggers of
    different pictures, and of sets as large drawn at random."""
    sets = sets_of(substrate, triggers, kind)
    measured, quantities = overlaps(sets, sets_of(substrate, triggers, kind, first_seed=100)), {}
    usable = ~np.isnan(measured.same) & ~np.isnan(measured.repeat)
    if usable.any():
        quantities[f"short_{kind}"] = mean_interval((measured.same - measured.repeat / 2)[usable])
        quantities[f"overlap_{kind}"] = mean_interval(measured.same[usable])
    both = usable & ~np.isnan(measured.others)
    if both.any():
        quantities[f"excess_{kind}"] = paired_difference(measured.same[both], measured.others[both])
    units = {name: UNITS[kind](substrate.unet.get_submodule(name)) for own in sets for one in own for name in one.chosen}
    compared = {
        "same trigger, other noise": measured.repeat, "two triggers of one picture": measured.same, "triggers of two pictures": measured.others,
        "as many at random": by_chance(sets, units),
    }  # fmt: skip
    return Agreement(quantities, {what: mean_of_those(values) for what, values in compared.items()})
