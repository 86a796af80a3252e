"""Files that appear whole or not at all, whoever is killed and when."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`: the file written there takes the name `path` once all of it is on disk.

    The folder is made where it is missing. After an exception the temporary file is removed and `path` is as it was.
    Several processes may write one file: each has a temporary path of its own, and the last one to end stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # Without this, a power cut could leave the new name on an empty file.
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
