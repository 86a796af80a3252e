"""Keys of stored pictures and scores: one hash over everything that made them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from memlib.base.errors import InputError


def digest(key: Any) -> str:
    """Return the SHA-256 (64 hex digits) of `key`, independent of the order of dictionary entries.

    `key` is made of dictionaries with text keys, lists, texts, finite numbers, booleans, None, NumPy
    arrays and torch tensors; arrays count by dtype, shape and bytes. Raises InputError for anything else.
    """
    return digest_of_json(canonical(key))


def digest_of_json(values: Any) -> str:
    """Return what `digest` gives, for plain JSON values alone, as they come out of a file: there is nothing to be replaced in them."""
    try:
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise InputError("A store key holds NaN or infinity: replace it by a text or None.") from error
    return hashlib.sha256(text.encode()).hexdigest()


def canonical(item: Any) -> Any:
    """Return `item` as plain JSON values, with arrays and tensors replaced by their hashes."""
    if item is None or isinstance(item, (bool, int, float, str)):
        return item
    if isinstance(item, np.generic):
        return item.item()
    if isinstance(item, Mapping) and all(isinstance(name, str) for name in item):
        return {name: canonical(value) for name, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [canonical(value) for value in item]
    if isinstance(item, np.ndarray) and item.dtype != object:
        raw = np.ascontiguousarray(item).tobytes()
        return {"array": [item.dtype.str, list(item.shape), hashlib.sha256(raw).hexdigest()]}
    if hasattr(item, "detach"):
        # A tensor exists, so torch is loaded; the store itself starts without it.
        flat = item.detach().cpu().contiguous().reshape(-1).view(sys.modules["torch"].uint8)
        raw = flat.numpy().tobytes()
        return {"array": [str(item.dtype), list(item.shape), hashlib.sha256(raw).hexdigest()]}
    raise InputError(f"A store key cannot hold {type(item).__name__}: use texts, numbers, lists, dictionaries with text keys, arrays or tensors.")
