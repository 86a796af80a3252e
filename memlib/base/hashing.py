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
    try:
        text = json.dumps(canonical(key), sort_keys=True, separators=(",", ":"), allow_nan=False)
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


def picture_recipe(substrate: Any, uncond: Any, steps: int, guidance: Any, scheduler: str, sampler_version: int) -> dict[str, Any]:
    """Return all that pictures of one run share: weights, sampler settings, unconditional embedding.

    `uncond` is a tensor [1, 77, d]; `guidance` a number or a rule of `memlib.sampling.guidance`. Raises InputError
    for a rule without a name and parameters.
    """
    schedule = substrate.scheduler(scheduler, steps)
    config = {name: value for name, value in dict(schedule.config).items() if not name.startswith("_")}
    return {
        "sampler": sampler_version,
        "weights": substrate.weights_hash,
        "dtype": str(substrate.dtype),
        "uncond": digest(uncond.float()),
        "steps": int(steps),
        "guidance": described_guidance(guidance),
        # Infinity stands in DPM-Solver's configuration (lambda_min_clipped); a key takes it as a text.
        "scheduler": {"class": type(schedule).__name__, **json.loads(json.dumps(config, default=repr), parse_constant=str)},
    }


def described_guidance(guidance: Any) -> dict[str, Any]:
    """Return a number or a rule of `memlib.sampling.guidance` as a key names it; raises InputError for a rule without a name and parameters."""
    if isinstance(guidance, (int, float)):
        return {"rule": "constant", "scale": float(guidance)}
    try:
        return {"rule": guidance.name, **guidance.params}
    except AttributeError as error:
        raise InputError(
            f"The guidance rule {guidance!r} cannot be told apart from others in the store: pass a number or a rule with a name and params."
        ) from error
