"""A store in planning mode: it answers with placeholders and notes what a real run would make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from memlib.base.hashing import digest
from memlib.base.store.entries import read
from memlib.companion.plan.counting import Counter
from memlib.companion.plan.demand import Demand
from memlib.sampling.recipe import USUAL, Recipe
from memlib.sampling.stored import Asked, PictureStore

SIDE = 64  # Pixels of a placeholder picture.
# Parts of a key that differ from sample to sample, and not from one kind of value to another.
EACH = ("cond", "seed", "uncond", "pictures", "with", "ids", "picture", "prompt", "restart", "start")


class PlanningStore(PictureStore):
    """Reads the store in `root` and writes nothing into it; `demand` is the notebook's that is being carried out.

    What one more picture or value costs is found by asking for a single one while `counter` counts U-Net rows.
    """

    def __init__(self, root: str | Path | None, counter: Counter):
        super().__init__(root)
        self.counter, self.demand = counter, Demand("")
        self._seen: set[str] = set()
        self._rows: dict[str, float] = {}
        self._values: dict[str, Any] = {}
        self._single: dict[str, Any] = {}

    def asked(self, substrate: Any, embedding: Any, seeds: Sequence[int], recipe: Recipe = USUAL, *,
              uncond: Any = None, mitigation: Any = None) -> Asked:  # fmt: skip
        """The keys, as ever; what is new of them is noted."""
        asked = super().asked(substrate, embedding, seeds, recipe, uncond=uncond, mitigation=mitigation)
        new = [key for key in asked.places if key not in self._seen]
        absent = [key for key in new if not self.path("pictures", key).is_file()]
        self._seen.update(new)
        demand = self.demand
        demand.pictures, demand.shared = demand.pictures + len(new), demand.shared + len(asked.places) - len(new)
        demand.stored += len(new) - len(absent)
        demand.to_make += absent
        if absent:
            kind = digest(asked.shared)
            if kind not in self._rows:
                # Searches count with their whole budget: when they end early depends on what the network says.
                options = {} if mitigation is None else {"around": mitigation.full_run().around}
                draw = partial(self.sampler, substrate, embedding, list(map(int, seeds)), recipe,
                               batch_size=1, uncond=uncond, pairs=[asked.places[absent[0]]], **options)  # fmt: skip
                with self._not_counted() as spent:
                    self._first(lambda: list(draw()))
                self._rows[kind] = spent()
            demand.evaluations += len(absent) * self._rows[kind]
        return asked

    def ensure(self, substrate: Any, embedding: Any, seeds: Sequence[int], recipe: Recipe = USUAL, *,
               uncond: Any = None, into: dict[str, np.ndarray] | None = None, mitigation: Any = None, **_: Any) -> list[list[str]]:  # fmt: skip
        asked = self.asked(substrate, embedding, seeds, recipe, uncond=uncond, mitigation=mitigation)
        if into is not None:
            into.update(dict.fromkeys(asked.places, np.full((SIDE, SIDE, 3), 128, np.uint8)))
        return asked.keys

    def read_picture(self, key: str) -> np.ndarray | None:
        """A placeholder for a picture that is stored or was asked for, None for another."""
        there = key in self._seen or self.path("pictures", key).is_file()
        return np.full((SIDE, SIDE, 3), 128, np.uint8) if there else None

    def write_picture(self, key: str, picture: np.ndarray, recipe: Mapping[str, Any] | None = None) -> Path:
        """Note that this picture would be made."""
        if key not in self._seen:
            self._seen.add(key)
            self.demand.pictures += 1
            self.demand.to_make.append(key)
        return self.path("pictures", key)

    def score(self, key: Mapping[str, Any], compute: Callable[[], Any], shape: Sequence[int] | None = None, evaluations: float = 0) -> Any:
        """The stored score, or random values of `shape`, or where that is not said what `compute` gives."""
        name = digest(key)
        if read("scores", self.path("scores", name)) is not None:
            return super().score(key, compute)
        if name not in self._single:
            # A real run computes it once, and so it counts once.
            self.demand.evaluations += evaluations
            self._single[name] = self._first(compute) if shape is None else None
        if shape is None:
            return self._single[name]
        return np.random.default_rng(int(name[:8], 16)).random(tuple(shape), dtype=np.float32)

    def scores(self, keys: Sequence[Mapping[str, Any]], compute: Callable[[list[int]], Iterable[tuple[int, Any]]]) -> list[Any]:
        """Stored scores, and in the place of the others the first of them, computed once for all of one kind."""
        names = [digest(key) for key in keys]
        places = {name: position for position, name in reversed(list(enumerate(names)))}
        stored = {name: entry for name in places if (entry := read("scores", self.path("scores", name))) is not None}
        absent = [name for name in places if name not in stored]
        known = iter(super().scores([keys[places[name]] for name in stored], lambda _: ()) if stored else ())
        values = {name: next(known) for name in stored}
        if absent:
            first = places[absent[0]]
            kind = digest({name: part for name, part in keys[first].items() if name not in EACH})
            if kind not in self._values:
                with self._not_counted() as spent:
                    self._values[kind] = self._first(lambda: next(islice(compute([first]), 1))[1])
                self._rows[kind] = spent()
            # What needs U-Net evaluations counts as a value; judging pictures does not.
            if self._rows[kind]:
                fresh = [name for name in absent if name not in self._seen]
                self.demand.values, self.demand.values_stored = self.demand.values + len(fresh) + len(stored), self.demand.values_stored + len(stored)
                self.demand.evaluations += len(fresh) * self._rows[kind]
            self._seen.update(absent)
            values |= dict.fromkeys(absent, self._values[kind])
        return [values[name] for name in names]

    @contextmanager
    def _not_counted(self) -> Iterator[Callable[[], float]]:
        """Take the U-Net rows spent within out of the notebook's own, and tell how many they were."""
        before, pictures = self.counter.rows, (self.demand.pictures, len(self.demand.to_make))
        spent: list[float] = []
        try:
            yield lambda: spent[0]
        finally:
            spent.append(self.counter.rows - before)
            self.counter.rows = before
            self.demand.pictures, kept = pictures
            del self.demand.to_make[kept:]

    def _first(self, call: Callable[[], Any]) -> Any:
        """What `call` gives without the networks, or with them where it does not work without."""
        rows = self.counter.rows
        try:
            return call()
        except Exception:
            self.counter.rows, self.counter.real = rows, True
            try:
                return call()
            finally:
                self.counter.real = False
