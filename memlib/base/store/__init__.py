"""Pictures and scores kept on disk under a hash of everything that made them.

An entry is written to a temporary file on the same disk, flushed, and renamed into place: a reader sees a whole entry or none, whoever
is killed and when. Every entry carries its own key and a checksum of its content; one that fails the check counts as absent and is made
again. Several processes may use one store: who asks for what another is making, with the same list of keys, waits for it; of lists that
merely overlap, and on file systems without locks, an entry may be made twice, and the second rename replaces equal with equal.

What makes pictures is handed in (`memlib.sampling.stored.PictureStore`). To look after a store: ``memlib store --help``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.base.paths import as_folder, store_folder
from memlib.base.store.entries import KINDS, as_read, read
from memlib.base.writing import replacing, sweep

FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
UNLOCKABLE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
WORKING = ("tmp", "claims")  # Folders that a store has beside those of its entries.
WRITERS = 4  # Threads: compressing a PNG takes longer than writing it, and lets others run meanwhile.


class Store:
    """Pictures under ``pictures/`` and scores under ``scores/`` of one folder (by default `MEMLIB_STORE`, or ``_build/store``).

    `made`, `found` and `repaired` count the entries computed, read, and computed again because they were broken. A folder that cannot be
    written to serves for reading. Raises InputError where a folder cannot be had.
    """

    def __init__(self, root: str | Path | None = None):
        self.root = store_folder() if root is None else as_folder(root)
        self.made = self.found = self.repaired = 0
        self._swept = False
        with self._plain_errors():
            self.root.mkdir(parents=True, exist_ok=True)

    def path(self, kind: str, key: str) -> Path:
        """Where the entry `key` of the kind "pictures" or "scores" lies, or would lie."""
        return self.root / kind / key[:2] / f"{key}{KINDS[kind].suffix}"

    def entries(self, kind: str) -> Iterator[Path]:
        """Files in the places of entries of a kind, sound or not, in no order."""
        return self.root.glob(f"{kind}/*/*{KINDS[kind].suffix}")

    def broken(self) -> list[Path]:
        """Return the entries that fail their check; each is made again when it is next asked for."""
        return sorted(path for kind in KINDS for path in self.entries(kind) if read(kind, path) is None)

    def score(self, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """Return what `compute` gives for `key`, computing it only if the store does not hold it.

        A score is a number, text, list, NumPy array, or a dictionary of these. `key` must name everything that
        the score depends on: metric, its weights, the pictures' keys.
        """
        return self.scores([key], lambda absent: [(0, compute())])[0]

    def scores(self, keys: Sequence[Mapping[str, Any]], compute: Callable[[list[int]], Iterable[tuple[int, Any]]]) -> list[Any]:
        """Return the scores of `keys` in their order, computing together those that the store does not hold.

        `compute` is given the positions of the absent ones (the first of equal keys only) and yields (position, score) for each;
        every score is saved as it comes, so that a run that is stopped keeps what it made. For keys see `score`.
        """
        names = [digest(key) for key in keys]
        places = {name: position for position, name in reversed(list(enumerate(names)))}
        values: dict[str, Any] = {}

        def make(absent: list[str]) -> Iterator[list[tuple[str, Any]]]:
            for position, value in compute([places[name] for name in absent]):
                yield [(names[position], value)]

        self.fill("scores", names, lambda name: keys[places[name]], make, values)
        return [values[name] for name in names]

    def peek(self, key: Mapping[str, Any]) -> Any | None:
        """Return the score stored under `key`, or None if there is none (or a broken one); nothing is computed."""
        name = digest(key)
        if (entry := read("scores", self.path("scores", name))) is None:
            return None
        self.found += 1
        return entry.value

    def fill(
        self,
        kind: str,
        names: Sequence[str],
        recipe: Callable[[str], Any],
        make: Callable[[list[str]], Iterable[Sequence[tuple[str, Any]]]],
        into: dict[str, Any] | None = None,
        progress: bool = False,
    ) -> None:
        """Make sure that the store holds the entries `names` of a kind; their values are put into `into`, where one is given.

        `make` is given the absent ones and yields (name, value) in batches; a batch is written while the next one is made, so that a kill
        loses two at most. `recipe` gives what an entry was made of, of which its name is the hash.
        """
        absent = self._absent(kind, dict.fromkeys(names), into)
        with self._claimed(list(dict.fromkeys(names)) if absent else ()) as waited:
            if waited:
                absent = self._absent(kind, absent, into)
            if absent:
                with tqdm(total=len(absent), unit=kind.removesuffix("s"), disable=not progress) as bar, ThreadPoolExecutor(WRITERS) as pool:
                    # Leaving the pool waits for what is being written, after an exception too: what was made is kept.
                    writing: list[Future] = []
                    for batch in make(absent):
                        for name, value in batch:
                            writing.append(pool.submit(self.put, kind, name, value, recipe(name)))
                            if into is not None:
                                into[name] = as_read(kind, value)
                        while len(writing) >= max(1, len(batch)):
                            writing.pop(0).result()
                        self.made += len(batch)
                        bar.update(len(batch))
                    for written in writing:
                        written.result()
        self.found += len(names) - len(absent)

    def put(self, kind: str, key: str, value: Any, recipe: Any = None) -> Path:
        """Keep one value under `key`, with what it was made of."""
        return self.write(self.path(kind, key), KINDS[kind].dump(key, value, recipe))

    def write_picture(self, key: str, picture: np.ndarray, recipe: Mapping[str, Any] | None = None) -> Path:
        """Store one uint8 picture [H, W, 3] under `key`, with `recipe` as text inside the PNG."""
        return self.put("pictures", key, picture, recipe)

    def read_picture(self, key: str) -> np.ndarray | None:
        """Return the uint8 picture [H, W, 3] stored under `key`, or None if it is absent or broken."""
        entry = read("pictures", self.path("pictures", key), key)
        return None if entry is None else entry.value

    def write(self, path: Path, content: bytes) -> Path:
        """Put `content` at `path` inside the store: a reader sees the file whole or not at all."""
        with self._plain_errors():
            if not self._swept:
                self._swept = True
                sweep(path for folder in WORKING if (self.root / folder).is_dir() for path in (self.root / folder).iterdir())
            if path.is_dir():
                raise InputError(f"A folder lies where the store keeps a file, {path}: remove it.")
            with replacing(path, self.root / "tmp") as temporary, open(temporary, "wb") as file:
                file.write(content)
        return path

    def _absent(self, kind: str, names: Iterable[str], into: dict[str, Any] | None) -> list[str]:
        """Put what the store holds of `names` into `into` and return the others."""
        absent = []
        for name in names:
            path = self.path(kind, name)
            if (entry := read(kind, path, name)) is None:
                self.repaired += path.exists()
                absent.append(name)
            elif into is not None:
                into[name] = entry.value
        return absent

    @contextmanager
    def _claimed(self, names: Sequence[str]) -> Iterator[bool]:
        """Keep other processes from making the same list of entries meanwhile; whether one of them had to be waited for.

        The claim ends with its process, however that ends.
        """
        if not names:
            yield False
            return
        place = self.root / "claims" / f"{digest(list(names))}.lock"
        claim, waited = FileLock(place), False
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            claim.acquire(blocking=False)
        except Timeout:
            claim.acquire()
            waited = True
        except (OSError, NotImplementedError) as error:
            # Claims only save work: without locks, each makes what it needs.
            if isinstance(error, OSError) and error.errno not in UNLOCKABLE:
                with self._plain_errors():
                    raise
        try:
            yield waited
        finally:
            if claim.is_locked:
                place.unlink(missing_ok=True)  # while it is held: who waits for it notices, and takes a new one
                claim.release()

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise InputError(
                    f"The disk that holds the store {self.root} is full: free some space or set MEMLIB_STORE to another folder; what was stored before is kept."
                ) from error
            if error.errno in CLOSED:
                raise InputError(f"The store {self.root} cannot be written to: set MEMLIB_STORE to a folder that can.") from error
            raise
