"""How pictures are sampled, and how the store's keys name it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.models.protocol import Substrate
from memlib.prompts.embedding import Embedding
from memlib.sampling.guidance import Rule

SAMPLER_VERSION = 1  # Part of the store's keys: raise it when the same recipe gives other pictures.


@dataclass(frozen=True)
class Recipe:
    """Steps, guidance (a number or a rule of `memlib.sampling.guidance`) and kind of scheduler (`clip` Section 3: 50 steps, guidance 7.5)."""

    steps: int = 50
    guidance: float | Rule = 7.5
    scheduler: str = "ddim"


USUAL = Recipe()


@dataclass(frozen=True)
class Batch:
    """B samples about to be denoised: prompt `rows` and `seeds`, and the tensors of each.

    `embedding` holds the B conditional embeddings with their tokens, `uncond` [1 or B, 77, d] the unconditional states and
    `latents` [B, C, h, w] the initial noise; `steps`, `rule` and `scheduler` are those of the run.
    """

    rows: list[int]
    seeds: list[int]
    embedding: Embedding
    uncond: Tensor
    latents: Tensor
    steps: int
    rule: Rule
    scheduler: str


def picture_recipe(substrate: Substrate, uncond: Tensor, recipe: Recipe, version: int = SAMPLER_VERSION) -> dict[str, Any]:
    """Return all that pictures of one run share: weights, sampler settings, unconditional embedding.

    `uncond` is a tensor [1, 77, d]; `version` is the sampler's. Raises InputError for a rule without a name and parameters.
    """
    schedule = substrate.scheduler(recipe.scheduler, recipe.steps)
    config = {name: value for name, value in dict(schedule.config).items() if not name.startswith("_")}
    return {
        "sampler": version,
        "weights": substrate.weights_hash,
        "dtype": str(substrate.dtype),
        "uncond": digest(uncond.float()),
        "steps": int(recipe.steps),
        "guidance": described_guidance(recipe.guidance),
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
