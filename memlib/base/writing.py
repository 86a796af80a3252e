"""Files that appear whole or not at all, whoever is killed and when; what a killed writer left is known by its lock and not by its age."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and nothing swept
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Give a temporary path beside `path`, or in the folder `scratch` of the same disk: the file written there takes the name `path` when it is whole.

    The folders are made where they are missing. After an exception the temporary file is removed and `path` is as it was.
    Several processes may write one file: each has a temporary path of its own, and the last one to end stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    temporary, held = _begun(path.parent if scratch is None else scratch, path.name)
    try:
        with held:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())  # Without this, a power cut could leave the new name on an empty file.
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _begun(folder: Path, name: str) -> tuple[Path, IO[bytes]]:
    """A new file that is locked as long as its writer lives."""
    while True:
        temporary = folder / f".{name}.{uuid4().hex}"
        held = open(temporary, "xb")  # noqa: SIM115 - its lock is to outlast this function
        _lock(held)
        if os.fstat(held.fileno()).st_nlink:
            return temporary, held
        held.close()  # swept between opening and locking


def _lock(file: IO[bytes]) -> bool:
    """Whether this process has the lock of an open file now; without a lock where the file system knows none."""
    with suppress(OSError):
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def sweep(paths: Iterable[Path]) -> None:
    """Remove those files whose writer is no longer alive: the kernel gives a process's locks back, however it ends.

    Where the file system has no locks, nothing says who is alive, and nothing is removed.
    """
    for path in paths:
        with suppress(OSError), open(path, "rb+") as file:
            if _lock(file):
                path.unlink()
