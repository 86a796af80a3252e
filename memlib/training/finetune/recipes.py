"""Settings of a fine-tuning, and the published ones by name (``data/finetune.yml``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import yaml

from memlib.base.declared import Count, NotNegative, Positive, Share, Whole, check, kinds
from memlib.base.errors import InputError
from memlib.base.paths import data_folder

# What recipes against memorization have beside (`memlib.training.finetune.against`).
AGAINST = ("rounds", "surrogates", "search")


@dataclass(frozen=True)
class Recipe:
    """AdamW at a constant rate `lr` after `warmup` linear steps; `steps` batches of `batch` pictures.

    `caption_dropout` is the share of captions replaced by the empty one, `flip` mirrors half of the pictures drawn, `crop` is
    "centre" or "random". `posterior` draws latents from the autoencoder's distribution in place of its mean. `weight_limit` weights an
    example's loss by 1/SNR, kept between 1 and this (noise-predicting models only; None: plain mean square). `ema` is the decay of the
    moving average of the weights that is exported, if any. `template` and `classes` make captions from the names of folders.
    Raises InputError for values that cannot be used.
    """

    name: str
    base: str
    steps: Count
    batch: Count
    lr: Positive
    warmup: Whole = 0
    resolution: Count | None = None
    caption_dropout: Share = 0.0
    flip: bool = False
    crop: Literal["centre", "random"] = "centre"
    posterior: bool = True
    weight_limit: Positive | None = None
    ema: Share | None = None
    weight_decay: NotNegative = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    seed: int = 0
    template: str | None = None
    classes: Mapping[str, str] = field(default_factory=dict)
    scenario: str = ""
    pictures: str = ""
    exposures: float | None = None
    source: str = ""
    unstated: str = ""

    def __post_init__(self) -> None:
        for name, kind in kinds(Recipe).items():
            check(getattr(self, name), kind, f"{name} of the recipe {self.name}")
        if self.template is not None and "{name}" not in self.template:
            raise InputError(f"The caption template {self.template!r} of {self.name} has no place for the class: write {{name}} where it stands.")

    @property
    def settings(self) -> dict[str, Any]:
        """What changes the weights, as plain values: a run goes on only under the same."""
        notes = ("pictures", "exposures", "source", "unstated", "scenario")
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items() if name not in notes}


def read_recipe(name: str, block: Mapping[str, Any]) -> Recipe:
    """Return the recipe written as `block`; raises InputError for an unknown or a missing setting."""
    known = {f.name for f in fields(Recipe)} - {"name"}
    if unknown := sorted(set(block) - known):
        raise InputError(f"The recipe {name} has an unknown setting {unknown[0]!r}: known are {', '.join(sorted(known))}.")
    given: dict[str, Any] = {k: tuple(v) if k == "betas" else v for k, v in block.items()}
    try:
        return Recipe(name, **given)
    except TypeError as error:
        raise InputError(f"The recipe {name} lacks a setting ({error}): it needs base, steps, batch and lr.") from error


def _blocks() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((data_folder() / "finetune.yml").read_text(encoding="utf-8"))


def load_recipes() -> dict[str, Recipe]:
    """Return the fine-tunings of Stable Diffusion in ``data/finetune.yml`` by name."""
    return {name: read_recipe(name, {k: v for k, v in block.items() if k not in AGAINST}) for name, block in _blocks().items()}


def against_blocks() -> dict[str, dict[str, Any]]:
    """Return, for the recipes against memorization alone, what they have beside a `Recipe`, by name."""
    return {name: {k: block[k] for k in AGAINST} for name, block in _blocks().items() if "rounds" in block}


def recipe(name: str) -> Recipe:
    """Return the recipe `name`; raises InputError with the known names otherwise."""
    recipes = load_recipes()
    if name not in recipes:
        raise InputError(f"Unknown recipe {name!r}: use one of {', '.join(recipes)}.")
    return recipes[name]
