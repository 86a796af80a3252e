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
from threading import RLock, get_ident
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


@dataclass(eq=False)
class _Part:
    """What one context takes out of one layer: `places` for each of its sets, and which of them each row of a batch has (again and again)."""

    places: list[np.ndarray | None]
    rows: list[int]
    factor: float


class _Open:
    """The parts that one thread's open contexts take out of one layer, and the weights without them, made when they are needed."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self._made: dict[Any, Tensor] = {}

    def change(self, parts: list[_Part]) -> None:
        self.parts, self._made = parts, {}

    def weight(self, layer: nn.Linear, sets: Sequence[int]) -> Tensor | None:
        """The layer's weight without the set of each part, or None where none of them names it."""
        own = layer.weight
        taken = [(part.places[one], part.factor) for part, one in zip(self.parts, sets, strict=True)]
        named = [(places, factor) for places, factor in taken if places is not None]
        if not named:
            return None
        name = (*sets, own.data_ptr(), own.device, None if own.is_inference() else own._version)
        if name not in self._made:
            self._made[name] = _scaled(own, named)
        return self._made[name]

    def __call__(self, layer: nn.Linear, args: tuple, output: Tensor) -> Tensor:
        x = args[0]
        for part in self.parts:
            if len(x) % len(part.rows):
                raise InputError(f"A batch of {len(x)} rows does not fit {len(part.rows)} sets of weights: its rows must be a multiple of them.")
        groups: dict[tuple[int, ...], list[int]] = {}
        for row in range(len(x)):
            groups.setdefault(tuple(part.rows[row % len(part.rows)] for part in self.parts), []).append(row)
        for sets, rows in groups.items():
            weight = self.weight(layer, sets)
            if weight is not None and len(rows) == len(x):
                return nn.functional.linear(x, weight, layer.bias)
            if weight is not None:
                places = torch.tensor(rows, device=x.device)
                output = output.index_copy(0, places, nn.functional.linear(x[places], weight, layer.bias))
        return output


_OPEN: WeakKeyDictionary[nn.Linear, dict[int, _Open]] = WeakKeyDictionary()
_CHANGING = RLock()


@contextmanager
def _taken(layer: nn.Linear, part: _Part) -> Iterator[None]:
    with _CHANGING:
        opened = _OPEN.setdefault(layer, {}).setdefault(get_ident(), _Open())
        opened.change([*opened.parts, part])

    def hook(module: nn.Linear, args: tuple, output: Tensor) -> Tensor | None:
        return opened(module, args, output) if opened.parts and opened.parts[0] is part else None  # one of a layer's hooks does the work of all

    try:
        with hooked(layer.register_forward_hook, hook):
            yield
    finally:
        with _CHANGING:
            opened.change([one for one in opened.parts if one is not part])


def acting_weight(layer: nn.Linear) -> Tensor:
    """The weight [out, in] that calls of a layer by this thread use now, under the sets taken out of it for all rows."""
    opened = _OPEN.get(layer, {}).get(get_ident())
    found = opened.weight(layer, [part.rows[0] for part in opened.parts]) if opened is not None else None
    return layer.weight if found is None else found


@contextmanager
def pruned(model: Any, weights: WeightSet, factor: float = 0.0) -> Iterator[None]:
    """Make these weights of a substrate, pipeline or U-Net `factor` times what they are inside, for what this thread computes.

    Other threads that use the model meanwhile see nothing of it. Contexts may be nested and left in any order: as long as one is open, what it
    names is out. The layers' own weights are never touched; what they give is computed anew with others (`acting_weight`), so that gradients by
    anything but the weights can be taken inside, and followed back outside. Raises InputError for a set of another model.
    """
    with pruned_rows(model, [weights], factor):
        yield


@contextmanager
def pruned_rows(model: Any, sets: Sequence[WeightSet], factor: float = 0.0) -> Iterator[None]:
    """As `pruned`, with other weights for each row of the U-Net's batch: row i has ``sets[i % len(sets)]``.

    So B sets serve B conditional rows as well as B unconditional and then B conditional ones. Raises InputError for sets of another model,
    and inside for a batch that is no multiple of the sets.
    """
    if not sets:
        raise InputError("There are no sets of weights for the rows of a batch: give one for each row.")
    different = {one.fingerprint: one for one in sets}
    rows = [list(different).index(one.fingerprint) for one in sets] if len(different) > 1 else [0]
    layers = {name: layer for one in different.values() for name, layer in _checked(model, one).items()}
    with ExitStack() as parts:
        for name, layer in layers.items():
            parts.enter_context(_taken(layer, _Part([one.chosen.get(name) for one in different.values()], rows, factor)))
        yield


def _scaled(weight: Tensor, parts: Sequence[tuple[np.ndarray, float]]) -> Tensor:
    changed = weight.detach().clone(memory_format=torch.contiguous_format)
    flat = changed.view(-1)
    for places, factor in parts:
        index = torch.from_numpy(places).to(changed.device)
        flat[index] = factor * flat[index] if factor else 0.0
    return changed
