"""Where MiniSD's files are: committed ones under data/minisd, training runs in a cache outside the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from memlib.base.errors import InputError
from memlib.base.paths import cache_folder, data_folder


def minisd_folder() -> Path:
    return data_folder() / "minisd"


def runs_folder() -> Path:
    """Checkpoints and caches of training: MEMLIB_RUNS, or ~/.cache/memlib/runs."""
    return cache_folder("MEMLIB_RUNS", "runs")


def settings() -> dict:
    """data/minisd/training.yml."""
    return yaml.safe_load((minisd_folder() / "training.yml").read_text(encoding="utf-8"))


def training_record(part: str) -> dict[str, Any]:
    """The log kept beside the weights: steps, minutes, hardware, loss curve."""
    path = minisd_folder() / "logs" / f"{part}.json"
    if not path.exists():
        raise InputError(f"There is no training log {path}; train the part with `memlib minisd train {part}`.")
    return json.loads(path.read_text())
