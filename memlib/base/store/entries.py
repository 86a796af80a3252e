"""The two kinds of entries as files: pictures as lossless PNG, scores as JSON, each with its key, a checksum and what it was made of."""

from __future__ import annotations

import base64
import io
import json
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from memlib.base.errors import InputError
from memlib.base.hashing import canonical, digest

LARGEST = 2**30  # Bytes of an entry's file; the largest picture that is read has half as many.


@dataclass(frozen=True)
class Entry:
    """A sound entry: its value, the checksum of that, and what it was made of (empty where the file does not say)."""

    value: Any
    checksum: str
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """How one kind of entry is kept: the end of its files' names, from (key, value, recipe) to bytes, and from (file, key) to an `Entry`.

    `load` raises whatever it meets in a damaged file, or ValueError for one that is not what its name says. `recipe` reads that alone.
    """

    suffix: str
    dump: Callable[[str, Any, Any], bytes]
    load: Callable[[Path, str], Entry]
    recipe: Callable[[Path], Any]


def read(kind: str, path: Path, key: str | None = None) -> Entry | None:
    """Return the entry in a file, or None where there is none, or none that is sound and of `key` (by default the file's name)."""
    try:
        return KINDS[kind].load(path, path.stem if key is None else key)
    except Exception:  # A file can be damaged in any way: whatever reading it raises, from recursion to memory, the entry is made again.
        return None


def recipe_of(kind: str, path: Path) -> dict[str, Any]:
    """Return what an entry was made of, as its file says; empty where it does not."""
    try:
        recipe = KINDS[kind].recipe(path)
    except Exception:  # as in `read`
        return {}
    return recipe if isinstance(recipe, dict) else {}


def _check_file(path: Path) -> None:
    about = path.stat()
    if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST:  # a pipe would be waited for without end, a huge file fill the memory
        raise ValueError("no file of an entry")


def _content(path: Path) -> bytes:
    _check_file(path)
    return path.read_bytes()


def _dump_picture(key: str, picture: np.ndarray, recipe: Any) -> bytes:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
        raise InputError(f"A stored picture is uint8 [H, W, 3], not {picture.dtype} {list(picture.shape)}: convert it first.")
    text = PngInfo()
    text.add_text("key", key)
    text.add_text("pixels", digest(picture))
    text.add_text("recipe", json.dumps(canonical(recipe or {}), sort_keys=True))
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", pnginfo=text, compress_level=4)
    return buffer.getvalue()


def _load_picture(path: Path, key: str) -> Entry:
    # The plugin itself, from memory: a store is verified a fifth faster than through `Image.open`, which makes this check of the size.
    with PngImageFile(io.BytesIO(_content(path))) as image:
        if image.mode != "RGB" or image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
            raise ValueError("no picture of three channels, or too large a one")
        picture = np.frombuffer(bytearray(image.tobytes()), np.uint8).reshape(image.height, image.width, 3)
        text = image.info  # PNG's texts are all of it that the store writes
    return _sound(text["key"] == key, picture, text["pixels"], digest(picture), json.loads(text.get("recipe", "{}")))


def _picture_recipe(path: Path) -> Any:
    _check_file(path)
    with Image.open(path, formats=("PNG",)) as image:  # nothing is decoded
        return json.loads(image.info["recipe"])


def _dump_score(key: str, value: Any, recipe: Any) -> bytes:
    packed = _pack(value)
    return json.dumps({"key": key, "check": digest(json.dumps(packed)), "value": packed, "recipe": canonical(recipe or {})}).encode()


def _load_score(path: Path, key: str) -> Entry:
    entry = json.loads(_content(path))
    return _sound(entry["key"] == key, _unpack(entry["value"]), entry["check"], digest(json.dumps(entry["value"])), entry.get("recipe", {}))


def _sound(named: bool, value: Any, checksum: str, found: str, recipe: dict[str, Any]) -> Entry:
    if not named or checksum != found:
        raise ValueError("not the entry that its name says, or not whole")
    return Entry(value, checksum, recipe)


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        raw = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"__array__": [value.dtype.str, list(value.shape), raw]}
    if isinstance(value, Mapping):
        return {name: _pack(item) for name, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _unpack(packed: Any) -> Any:
    if isinstance(packed, dict) and "__array__" in packed:
        dtype, shape, raw = packed["__array__"]
        return np.frombuffer(base64.b64decode(raw), dtype=dtype).reshape(shape).copy()
    if isinstance(packed, dict):
        return {name: _unpack(item) for name, item in packed.items()}
    return packed


def as_read(kind: str, value: Any) -> Any:
    """Return a fresh value as it comes back when it is read."""
    return value if kind == "pictures" else _unpack(_pack(value))


# Each entry lies in the folder of its kind, under the first two digits of its key.
KINDS: dict[str, Kind] = {
    "pictures": Kind(".png", _dump_picture, _load_picture, _picture_recipe),
    "scores": Kind(".json", _dump_score, _load_score, lambda path: json.loads(_content(path))["recipe"]),
}
