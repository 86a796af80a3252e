"""Training pictures from the addresses that published lists name: fetched once, checked to be pictures, kept on this machine alone."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from memlib.base import paths
from memlib.base.download import DownloadError, download
from memlib.base.errors import InputError
from memlib.base.pictures import as_rgb
from memlib.base.writing import replacing, write_text

SECONDS = 60  # For one address, redirects included.
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 64_000_000
# Pillow knows some fifty formats, of which the less usual ones are where decoders are attacked.
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif"}
TRIES, PAUSE_SECONDS = 2, 1.0
AT_ONCE = 8
INDEX = "index.json"
SAVE_EVERY = 50  # Answers after which the index is written, so that a stopped run keeps what it fetched.


@dataclass(frozen=True)
class Fetched:
    """What came of one address: the `file` in the folder and its `sha256`, or the `reason` why there is none."""

    file: str | None
    sha256: str | None = None
    reason: str = ""


def training_folder() -> Path:
    """Return the folder of training pictures: MEMLIB_TRAINING, or ``~/.cache/memlib/training``."""
    return paths.cache_folder("MEMLIB_TRAINING", "training")


def fetch_pictures(urls: Sequence[str], folder: Path | None = None, retry: bool = False, progress: bool = False) -> dict[str, Fetched]:
    """Return what came of each address, fetching those that were not tried before; `retry` tries those again that gave nothing.

    A file is kept as it came if it is a picture that opens (PNG, JPEG, WebP, BMP or GIF). Addresses that are
    dead, answer with something else, with more than 32 MB or 64 megapixels, take longer than a minute, or lead into this machine's own
    network (see `memlib.base.download`; MEMLIB_LOCAL=1 allows it) are skipped, each with its reason. A file that has changed since it
    was fetched is fetched again. Raises InputError if the folder cannot be written.
    """
    folder = folder or training_folder()
    known = _read_index(folder)
    wanted = [url for url in dict.fromkeys(urls) if not _settled(known.get(url), folder, retry)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(AT_ONCE) as pool, tqdm(total=len(wanted), unit="picture", disable=not progress) as bar:
            for count, (url, fetched) in enumerate(zip(wanted, pool.map(lambda url: _fetch(url, folder), wanted), strict=True), 1):
                known[url] = fetched
                bar.update()
                if count % SAVE_EVERY == 0 or count == len(wanted):
                    _write_index(folder, known)
    except OSError as error:
        raise InputError(
            f"The folder of training pictures {folder} cannot be written ({error.strerror or error}): make room there or set MEMLIB_TRAINING."
        ) from error
    return {url: known[url] for url in urls}


def count_reasons(fetched: Mapping[str, Fetched]) -> Counter[str]:
    """How many addresses gave nothing, by reason."""
    return Counter(answer.reason for answer in fetched.values() if answer.file is None)


def _settled(before: Fetched | None, folder: Path, retry: bool) -> bool:
    if before is None:
        return False
    if before.file is None:
        return not retry
    path = folder / before.file
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == before.sha256


def _fetch(url: str, folder: Path) -> Fetched:
    for left in reversed(range(TRIES)):
        held = io.BytesIO()
        try:
            download(url, held, max_bytes=MAX_BYTES, seconds=SECONDS, local=os.environ.get("MEMLIB_LOCAL", "") not in ("", "0"))
            break
        except DownloadError as error:
            if not (error.again and left):
                return Fetched(None, reason=str(error))
            time.sleep(PAUSE_SECONDS)
    try:
        suffix = _suffix(held)
    except DownloadError as error:
        return Fetched(None, reason=str(error))
    content = held.getvalue()
    found = hashlib.sha256(content).hexdigest()
    path = folder / f"{found[:32]}{suffix}"
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return Fetched(path.name, found)


def _suffix(held: io.BytesIO) -> str:
    """The suffix, by content, of a file that is a picture which can be read later; raises DownloadError for another file."""
    try:
        with Image.open(held, formats=tuple(SUFFIXES)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DownloadError("too many pixels")
            kind = image.format
            as_rgb(image)
            return SUFFIXES.get(kind or "", ".jpg")  # what a JPEG holds beside its picture can give it another name
    except DownloadError:
        raise
    except Exception as error:  # Decoders fail in many ways on files that are damaged, or made to harm.
        raise DownloadError("no picture") from error


def _read_index(folder: Path) -> dict[str, Fetched]:
    try:
        return {url: Fetched(**entry) for url, entry in json.loads((folder / INDEX).read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"The list of fetched pictures {folder / INDEX} is damaged: delete it to fetch them anew.") from error


def _write_index(folder: Path, known: Mapping[str, Fetched]) -> None:
    write_text(folder / INDEX, json.dumps({url: asdict(entry) for url, entry in known.items()}, indent=1, sort_keys=True))
