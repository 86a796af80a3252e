"""Entries as files of one folder: written whole or not at all, by several processes, on a disk that may be full."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.base.paths import store_folder

STALE_SECONDS = 24 * 3600
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
# Kind of entry -> the suffix of its files; each lies under the first two digits of its key.
SUFFIXES = {"pictures": ".png", "scores": ".json"}
# Folders that a store has beside those of its entries.
WORKING = ("tmp", "claims")


class Files:
    """The folder of a store: where entries lie, how they are written and claimed. `made`, `found` and `repaired` count entries."""

    def __init__(self, root: str | Path | None = None):
        self.root = Path(root) if root is not None else store_folder()
        self.made = self.found = self.repaired = 0
        with self._plain_errors():
            for folder in WORKING:
                (self.root / folder).mkdir(parents=True, exist_ok=True)
        self._sweep()

    def path(self, kind: str, key: str) -> Path:
        """Where the entry `key` of the kind "pictures" or "scores" lies, or would lie."""
        return self.root / kind / key[:2] / f"{key}{SUFFIXES[kind]}"

    def entries(self, kind: str) -> Iterator[Path]:
        """Files in the places of entries of a kind, sound or not, in no order."""
        return self.root.glob(f"{kind}/*/*{SUFFIXES[kind]}")

    def write(self, path: Path, content: bytes) -> Path:
        """Put `content` at `path` inside the store: a reader sees the file whole or not at all."""
        temporary = self.root / "tmp" / f"{os.getpid()}-{uuid4().hex}"
        with self._plain_errors():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(temporary, "xb") as file:
                    file.write(content)
                    file.flush()
                    # Without this, a power cut could leave the new name on an empty file.
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        return path

    @contextmanager
    def _claimed(self, names: Sequence[str]) -> Iterator[bool]:
        """Keep other processes from making the same list of entries meanwhile; whether one of them had to be waited for.

        The claim ends with its process, however that ends.
        """
        if not names:
            yield False
            return
        claim = FileLock(self.root / "claims" / f"{digest(list(names))}.lock")
        with self._plain_errors():
            try:
                claim.acquire(blocking=False)
                waited = False
            except Timeout:
                claim.acquire()
                waited = True
        try:
            yield waited
        finally:
            claim.release()

    def _sweep(self) -> None:
        """Remove temporary files that a killed writer left behind long ago, and claims of that age."""
        for path in [path for folder in WORKING for path in (self.root / folder).iterdir()]:
            try:
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
            except OSError:
                continue  # Another process was faster, or the file is not ours to remove.

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
