"""Weights of published metrics: fetched on demand, checked against their hash, never unpickled blindly.

``python -m memlib.metrics.weights`` lists the files and says which are at hand; with names (or ``all``)
it fetches them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from memlib.base.errors import InputError, NotMeasured
from memlib.base.writing import replacing

TABLE = Path(__file__).parents[2] / "data" / "metrics.yml"
TIMEOUT = 60
_checked: dict[tuple[str, int, int], str] = {}


@dataclass(frozen=True)
class WeightFile:
    """One row of ``data/metrics.yml``: where a file comes from, how it is recognised, its licence."""

    name: str
    file: str
    url: str
    licence: str
    source: str
    what: str
    sha256: str | None = None
    sha256_from: str = "publisher"
    sha256_prefix: str = ""
    bytes: int | None = None


@cache
def table() -> dict[str, WeightFile]:
    """Return the known weight files by name."""
    rows = yaml.safe_load(TABLE.read_text(encoding="utf-8"))["weights"]
    return {name: WeightFile(name=name, **row) for name, row in rows.items()}


@cache
def thresholds(name: str) -> dict[str, float]:
    """Return the copy thresholds recorded for descriptor `name`: ``copy`` and ``strict``."""
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))["thresholds"][name]


def cache_folder() -> Path:
    """Return the folder that ``MEMLIB_METRICS`` names, or ``~/.cache/memlib``."""
    return Path(os.environ.get("MEMLIB_METRICS") or Path.home() / ".cache" / "memlib")


def weight_file(name: str, download: bool = True) -> Path:
    """Return the path of the checked weight file `name`, fetching it if it is absent.

    Set ``MEMLIB_OFFLINE=1`` to forbid fetching. Raises InputError for an unknown name and NotMeasured,
    saying what to do, if the file can neither be found nor fetched or is not the one expected.
    """
    if name not in table():
        raise InputError(f"Unknown weights {name!r}: choose one of {', '.join(table())}.")
    entry = table()[name]
    path = cache_folder() / entry.file
    if not path.is_file():
        if not download or os.environ.get("MEMLIB_OFFLINE", "") not in ("", "0"):
            raise NotMeasured(f"The weights {entry.file} are not in {_shown()}: put the file from {entry.url} there, or allow the download.")
        _fetch(entry, path)
    _check(entry, path, _sha256(path))
    return path


def read_state(path: Path) -> dict[str, Any]:
    """Return a checkpoint's tensors without running any code from it (safetensors or plain tensors only)."""
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(str(path))
    return torch.load(path, map_location="cpu", weights_only=True)


def _fetch(entry: WeightFile, path: Path) -> None:
    try:
        with replacing(path) as temporary:
            with urllib.request.urlopen(entry.url, timeout=TIMEOUT) as answer, open(temporary, "wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
            # Looked at before it gets its name, so that a wrong file never lies in the cache.
            _check(entry, temporary, _sha256(temporary))
    except OSError as error:
        raise NotMeasured(f"The weights {entry.file} could not be fetched from {entry.url} ({error}): put the file into {_shown()} by hand.") from error


def _check(entry: WeightFile, path: Path, found: str) -> None:
    expected = entry.sha256 or _locked(entry, found)
    if found != expected or not found.startswith(entry.sha256_prefix):
        raise NotMeasured(
            f"The weights {entry.file} in {_shown()} are not the published file (SHA-256 {found[:12]}… "
            f"instead of {(entry.sha256_prefix or expected)[:12]}…): delete the file and fetch it again."
        )


def _locked(entry: WeightFile, found: str) -> str:
    """Return the hash recorded at the first download, recording `found` if there is none yet."""
    lock = cache_folder() / "lock.json"
    known = json.loads(lock.read_text()) if lock.is_file() else {}
    if entry.name not in known and found.startswith(entry.sha256_prefix):
        known[entry.name] = found
        with replacing(lock) as temporary:
            temporary.write_text(json.dumps(known, indent=1, sort_keys=True))
    return known.get(entry.name, entry.sha256_prefix)


def _shown() -> str:
    """Return the cache folder for messages, without the user's name where it lies in the home folder."""
    folder = cache_folder()
    return f"~/{folder.relative_to(Path.home())}" if folder.is_relative_to(Path.home()) else str(folder)


def _sha256(path: Path) -> str:
    status = path.stat()
    seen = (str(path), status.st_size, status.st_mtime_ns)
    if seen not in _checked:
        with open(path, "rb") as file:
            _checked[seen] = hashlib.file_digest(file, "sha256").hexdigest()
    return _checked[seen]


def main(names: Iterable[str]) -> int:
    """List the weight files, or fetch those named (``all`` for every one)."""
    names = list(names)
    failed = 0
    for name in table() if names in ([], ["all"]) else names:
        try:
            print(f"{name}: {weight_file(name, download=bool(names))}")
        except (InputError, NotMeasured) as error:
            failed += bool(names)
            print(f"{name}: {error}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
