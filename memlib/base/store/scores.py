"""Scores: numbers, texts and arrays as JSON, each with its key, a checksum and what it was made of."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memlib.base.hashing import canonical, digest
from memlib.base.store.files import Files


class Scores(Files):
    """The scores of a store."""

    def score(self, key: Mapping[str, Any], compute: Callable[[], Any], shape: Sequence[int] | None = None, evaluations: float = 0) -> Any:
        """Return what `compute` gives for `key`, computing it only if the store does not hold it.

        A score is a number, text, list, NumPy array, or a dictionary of these. `key` must name everything that
        the score depends on: metric, its weights, the pictures' keys. For plans (`memlib.companion.plan`) alone: the `shape` of an array that
        `compute` returns, and the U-Net `evaluations` that it spends.
        """
        return self.scores([key], lambda absent: [(0, compute())])[0]

    def scores(self, keys: Sequence[Mapping[str, Any]], compute: Callable[[list[int]], Iterable[tuple[int, Any]]]) -> list[Any]:
        """Return the scores of `keys` in their order, computing together those that the store does not hold.

        `compute` is given the positions of the absent ones (the first of equal keys only) and yields (position, score) for each;
        every score is saved as it comes, so that a run that is stopped keeps what it made. For keys see `score`.
        """
        names = [digest(key) for key in keys]
        places = {name: position for position, name in reversed(list(enumerate(names)))}
        values: dict[str, Any] = {}
        absent = self._absent_scores(dict.fromkeys(names), values)
        with self._claimed(names if absent else ()) as waited:
            if waited:
                absent = self._absent_scores(absent, values)
            for position, value in compute([places[name] for name in absent]) if absent else ():
                name, packed = names[position], _pack(value)
                entry = {"key": name, "check": digest(json.dumps(packed)), "value": packed, "recipe": canonical(keys[position])}
                self.write(self.path("scores", name), json.dumps(entry).encode())
                values[name] = packed
                self.made += 1
        self.found += len(names) - len(absent)
        return [_unpack(values[name]) for name in names]

    def peek(self, key: Mapping[str, Any]) -> Any | None:
        """Return the score stored under `key`, or None if there is none (or a broken one); nothing is computed."""
        name = digest(key)
        stored = read_entry(self.path("scores", name), name)
        if stored is None:
            return None
        self.found += 1
        return _unpack(stored["value"])

    def _absent_scores(self, names: Iterable[str], values: dict[str, Any]) -> list[str]:
        """Put what the store holds of `names` into `values` and return the others."""
        absent = []
        for name in names:
            path = self.path("scores", name)
            if (stored := read_entry(path, name)) is None:
                self.repaired += path.exists()
                absent.append(name)
            else:
                values[name] = stored["value"]
        return absent


def read_entry(path: Path, name: str) -> dict[str, Any] | None:
    """Return the score's file as a dictionary (key, check, value, recipe), or None if it is absent or fails its check."""
    try:
        entry = json.loads(path.read_bytes())
        sound = entry["key"] == name and entry["check"] == digest(json.dumps(entry["value"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if sound else None


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        raw = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"__array__": [value.dtype.str, list(value.shape), raw]}
    if isinstance(value, Mapping):
        return {name: _pack(item) for name, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _unpack(packed: Any) -> Any:
    if isinstance(packed, dict) and "__array__" in packed:
        dtype, shape, raw = packed["__array__"]
        return np.frombuffer(base64.b64decode(raw), dtype=dtype).reshape(shape).copy()
    if isinstance(packed, dict):
        return {name: _unpack(item) for name, item in packed.items()}
    return packed
