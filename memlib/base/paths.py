"""Where the project's files are: its root, its data, what it makes, and what it keeps between runs."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def as_folder(path: str | Path) -> Path:
    """Return a folder that somebody named, with ``~`` as the home folder."""
    return Path(path).expanduser()


def folder_from(variable: str, otherwise: str | Path | None = None) -> Path | None:
    """Return the folder that an environment variable names, or `otherwise`; of either, ``~`` is the home folder.

    A relative one is looked for from the project's root, so that it means the same in notebooks, which run in a folder of their own, and
    in commands.
    """
    named = os.environ.get(variable) or otherwise
    return None if named is None else ROOT / as_folder(named)


def cache_folder(variable: str, *parts: str) -> Path:
    """Return the folder that an environment variable names, or that of these names under ``~/.cache/memlib``."""
    return folder_from(variable) or Path.home().joinpath(".cache", "memlib", *parts)


def data_folder() -> Path:
    """Return the project's data folder: `MEMLIB_DATA`, or `data` beside the package."""
    return folder_from("MEMLIB_DATA") or ROOT / "data"


def store_folder() -> Path:
    """Return the folder of kept pictures and scores: `MEMLIB_STORE`, or `_build/store` beside the package."""
    return folder_from("MEMLIB_STORE") or ROOT / "_build" / "store"
