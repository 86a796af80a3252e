"""Thresholds in the units of the model at hand: quantiles of a quantity over prompts that are not memorized.

Published thresholds of magnitudes belong to the latents of Stable Diffusion 1, 4 x 64 x 64. On another model they are replaced by
quantiles of the same quantity over prompts that this model has not memorized. The quantity is measured once for a
model, scheduler and number of steps, and kept in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.base.numbers import is_number
from memlib.base.store import Store
from memlib.models.protocol import Substrate
from memlib.prompts.embedding import encode_prompts
from memlib.prompts.sets import choose_prompts, rows_of
from memlib.sampling.batches import SAMPLER_VERSION, Batch, Cost, initial_latents, uncond_states
from memlib.sampling.first_step import first_magnitudes
from memlib.sampling.guidance import as_rule

PROMPTS, SEEDS = 64, (0, 1, 2, 3)
GUIDANCE = 7.5  # Of quantities that need a whole run.
SD1_LATENTS = (4, 64, 64)

# From a substrate and B samples to one number per sample [B]; U-Net rows spent are added to the cost.
Measure = Callable[[Substrate, Batch, Cost], Tensor]


def has_sd1_latents(substrate: Substrate) -> bool:
    """Say whether published thresholds apply as they are: 4 x 64 x 64 latents of a model that predicts noise."""
    return tuple(substrate.latent_shape) == SD1_LATENTS and substrate.prediction_type == "epsilon"


def is_default(method: Any, parameter: str) -> bool:
    """Say whether a parameter of a frozen dataclass has its default."""
    return getattr(method, parameter) == getattr(type(method), parameter)


def published_applies(substrate: Substrate, method: Any) -> bool:
    """Say whether a method takes its published threshold: on the latents that it belongs to, unless another `quantile` is asked for."""
    return has_sd1_latents(substrate) and is_default(method, "quantile")


def reference_prompts(substrate: Substrate) -> tuple[str, ...]:
    """At most 64 prompts that the substrate has not memorized, of the kind of those that it has.

    Magnitudes depend on how much a prompt says. MiniSD's memorized prompts are titles and its held-out ones descriptions, whose
    magnitude at the first step is larger than that of memorized titles; so what was seen once is taken where the substrate's data knows it.
    Captions of both sorts are alike for Stable Diffusion. Raises InputError where the list is not at hand.
    """
    if substrate.data.seen_once is not None:
        return rows_of(substrate.data.seen_once).first(PROMPTS).prompts
    return choose_prompts("not memorized", substrate.data, PROMPTS).prompts


def reference_values(
    substrate: Substrate,
    name: str,
    measure: Measure,
    scheduler: str = "ddim",
    steps: int = 50,
    seeds: Sequence[int] = SEEDS,
    version: int = 1,
    store: Store | None = None,
    count: int = PROMPTS,
) -> np.ndarray:
    """Return what `measure` gives for `count` prompts that are not memorized, float64 [N, S], from the store where it was made before.

    `name` and `version` stand for `measure` in the store's key; `store` is by default that of `memlib.base.store`. The U-Net rows spent
    belong to the model and not to a picture, and are not counted.
    """
    prompts = reference_prompts(substrate)[:count]
    key = {
        "reference": name, "version": version, "sampler": SAMPLER_VERSION, "weights": substrate.weights_hash,
        "dtype": str(substrate.dtype), "scheduler": scheduler, "steps": steps, "seeds": list(seeds), "prompts": digest(list(prompts)),
    }  # fmt: skip

    def compute() -> np.ndarray:
        embedding, uncond = encode_prompts(substrate, prompts), uncond_states(substrate)
        pairs = [(row, seed) for row in range(len(prompts)) for seed in seeds]
        size, values = substrate.batch_size(), []
        for start in range(0, len(pairs), size):
            rows, own = map(list, zip(*pairs[start : start + size], strict=True))
            latents = initial_latents(own, substrate.latent_shape)
            batch = Batch(rows, own, embedding.select(rows), uncond, latents, steps, as_rule(GUIDANCE), scheduler)
            values += measure(substrate, batch, Cost()).double().cpu().tolist()
        return np.array(values).reshape(len(prompts), len(seeds))

    return (Store() if store is None else store).score(key, compute)


def reference_quantile(substrate: Substrate, name: str, measure: Measure, quantile: float, scheduler: str = "ddim", steps: int = 50, **options: Any) -> float:
    """Return the `quantile` (0 to 1) of `reference_values` over all prompts and seeds; raises InputError outside 0 to 1."""
    return float(np.quantile(reference_values(substrate, name, measure, scheduler, steps, **options), checked_quantile(quantile)))


def target_of(
    method: Any, substrate: Substrate, batch: Batch, published: float, name: str = "first magnitude", measure: Measure = first_magnitudes, **options: Any,
) -> float:  # fmt: skip
    """Return a method's own `target`; the `published` one where that applies; else its `quantile` of `measure` (see `reference_values`)."""
    if method.target is not None:
        return method.target
    if published_applies(substrate, method):
        return published
    return reference_quantile(substrate, name, measure, method.quantile, batch.scheduler, batch.steps, **options)


def checked_quantile(quantile: float) -> float:
    """Return `quantile`, or raise InputError if it is not a number from 0 to 1."""
    if not is_number(quantile) or not 0 <= quantile <= 1:
        raise InputError(f"A quantile of {quantile!r} is not possible: use a number from 0 to 1.")
    return float(quantile)
