"""Training pictures from the addresses that published lists name: fetched once, checked to be pictures, kept on this machine alone."""

from __future__ import annotations

import hashlib
import io
import json
import os
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image
from tqdm import tqdm

from memlib.base.errors import InputError
from memlib.base.writing import replacing

TIMEOUT_SECONDS = 20
MAX_BYTES = 32 * 2**20
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
    return Path(os.environ.get("MEMLIB_TRAINING") or Path.home() / ".cache" / "memlib" / "training")


def fetch_pictures(urls: Sequence[str], folder: Path | None = None, retry: bool = False, progress: bool = False) -> dict[str, Fetched]:
    """Return what came of each address, fetching those that were not tried before; `retry` tries those again that gave nothing.

    A file is kept as it came if it is a picture that opens. Addresses that are dead, answer with something else or with more than 32 MB
    are skipped, each with its reason. A file that has changed since it was fetched is fetched again. Raises InputError if the folder
    cannot be written.
    """
    folder = folder or training_folder()
    known = _read_index(folder)
    wanted = [url for url in dict.fromkeys(urls) if not _settled(known.get(url), folder, retry)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(AT_ONCE) as pool, tqdm(total=len(wanted), unit="picture", disable=not progress) as bar:
            for count, (url, fetched) in enumerate(zip(wanted, pool.map(lambda url: _fetch(url, folder), wanted)), 1):
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
    if urlsplit(url).scheme not in ("http", "https"):
        return Fetched(None, reason="no web address")
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "memlib"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            content = answer.read(MAX_BYTES + 1)
            promised = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        return Fetched(None, reason=f"answers {error.code}")
    except (urllib.error.URLError, HTTPException, OSError, ValueError):
        return Fetched(None, reason="does not answer")
    if len(content) > MAX_BYTES:
        return Fetched(None, reason="too large")
    if promised is not None and promised.isdigit() and len(content) != int(promised):
        return Fetched(None, reason="broken off")
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            suffix = f".{(image.format or 'img').lower()}".replace(".jpeg", ".jpg")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return Fetched(None, reason="no picture")
    found = hashlib.sha256(content).hexdigest()
    path = folder / f"{found[:32]}{suffix}"
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return Fetched(path.name, found)


def _read_index(folder: Path) -> dict[str, Fetched]:
    try:
        return {url: Fetched(**entry) for url, entry in json.loads((folder / INDEX).read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"The list of fetched pictures {folder / INDEX} is damaged: delete it to fetch them anew.") from error


def _write_index(folder: Path, known: Mapping[str, Fetched]) -> None:
    with replacing(folder / INDEX) as temporary:
        temporary.write_text(json.dumps({url: asdict(entry) for url, entry in known.items()}, indent=1, sort_keys=True), encoding="utf-8")
