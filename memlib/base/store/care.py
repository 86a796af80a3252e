"""Looking after stores: checking every entry, taking over another store's entries, counting, and removing old ones."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from memlib.base.errors import InputError
from memlib.base.hashing import digest_of_json
from memlib.base.paths import as_folder
from memlib.base.store import WORKING, Store
from memlib.base.store.entries import KINDS, read, recipe_of

HEX = set("0123456789abcdef")
AT_ONCE = 64  # Files that a thread is given.


@dataclass
class Findings:
    """What `verify` found: numbers of sound pictures and scores, paths of the others.

    `broken` entries fail their check and would be made again; `foreign` files are no entries of this store at all: their name is no
    key, they lie in the wrong place, or they are sound and yet not what their name says they are made of.
    """

    sound: Counter[str] = field(default_factory=Counter)
    broken: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)


@dataclass
class Merged:
    """What `merge` did, in numbers of entries; `conflicts` are both sound and differ, and the store's own were kept."""

    taken: int = 0
    repaired: int = 0
    already_there: int = 0
    broken: int = 0
    foreign: int = 0
    conflicts: list[Path] = field(default_factory=list)


def open_store(root: str | Path) -> Store:
    """Return the store in a folder that must be there already.

    Raises InputError where there is no folder, or one with other things in it and no entries.
    """
    root = as_folder(root)
    known = {*KINDS, *WORKING}
    if not root.is_dir():
        raise InputError(f"There is no store in {root}: give the folder that holds 'pictures' and 'scores', or set MEMLIB_STORE to it.")
    if (inside := {path.name for path in root.iterdir()}) and not inside & known:
        raise InputError(f"The folder {root} is no store: it holds none of {', '.join(sorted(known))}; give the folder that does.")
    return Store(root)


def is_key(name: str) -> bool:
    """Whether a text is the hash that names an entry."""
    return len(name) == 64 and HEX.issuperset(name)


def _state(kind: str, path: Path, root: Path) -> str:
    """How an entry is: "sound", "broken" or "foreign"."""
    key = path.stem
    if not is_key(key) or str(path) != os.path.join(root, kind, key[:2], f"{key}{KINDS[kind].suffix}"):
        return "foreign"
    if (entry := read(kind, path, key)) is None:
        return "foreign" if path.is_dir() else "broken"
    return "sound" if _names(entry.recipe, key) else "foreign"


def _names(recipe: Any, key: str) -> bool:
    try:
        return digest_of_json(recipe) == key
    except (InputError, RecursionError):
        return False


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """Everything in the folders of entries, with the kind that it should be; folders that take a file's place or can't be read, too."""
    for kind in KINDS:
        found: list[Path] = []
        unread: list[OSError] = []
        for folder, folders, files in os.walk(root / kind, onerror=unread.append):
            found += [Path(folder, name) for name in (*files, *(name for name in folders if name.endswith(KINDS[kind].suffix)))]
        found += [path for error in unread if (path := Path(error.filename)).exists()]
        yield from ((kind, path) for path in sorted(found))


def _for_each(files: list[tuple[str, Path]], look: Callable[[tuple[str, Path]], Any], progress: bool) -> Iterator[Any]:
    # Decoding and hashing let other threads run meanwhile; handing over one file at a time would cost a tenth of what looking at it does.
    parts = [files[start : start + AT_ONCE] for start in range(0, len(files), AT_ONCE)]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool, tqdm(total=len(files), unit="entry", disable=not progress) as bar:
        for found in pool.map(lambda part: [look(file) for file in part], parts):
            yield from found
            bar.update(len(found))


def verify(store: Store, progress: bool = False) -> Findings:
    """Read every entry, compare it with its checksum and its key, and return what was found; nothing is changed."""
    found, files = Findings(), list(_files(store.root))
    states = _for_each(files, lambda entry: _state(*entry, store.root), progress)
    for (kind, path), state in zip(files, states, strict=True):
        if state == "sound":
            found.sound[kind] += 1
        else:
            getattr(found, state).append(path)
    return found


