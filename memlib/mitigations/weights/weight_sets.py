"""Sets of weights of a U-Net, taken out inside a context and given back to the last bit after it.

A set names linear layers by their path in the U-Net and, in each, single weights. A neuron is an output channel: a whole row of the weight
matrix. Taking out means zero, or a multiple of what they are; layers keep their biases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.base.writing import replacing
from memlib.models.hooks import hooked


@dataclass(frozen=True, eq=False)
class WeightSet:
    """`chosen` maps a layer's path to flat places in its weight [out, in]: whole numbers, each once, rising. Layers may be absent."""

    chosen: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        found = {name: np.unique(np.asarray(places, dtype=np.int64)) for name, places in self.chosen.items()}
        object.__setattr__(self, "chosen", {name: places for name, places in sorted(found.items()) if len(places)})

    def __len__(self) -> int:
        return sum(map(len, self.chosen.values()))

    def __or__(self, other: WeightSet) -> WeightSet:
        """The union of two sets."""
        empty = np.zeros(0, np.int64)
        names = {*self.chosen, *other.chosen}
        return WeightSet({name: np.union1d(self.chosen.get(name, empty), other.chosen.get(name, empty)) for name in names})

    @cached_property
    def fingerprint(self) -> str:
        """A hash by which two sets are told apart."""
        return digest(dict(self.chosen))

    @classmethod
    def of_neurons(cls, model: Any, neurons: Mapping[str, Sequence[int] | np.ndarray]) -> WeightSet:
        """Return the whole rows of these output channels, by layer."""
        chosen = {}
        for name, channels in neurons.items():
            width = _linear(model, name).in_features
            rows = np.asarray(channels, dtype=np.int64).reshape(-1, 1)
            chosen[name] = (rows * width + np.arange(width)).ravel()
        return cls(chosen)

    def save(self, path: Path) -> None:
        """Write the set to a safetensors file."""
        with replacing(path) as partial:
            save_file(dict(self.chosen) or {"": np.zeros(0, np.int64)}, partial)

    @classmethod
    def read(cls, path: Path) -> WeightSet:
        """Return the set that `save` wrote; raises InputError for a file that is none."""
        try:
            return cls(load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            why = " ".join(str(error).split())[:100]
            raise InputError(f"{path} holds no set of weights ({why}): find the weights again and save them.") from error


def overlap(first: WeightSet, second: WeightSet) -> float:
    """Return the number of weights in both sets over that in either (0 to 1); NaN for two empty sets."""
    both = sum(len(np.intersect1d(places, second.chosen[name], True)) for name, places in first.chosen.items() if name in second.chosen)
    either = len(first) + len(second) - both
    return both / either if either else float("nan")


def union(sets: Sequence[WeightSet]) -> WeightSet:
    """Return the union of any number of sets; none give the empty set."""
    together = WeightSet({})
    for one in sets:
        together = together | one
    return together


def shuffled(model: Any, weights: WeightSet, generator: np.random.Generator, neurons: bool = False) -> WeightSet:
    """Return as many weights of the same layers, drawn at random; with `neurons` whole rows, as many as the set has."""
    chosen: dict[str, Any] = {}
    for name, places in weights.chosen.items():
        layer = _linear(model, name)
        if neurons:
            rows = generator.choice(layer.out_features, len(places) // layer.in_features, replace=False)
            chosen[name] = WeightSet.of_neurons(model, {name: rows}).chosen.get(name, [])
        else:
            chosen[name] = generator.choice(layer.weight.numel(), len(places), replace=False)
    return WeightSet(chosen)


def _linear(model: Any, name: str) -> nn.Linear:
    unet = getattr(model, "unet", model)
    try:
        found = unet.get_submodule(name)
    except AttributeError as error:
        raise InputError(f"The U-Net has no layer {name!r}: the set of weights belongs to another model.") from error
    if not isinstance(found, nn.Linear):
        raise InputError(f"The layer {name!r} is {type(found).__name__}, not a linear one: the set of weights belongs to another model.")
    return found


def _checked(model: Any, weights: WeightSet) -> dict[str, nn.Linear]:
    layers = {name: _linear(model, name) for name in weights.chosen}
    for name, layer in layers.items():
        if not 0 <= weights.chosen[name][0] <= weights.chosen[name][-1] < layer.weight.numel():
            raise InputError(f"The layer {name!r} has {layer.weight.numel()} weights, and the set names others: it belongs to another model.")
    return layers


class _Taken:
    """What is taken out of one layer now, by whichever contexts, and the layer's own weight, which is never written to."""

    def __init__(self, layer: nn.Linear):
        self.own, self.parts = layer.weight, list[tuple[np.ndarray, float]]()

    def put(self, layer: nn.Linear) -> None:
        layer.weight = self.own if not self.parts else nn.Parameter(_scaled(self.own, self.parts), requires_grad=False)


_TAKEN: WeakKeyDictionary[nn.Linear, _Taken] = WeakKeyDictionary()
_CHANGING = RLock()


@contextmanager
def _taken(layer: nn.Linear, places: np.ndarray, factor: float) -> Iterator[None]:
    part = (places, factor)
    with _CHANGING:
        taken = _TAKEN.setdefault(layer, _Taken(layer))
    try:
        with _CHANGING:
            taken.parts.append(part)
            taken.put(layer)
        yield
    finally:
        with _CHANGING:
            taken.parts = [one for one in taken.parts if one is not part]
            taken.put(layer)
            if not taken.parts:
                _TAKEN.pop(layer, None)


@contextmanager
def pruned(model: Any, weights: WeightSet, factor: float = 0.0) -> Iterator[None]:
    """Make these weights of a substrate, pipeline or U-Net `factor` times what they are inside; afterwards they are as before.

    That holds after an exception and whatever other sets are taken out meanwhile, nested, in another thread or left in another order: as long as
    any context is open, what all of them name is out, for everyone who uses the U-Net. The layers' own weights are never written to: gradients by
    anything but the weights can be taken inside, and followed back outside. Raises InputError for a set of another model.
    """
    layers = _checked(model, weights)
    with ExitStack() as parts:
        for name, layer in layers.items():
            parts.enter_context(_taken(layer, weights.chosen[name], factor))
        yield


@contextmanager
def pruned_rows(model: Any, sets: Sequence[WeightSet], factor: float = 0.0) -> Iterator[None]:
    """Take out other weights for each row of the U-Net's batch: row i has ``sets[i % len(sets)]``.

    So B sets serve B conditional rows as well as B unconditional and then B conditional ones. Raises InputError for sets of another model,
    and inside for a batch that is no multiple of the sets.
    """
    if not sets:
        raise InputError("There are no sets of weights for the rows of a batch: give one for each row.")
    groups: dict[str, tuple[WeightSet, list[int]]] = {}
    for row, one in enumerate(sets):
        groups.setdefault(one.fingerprint, (one, []))[1].append(row)
    if len(groups) == 1:
        with pruned(model, sets[0], factor):
            yield
        return
    layers = {name: layer for one, _ in groups.values() for name, layer in _checked(model, one).items()}
    with ExitStack() as hooks:
        for name, layer in layers.items():
            own = [(one.chosen[name], torch.tensor(rows)) for one, rows in groups.values() if name in one.chosen]
            parts = [(_scaled(layer.weight, [(places, factor)]), rows) for places, rows in own]
            hooks.enter_context(hooked(layer.register_forward_hook, _by_row(parts, len(sets))))
        yield


def _scaled(weight: Tensor, parts: Sequence[tuple[np.ndarray, float]]) -> Tensor:
    changed = weight.detach().clone(memory_format=torch.contiguous_format)
    flat = changed.view(-1)
    for places, factor in parts:
        index = torch.from_numpy(places).to(changed.device)
        flat[index] = factor * flat[index] if factor else 0.0
    return changed


def _by_row(parts: list[tuple[Tensor, Tensor]], count: int) -> Any:
    def compute(layer: nn.Linear, args: tuple, output: Tensor) -> Tensor:
        x = args[0]
        if len(x) % count:
            raise InputError(f"A batch of {len(x)} rows does not fit {count} sets of weights: its rows must be a multiple of them.")
        repeats = torch.arange(len(x) // count)[:, None] * count
        for weight, rows in parts:
            places = (repeats + rows).flatten().to(x.device)
            output = output.index_copy(0, places, nn.functional.linear(x[places], weight, layer.bias))
        return output

    return compute
