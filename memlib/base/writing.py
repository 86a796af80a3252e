"""Files that appear whole or not at all, whoever is killed and when; what a killed writer left is known by its lock and not by its age."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and nothing swept
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Give a temporary path beside `path`, or in the folder `scratch` of the same disk: the file written there takes the name `path` when it is whole.

    The folders are made where they are missing, and what killed writers of `path` left beside it is removed. After an exception the temporary file
    is removed and `path` is as it was.
    Several processes may write one file: each has a temporary path of its own, and the last one to end stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if scratch is None:
        sweep(path.parent.glob(f".{escape(path.name)}.{'[0-9a-f]' * 32}"))
    else:
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


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """As `replacing`, for a folder that one process at a time writes: what stands in the temporary one takes the place of `folder` when it is whole.

    A folder can't take another's name at once. Whoever is killed in between leaves the old one, which the next writer puts back.
    """
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    if os.path.lexists(old) and not os.path.lexists(folder):
        os.replace(old, folder)
    for left in (partial, old):
        _remove(left)
    partial.mkdir(parents=True)
    try:
        yield partial
        if os.path.lexists(folder):
            os.replace(folder, old)
        os.replace(partial, folder)
    finally:
        _remove(partial)
    _remove(old)


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Make `text` the whole content of a file, in UTF-8 and with its line ends as they are."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


def write_table(path: Path, table: Any) -> None:
    """Make a data frame the whole content of a CSV file, without its index."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


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
