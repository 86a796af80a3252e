"""Where the second miniature's files are."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from memlib.base.errors import InputError
from memlib.base.paths import data_folder


def minisd2_folder() -> Path:
    return data_folder() / "minisd2"


def training_settings(recipe: str | None = None) -> dict[str, Any]:
    """The blocks of data/minisd2/training.yml, with those changes that its recipe of this name makes. Raises InputError for an unknown name."""
    given = read_yaml("training")
    recipes = given["recipes"]
    if recipe is not None and recipe not in recipes:
        raise InputError(f"There is no recipe {recipe!r}: choose among {', '.join(recipes)}, or none.")
    changes = {} if recipe is None else recipes[recipe]
    return {block: values | changes.get(block, {}) for block, values in given.items() if block != "recipes"}


@lru_cache
def read_yaml(name: str) -> dict:
    """data/minisd2/`name`.yml, read once."""
    return yaml.safe_load((minisd2_folder() / f"{name}.yml").read_text(encoding="utf-8"))
