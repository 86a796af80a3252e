"""Where MiniSD's files are: committed ones under data/minisd, training runs in a cache outside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from memlib.base.paths import data_folder


def minisd_folder() -> Path:
    return data_folder() / "minisd"


def runs_folder() -> Path:
    """Checkpoints and caches of training: MEMLIB_RUNS, or ~/.cache/memlib/runs."""
    return Path(os.environ.get("MEMLIB_RUNS") or Path.home() / ".cache" / "memlib" / "runs")


def settings() -> dict:
    """data/minisd/training.yml."""
    return yaml.safe_load((minisd_folder() / "training.yml").read_text(encoding="utf-8"))
