"""Weights of published metrics: fetched on demand, checked against their hash, never unpickled blindly.

``memlib weights`` lists the files and says which are at hand; with names (or ``all``)
it fetches them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from pooch import file_hash
from safetensors.torch import load_file

from memlib.base import paths
from memlib.base.download import DownloadError, WrongFile, offline, published_file
from memlib.base.errors import InputError, NotMeasured
from memlib.base.paths import data_folder

SECONDS, MAX_BYTES = 3_600, 4 * 2**30


@dataclass(frozen=True)
class WeightFile:
    """One row of ``data/metrics.yml``: where a file comes from, how it is recognised, its licence."""

    name: str
    file: str
    url: str
    sha256: str
    sha256_from: str
    licence: str
    source: str
    what: str
    bytes: int | None = None


@cache
def table() -> dict[str, WeightFile]:
    """Return the known weight files by name."""
    return {name: WeightFile(name=name, **row) for name, row in _read_table()["weights"].items()}


@cache
def thresholds(name: str) -> dict[str, float]:
    """Return the copy thresholds recorded for descriptor `name`: ``copy`` and ``strict``."""
    return _read_table()["thresholds"][name]


def _read_table() -> dict[str, Any]:
    return yaml.safe_load((data_folder() / "metrics.yml").read_text(encoding="utf-8"))


def cache_folder() -> Path:
    """Return the folder that ``MEMLIB_METRICS`` names, or ``~/.cache/memlib``."""
    return paths.cache_folder("MEMLIB_METRICS")


def weight_file(name: str, download: bool = True) -> Path:
    """Return the path of the checked weight file `name`, fetching it if it is absent or another file.

    Set ``MEMLIB_OFFLINE=1`` to forbid fetching. Raises InputError for an unknown name and NotMeasured,
    saying what to do, if the file can neither be found nor fetched or is not the one expected.
    """
    if name not in table():
        raise InputError(f"Unknown weights {name!r}: choose one of {', '.join(table())}.")
    entry = table()[name]
    path = cache_folder() / entry.file
    there = f"in {_shown()} are not the published file" if path.is_file() else f"are not in {_shown()}"
    if offline() or not download:
        if path.is_file() and file_hash(path) == entry.sha256:
            return path
        raise NotMeasured(f"The weights {entry.file} {there}: put the file from {entry.url} there, or allow the download.")
    try:
        return published_file(entry.url, path, entry.sha256, max_bytes=MAX_BYTES, seconds=SECONDS)
    except WrongFile as error:
        raise NotMeasured(
            f"What {entry.url} gives is not the published file of the weights {entry.file} ({error}): put that file into {_shown()} by hand."
        ) from error
    except DownloadError as error:
        raise NotMeasured(
            f"The weights {entry.file} {there} and could not be fetched from {entry.url} ({error}): put the file into {_shown()} by hand."
        ) from error
    except OSError as error:
        raise NotMeasured(f"The folder of weights {_shown()} cannot be written ({error.strerror or error}): set MEMLIB_METRICS to another one.") from error


def read_state(path: Path) -> dict[str, Any]:
    """Return a checkpoint's tensors without running any code from it (safetensors or plain tensors only)."""
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)


def _shown() -> str:
    """Return the cache folder for messages, without the user's name where it lies in the home folder."""
    folder = cache_folder()
    return f"~/{folder.relative_to(Path.home())}" if folder.is_relative_to(Path.home()) else str(folder)