def merge(store: Store, other: Store, progress: bool = False) -> Merged:
    """Take over the entries of `other` that `store` lacks, byte by byte; a sound entry is never overwritten.

    A broken entry of `store` is replaced by a sound one of `other`. What is broken or foreign in `other` stays there. Raises
    InputError if both are one folder, and for a disk that is full, with what was taken over so far kept.
    """
    if store.root.resolve() == other.root.resolve():
        raise InputError(f"{store.root} cannot be merged with itself: give another store.")
    done, files = Merged(), list(_files(other.root))

    def take(entry: tuple[str, Path]) -> tuple[str, Path]:
        kind, path = entry
        state = _state(kind, path, other.root)
        if state != "sound":
            return state, path
        target = store.path(kind, path.stem)
        if own := read(kind, target):
            theirs = read(kind, path)
            return ("already_there" if theirs is not None and own.checksum == theirs.checksum else "conflicts"), target
        there = target.exists()
        store.write(target, path.read_bytes())
        return ("repaired" if there else "taken"), target

    for what, path in _for_each(files, take, progress):
        if what == "conflicts":
            done.conflicts.append(path)
        else:
            setattr(done, what, getattr(done, what) + 1)
    return done


@dataclass(frozen=True)
class Chosen:
    """Which entries `prune` means: older than `days`, and made with what `where` says (dotted names, compared as texts)."""

    days: float | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    kinds: tuple[str, ...] = tuple(KINDS)

    def __post_init__(self) -> None:
        if self.days is None and not self.where:
            raise InputError("Nothing says which entries to remove: give an age, what they were made with, or both.")
        if self.days is not None and not self.days >= 0:
            raise InputError(f"An age of {self.days} days is not possible: give a number from 0 on.")

    def __call__(self, kind: str, path: Path) -> bool:
        if kind not in self.kinds or (self.days is not None and time.time() - path.stat().st_mtime < self.days * 86_400):
            return False
        return not self.where or matches(recipe_of(kind, path), self.where)


def matches(recipe: Mapping[str, Any], where: Mapping[str, str]) -> bool:
    """Whether a recipe has all the values of `where`; ``guidance.scale`` looks inside; hashes may be cut to 8 digits or more."""
    for name, wanted in where.items():
        found: Any = recipe
        for part in name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        if found is None or not _same(found, wanted):
            return False
    return True


def _same(found: Any, wanted: str) -> bool:
    if isinstance(found, (int, float)) and not isinstance(found, bool):
        try:
            return float(wanted) == found
        except ValueError:
            return False
    text = str(found)
    return text == wanted or (is_key(text) and len(wanted) >= 8 and text.startswith(wanted))


def prune(store: Store, chosen: Chosen, remove: bool = False, progress: bool = False) -> tuple[int, int]:
    """Return number and bytes of the entries that `chosen` means; only with `remove` are they gone afterwards."""
    files = list(_files(store.root))
    count = size = 0
    for (_, path), meant in zip(files, _for_each(files, lambda entry: chosen(*entry), progress), strict=True):
        if meant:
            count, size = count + 1, size + path.stat().st_size
            if remove:
                path.unlink(missing_ok=True)
    return count, size


def stats(store: Store, progress: bool = False) -> list[dict[str, Any]]:
    """Return one row per kind and way of making: number, bytes, and what the pictures were made with.

    Pictures are told apart by weights, precision, sampler, guidance and mitigation; scores by what they are.
    """
    files = list(_files(store.root))
    groups: dict[tuple[str, ...], list[int]] = {}
    for (kind, path), title in zip(files, _for_each(files, _title, progress), strict=True):
        counted = groups.setdefault((kind, *title), [0, 0])
        counted[0] += 1
        counted[1] += path.stat().st_size
    names = ("kind", "weights", "made with", "entries", "bytes")
    return [dict(zip(names, (*title, *counted))) for title, counted in sorted(groups.items(), key=lambda item: (item[0][0], -item[1][0]))]


def _title(entry: tuple[str, Path]) -> tuple[str, str]:
    kind, path = entry
    recipe = recipe_of(kind, path)
    weights = str(recipe.get("weights", ""))[:12]
    if kind == "scores":
        name = next((recipe[part] for part in ("score", "measure", "detection", "trace", "metric") if part in recipe), "not stated")
        return weights, str(name.get("measure", "detection")) if isinstance(name, Mapping) else str(name)
    if not recipe:
        return weights, "not stated"
    guidance = dict(recipe.get("guidance", {}))
    rule = guidance.pop("rule", "?")
    parts = [recipe.get("scheduler", {}).get("class", "?"), f"{recipe.get('steps', '?')} steps", str(recipe.get("dtype", "?")).removeprefix("torch.")]
    parts.append(f"guidance {guidance.get('scale', '?')}" if rule == "constant" else f"{rule} {guidance}")
    if "mitigation" in recipe:
        parts.append(str(recipe["mitigation"].get("mitigation", "?")))
    if "displaced" in recipe:
        parts.append("displaced")
    return weights, ", ".join(parts)


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
