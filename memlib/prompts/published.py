"""Published prompt lists: where each is, its SHA-256, and fetching it once into a cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path

import yaml

from memlib.base.errors import InputError
from memlib.base.paths import data_folder
from memlib.base.writing import replacing

TIMEOUT_SECONDS = 30
# The largest list is below 2 MB: whatever goes on much longer is not the file asked for.
MAX_BYTES = 64 * 2**20
LOCK_FILE = "sources.lock.json"


@dataclass(frozen=True)
class Source:
    """One published list: its address at a fixed commit, SHA-256 (None if unknown), layout and kind of prompts."""

    name: str
    title: str
    url: str
    sha256: str | None
    file: str
    licence: str
    column: str | None = None
    rows: int | None = None
    styles: tuple[tuple[str, int], ...] = ()
    kind: str | None = None
    category: str | None = None


def cache_folder() -> Path:
    """Return the folder of fetched prompt lists: MEMLIB_PROMPTS, or ``~/.cache/memlib/prompts``."""
    return Path(os.environ.get("MEMLIB_PROMPTS") or Path.home() / ".cache" / "memlib" / "prompts")


def load_sources() -> dict[str, Source]:
    """Return the published lists of ``data/prompts/sources.yml`` by name, aliases included.

    Raises InputError if that file is missing or not understood.
    """
    path = data_folder() / "prompts" / "sources.yml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        sources = {name: Source(name=name, **entry | {"styles": tuple(map(tuple, entry.get("styles", ())))}) for name, entry in content["sets"].items()}
        return sources | {alias: sources[name] for alias, name in content.get("aliases", {}).items()}
    except OSError as error:
        raise InputError(f"The table of prompt lists {path} cannot be read ({error.strerror}): restore it from the repository.") from error
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"The table of prompt lists {path} is not understood ({error!r}): restore it from the repository.") from error


def fetch(source: Source) -> Path:
    """Return the path of the list's verified file in the cache, downloading it if it is not there.

    A file that is there already, fetched earlier or put there by hand, is used when its SHA-256 is the
    one of the table, or for a list without one the one recorded when it was first seen; otherwise it
    is fetched again. Only verified bytes are written. Raises InputError if the address
    cannot be reached, the bytes are not the expected ones or the cache cannot be written.
    """
    path = cache_folder() / source.file
    expected = source.sha256 or _recorded(source)
    if path.is_file():
        found = _sha256(path)
        if expected is None:
            _record(source, found)
        if expected in (None, found):
            return path
    content = _download(source, path)
    found = hashlib.sha256(content).hexdigest()
    if expected not in (None, found):
        raise InputError(
            f"The prompt list {source.name!r} at {source.url} has SHA-256 {found} where {expected} is "
            f"expected, so it is not the list meant here: name a file of your own instead of the set."
        )
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise _cannot_write(error) from error
    if expected is None:
        _record(source, found)
    return path


def at_hand(source: Source) -> bool:
    """Say whether the list's file lies in the cache with the right bytes, so that `fetch` needs no network."""
    path = cache_folder() / source.file
    expected = source.sha256 or _recorded(source)
    return path.is_file() and expected in (None, _sha256(path))


def file_hash(source: Source) -> str:
    """Return the SHA-256 of the list's file in the cache, fetching it first where it is not at hand."""
    return _sha256(fetch(source))


def _download(source: Source, path: Path) -> bytes:
    request = urllib.request.Request(source.url, headers={"User-Agent": "memlib"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            # Lists are small, so they are held whole; `read` with a limit does not notice a broken
            # connection by itself, hence the comparison with the length promised.
            content = answer.read(MAX_BYTES + 1)
            promised = answer.headers.get("Content-Length")
        if len(content) > MAX_BYTES:
            raise HTTPException(f"it is larger than {MAX_BYTES // 2**20} MB and so no prompt list")
        if promised is not None and len(content) != int(promised):
            raise HTTPException(f"broken off after {len(content)} of {promised} bytes")
    except (urllib.error.URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        there = " in place of the other one there" if path.is_file() else ""
        raise InputError(
            f"The prompt list {source.name!r} cannot be fetched from {source.url} ({reason}): go online, put "
            f"that file at {path}{there}, or name a CSV, text or JSON-lines file of your own instead of the set."
        ) from error
    return content


def _cannot_write(error: OSError) -> InputError:
    return InputError(
        f"The folder of prompt lists {cache_folder()} cannot be written ({error.strerror or error}): make room there or set MEMLIB_PROMPTS to another folder."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_lock() -> dict[str, Mapping[str, str]]:
    path = cache_folder() / LOCK_FILE
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
        return {url: {"sha256": entry["sha256"], "first seen": entry["first seen"]} for url, entry in lock.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"The record of first downloads {path} is damaged: restore it, or delete it to record anew.") from error


def _recorded(source: Source) -> str | None:
    # Keyed by address: a list that moves to another commit is another file.
    return _read_lock().get(source.url, {}).get("sha256")


def _record(source: Source, sha256: str) -> None:
    entry = {"sha256": sha256, "first seen": datetime.now(UTC).isoformat(timespec="seconds")}
    text = json.dumps(_read_lock() | {source.url: entry}, indent=2, sort_keys=True) + "\n"
    try:
        with replacing(cache_folder() / LOCK_FILE) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _cannot_write(error) from error
