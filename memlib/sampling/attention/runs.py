"""Attention of an experiment's prompts, sampled without decoding pictures and kept in the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.prompts.embedding import Embedding
from memlib.sampling.attention.record import record
from memlib.sampling.attention.taps import cross_attention_layers

VERSION = 1  # Part of the store's keys: raise it when the same recipe gives other attention.


def attention_of(experiment: Any, embedding: Embedding, steps: str = "all") -> np.ndarray:
    """Return conditional attention [T, L, N, S, 77] of N prompts under the experiment's S seeds, through its store.

    T is the number of steps (U-Net calls), or 1 with ``steps="last"``; L counts the layers of `cross_attention_layers` in their
    order. Values are means over heads and pixels, kept in half precision (3 digits) and returned as float32.
    """
    if steps not in ("all", "last"):
        raise InputError(f"Unknown choice of steps {steps!r}: use all or last.")
    x, calls = experiment, experiment.calls
    shape = (-1, len(cross_attention_layers(x.substrate)), len(embedding), len(x.seeds), embedding.states.shape[1])

    def compute() -> np.ndarray:
        with record(x.substrate, steps=calls) as recording:
            _sample(x, embedding, x.seeds)
        kept = recording.attention.cond
        return (kept if steps == "all" else kept[-1:]).astype(np.float16)

    key = _key(x, embedding, x.seeds, f"attention, {steps} steps")
    return x.store.score(key, compute).astype(np.float32).reshape(shape)


def last_maps(experiment: Any, embedding: Embedding, layers: Sequence[str]) -> np.ndarray:
    """Return attention maps [N, h, w, 77] at the last step under the first seed, averaged over heads and `layers`.

    The layers must have one resolution. Through the store, in half precision; float32 when returned. Source: `clip`
    Section 3.2 and Appendix D (Figures 5, 15 and 16).
    """
    x, seeds = experiment, experiment.seeds[:1]

    def compute() -> np.ndarray:
        with record(x.substrate, layers=layers, maps=layers, steps=x.calls) as recording:
            _sample(x, embedding, seeds)
        return np.mean(list(recording.attention.maps.values()), axis=0).astype(np.float16)

    return x.store.score(_key(x, embedding, seeds, f"last maps of {', '.join(layers)}"), compute).astype(np.float32)


def _key(x: Any, embedding: Embedding, seeds: Sequence[int], measure: str) -> dict[str, Any]:
    return {"measure": measure, "version": VERSION, "cond": digest(embedding.states.float()), "seeds": list(seeds), **x.keyed()}


def _sample(x: Any, embedding: Embedding, seeds: Sequence[int]) -> None:
    """Run the trajectories of prompts x seeds, prompt by prompt; a recording around it sees them in that order."""
    with tqdm(total=len(embedding) * len(seeds), unit="trajectory", disable=not x.progress) as bar:
        for rows, _, _ in x.batches(embedding, seeds=seeds, latents_only=True):
            bar.update(len(rows))
