"""Where the second miniature's files are."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import yaml

from memlib.base.paths import data_folder


def minisd2_folder() -> Path:
    return data_folder() / "minisd2"


@lru_cache
def read_yaml(name: str) -> dict:
    """data/minisd2/`name`.yml, read once."""
    return yaml.safe_load((minisd2_folder() / f"{name}.yml").read_text(encoding="utf-8"))
