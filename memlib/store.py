"""Pictures and scores kept on disk under a hash of everything that made them.

An entry is written to a temporary file on the same disk, flushed, and renamed into place: a reader
sees a whole entry or none, whoever is killed and when. Every entry carries its own key and a checksum
of its content; one that fails the check counts as absent and is made again. Several processes may use
one store: who asks for what another is making, with the same list of keys, waits for it; of lists that
merely overlap an entry may be made twice, and the second rename replaces equal with equal.
"""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from memlib.errors import InputError
from memlib.keys import canonical, digest, picture_recipe

STALE_SECONDS = 24 * 3600
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def default_root() -> Path:
    """Return the folder that ``MEMLIB_STORE`` names, or ``_build/store`` beside the package."""
    return Path(os.environ.get("MEMLIB_STORE") or Path(__file__).parents[1] / "_build" / "store")


class Store:
    """Pictures under ``pictures/`` (lossless PNG) and scores under ``scores/`` (JSON) of one folder.

    `sampler` stands in for `memlib.sampling.sample_batches`, which is imported at first need. `made`,
    `found` and `repaired` count the entries computed, read, and computed again because they were broken.
    """

    def __init__(self, root: str | Path | None = None, sampler: Callable[..., Iterator] | None = None):
        self.root = Path(root) if root is not None else default_root()
        self.made = self.found = self.repaired = 0
        self._sampler = sampler
        with self._plain_errors():
            for folder in ("tmp", "claims"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
        self._sweep()

    def pictures(
        self,
        substrate: Any,
        embedding: Any,
        seeds: Sequence[int],
        steps: int = 50,
        guidance: Any = 7.5,
        scheduler: str = "ddim",
        *,
        uncond: Any = None,
        batch_size: int | None = None,
        progress: bool = False,
        cost: Any = None,
        mitigation: Any = None,
    ) -> np.ndarray:
        """Return uint8 pictures [N, S, H, W, 3] of every prompt row with every seed, sampling what is absent.

        `uncond` is the unconditional embedding ([1, 77, d] or an Embedding); by default that of the empty
        prompt. Each batch is saved as soon as it is sampled; `cost` (memlib.sampling.Cost) counts the work.
        `mitigation` is one that acts while sampling (see `memlib.mitigations.base`): its `key` joins the key.
        """
        shown: dict[str, np.ndarray] = {}
        keys = self.ensure(
            substrate, embedding, seeds, steps, guidance, scheduler,
            uncond=uncond, batch_size=batch_size, progress=progress, into=shown, cost=cost,
            mitigation=mitigation,
        )  # fmt: skip
        return np.stack([np.stack([shown[key] for key in row]) for row in keys])

    def ensure(
        self,
        substrate: Any,
        embedding: Any,
        seeds: Sequence[int],
        steps: int = 50,
        guidance: Any = 7.5,
        scheduler: str = "ddim",
        *,
        uncond: Any = None,
        batch_size: int | None = None,
        progress: bool = False,
        into: dict[str, np.ndarray] | None = None,
        cost: Any = None,
        mitigation: Any = None,
    ) -> list[list[str]]:
        """Make sure that all these pictures are stored and return their keys [N][S].

        For runs whose pictures together do not fit into memory: read them with `read_picture`. Those that
        pass through are put into `into` by key, where one is given.
        """
        seeds = [int(seed) for seed in seeds]
        if not seeds or not len(embedding.states):
            raise InputError("Sampling needs at least one prompt and one seed: pass some of each.")
        sample_batches, version = self._sampling()
        uncond = self._unconditional(substrate, uncond)
        recipe = picture_recipe(substrate, uncond, steps, guidance, scheduler, version)
        if mitigation is not None:
            recipe["mitigation"] = mitigation.key
        rows = [digest(states.float()) for states in embedding.states]
        keys = [[digest({**recipe, "cond": row, "seed": seed}) for seed in seeds] for row in rows]

        # Of equal keys the first place counts; the order stays that of the rows.
        places = {key: (row, seed) for row, row_keys in reversed(list(enumerate(keys))) for seed, key in zip(seeds, row_keys)}
        absent = [key for key in dict.fromkeys(key for row_keys in keys for key in row_keys) if not self._present(key, into)]
        with self._claimed(list(places) if absent else ()) as waited:
            if waited:
                absent = [key for key in absent if not self._present(key, into)]
            if absent:
                recipes = {key: {**recipe, "cond": rows[row], "seed": seed} for key, (row, seed) in places.items()}
                batches = sample_batches(
                    substrate, embedding, seeds, steps=steps, guidance=guidance, scheduler=scheduler,
                    batch_size=batch_size, uncond=uncond, pairs=[places[key] for key in absent], cost=cost,
                    **({} if mitigation is None else {"around": mitigation.around}),
                )  # fmt: skip
                self._keep(batches, absent, recipes, into, progress)
        self.found += len(keys) * len(seeds) - len(absent)
        return keys

    def _keep(self, batches: Iterable, names: Sequence[str], recipes: Mapping[str, Any], into: dict | None, progress: bool) -> None:
        """Store the pictures of `batches`, which come in the order of `names`, batch by batch."""
        coming = iter(names)
        with tqdm(total=len(names), unit="picture", disable=not progress) as bar:
            for _, _, pictures in batches:
                for picture, key in zip(pictures, coming):
                    self.write_picture(key, picture, recipes[key])
                    if into is not None:
                        into[key] = picture
                self.made += len(pictures)
                bar.update(len(pictures))

    def write_picture(self, key: str, picture: np.ndarray, recipe: Mapping[str, Any] | None = None) -> Path:
        """Store one uint8 picture [H, W, 3] under `key`, with `recipe` as text inside the PNG."""
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise InputError(
                f"A stored picture is uint8 [H, W, 3], not {picture.dtype} {list(picture.shape)}: convert it first."
            )
        text = PngInfo()
        text.add_text("key", key)
        text.add_text("pixels", digest(picture))
        text.add_text("recipe", json.dumps(canonical(recipe or {}), sort_keys=True))
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG", pnginfo=text, compress_level=4)
        return self._write(self._path("pictures", key, ".png"), buffer.getvalue())

    def read_picture(self, key: str) -> np.ndarray | None:
        """Return the uint8 picture [H, W, 3] stored under `key`, or None if it is absent or broken."""
        try:
            with Image.open(self._path("pictures", key, ".png")) as image:
                picture = np.array(image)
                text = image.text
        except FileNotFoundError:
            return None
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError):
            return None
        if text.get("key") != key or text.get("pixels") != digest(picture):
            return None
        return picture

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
        absent = self._absent_scores(dict.fromkeys(names), values)
        with self._claimed(names if absent else ()) as waited:
            if waited:
                absent = self._absent_scores(absent, values)
            for position, value in compute([places[name] for name in absent]) if absent else ():
                name, packed = names[position], _pack(value)
                entry = {"key": name, "check": digest(json.dumps(packed)), "value": packed, "recipe": canonical(keys[position])}
                self._write(self._path("scores", name, ".json"), json.dumps(entry).encode())
                values[name] = packed
                self.made += 1
        self.found += len(names) - len(absent)
        return [_unpack(values[name]) for name in names]

    def _absent_scores(self, names: Iterable[str], values: dict[str, Any]) -> list[str]:
        """Put what the store holds of `names` into `values` and return the others."""
        absent = []
        for name in names:
            path = self._path("scores", name, ".json")
            if (stored := self._read_score(path, name)) is None:
                self.repaired += path.exists()
                absent.append(name)
            else:
                values[name] = stored["value"]
        return absent

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

    def peek(self, key: Mapping[str, Any]) -> Any | None:
        """Return the score stored under `key`, or None if there is none (or a broken one); nothing is computed."""
        name = digest(key)
        stored = self._read_score(self._path("scores", name, ".json"), name)
        if stored is None:
            return None
        self.found += 1
        return _unpack(stored["value"])

    def _read_score(self, path: Path, name: str) -> dict[str, Any] | None:
        try:
            entry = json.loads(path.read_bytes())
            sound = entry["key"] == name and entry["check"] == digest(json.dumps(entry["value"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return entry if sound else None

    def broken(self) -> list[Path]:
        """Return the entries that fail their check; each is made again when it is next asked for."""
        pictures = [p for p in self.root.glob("pictures/*/*.png") if self.read_picture(p.stem) is None]
        scores = [p for p in self.root.glob("scores/*/*.json") if self._read_score(p, p.stem) is None]
        return sorted(pictures + scores)

    def _present(self, key: str, into: dict[str, np.ndarray] | None) -> bool:
        picture = self.read_picture(key)
        if picture is not None:
            if into is not None:
                into[key] = picture
            return True
        self.repaired += self._path("pictures", key, ".png").exists()
        return False

    def _path(self, kind: str, key: str, suffix: str) -> Path:
        return self.root / kind / key[:2] / f"{key}{suffix}"

    def _write(self, path: Path, content: bytes) -> Path:
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

    def _sweep(self) -> None:
        """Remove temporary files that a killed writer left behind long ago, and claims of that age."""
        for path in [*(self.root / "tmp").iterdir(), *(self.root / "claims").iterdir()]:
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
                    f"The disk that holds the store {self.root} is full: free some space or set MEMLIB_STORE "
                    f"to another folder; what was stored before is kept."
                ) from error
            if error.errno in CLOSED:
                raise InputError(
                    f"The store {self.root} cannot be written to: set MEMLIB_STORE to a folder that can."
                ) from error
            raise

    def _sampling(self) -> tuple[Callable[..., Iterator], int]:
        """Return the sampler and its version; imported late, so that reading a store needs no torch."""
        if self._sampler is not None:
            return self._sampler, 0
        from memlib.sampling import SAMPLER_VERSION, sample_batches

        return sample_batches, SAMPLER_VERSION

    def _unconditional(self, substrate: Any, uncond: Any) -> Any:
        if uncond is not None:
            return getattr(uncond, "states", uncond)
        from memlib.sampling import uncond_states

        return uncond_states(substrate)


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
