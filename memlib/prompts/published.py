"""Published prompt lists: where each is, its SHA-256, and fetching it once into a cache folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml
from pooch import file_hash

from memlib.base import paths
from memlib.base.download import DownloadError, WrongFile, published_file
from memlib.base.errors import InputError
from memlib.base.paths import data_folder
from memlib.base.writing import write_text

SECONDS = 300
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
    return paths.cache_folder("MEMLIB_PROMPTS", "prompts")


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
    try:
        published_file(source.url, path, expected, max_bytes=MAX_BYTES, seconds=SECONDS)
        if expected is None:
            _record(source, file_hash(path))
    except WrongFile as error:
        raise InputError(
            f"The prompt list {source.name!r} at {source.url} has another SHA-256 than the list meant here ({error}): "
            f"name a file of your own instead of the set."
        ) from error
    except DownloadError as error:
        there = " in place of the other one there" if path.is_file() else ""
        raise InputError(
            f"The prompt list {source.name!r} cannot be fetched from {source.url} ({error}): go online, put "
            f"that file at {path}{there}, or name a CSV, text or JSON-lines file of your own instead of the set."
        ) from error
    except OSError as error:
        raise InputError(
            f"The folder of prompt lists {cache_folder()} cannot be written ({error.strerror or error}): make room there or set "
            f"MEMLIB_PROMPTS to another folder."
        ) from error
    return path


def at_hand(source: Source) -> bool:
    """Say whether the list's file lies in the cache with the right bytes, so that `fetch` needs no network."""
    path = cache_folder() / source.file
    return path.is_file() and (source.sha256 or _recorded(source)) in (None, file_hash(path))


def pinned(source: Source) -> str:
    """Say by which SHA-256 a list is recognised, and where that is from: the table, or the first file seen here."""
    if source.sha256:
        return f"SHA-256 {source.sha256[:12]}... of the table"
    seen = _read_lock().get(source.url)
    if seen is None:
        return "no SHA-256 is published: that of the first file fetched will be recorded, and holds from then on"
    return f"SHA-256 {seen['sha256']}, none published, as first seen here on {seen['first seen'][:10]}"


def _recorded(source: Source) -> str | None:
    # Keyed by address: a list that moves to another commit is another file.
    return _read_lock().get(source.url, {}).get("sha256")


def _record(source: Source, sha256: str) -> None:
    entry = {"sha256": sha256, "first seen": datetime.now(UTC).isoformat(timespec="seconds")}
    write_text(cache_folder() / LOCK_FILE, json.dumps(_read_lock() | {source.url: entry}, indent=2, sort_keys=True) + "\n")


def _read_lock() -> dict[str, Mapping[str, str]]:
    path = cache_folder() / LOCK_FILE
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
        return {url: {"sha256": entry["sha256"], "first seen": entry["first seen"]} for url, entry in lock.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"The record of first downloads {path} is damaged: restore it, or delete it to record anew.") from error
