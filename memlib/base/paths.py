"""Where the project's files are: its root, its data, and what it makes."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def data_folder() -> Path:
    """Return the project's data folder: `MEMLIB_DATA`, or `data` beside the package."""
    return Path(os.environ.get("MEMLIB_DATA") or ROOT / "data").expanduser()


def store_folder() -> Path:
    """Return the folder of kept pictures and scores: `MEMLIB_STORE`, or `_build/store` beside the package."""
    return Path(os.environ.get("MEMLIB_STORE") or ROOT / "_build" / "store").expanduser()
