"""Pictures: lossless PNG files that carry their key, a checksum of their pixels and what they were made of."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from memlib.base.errors import InputError
from memlib.base.hashing import canonical, digest, picture_recipe
from memlib.base.store.files import Files
from memlib.base.store.writing import Writer


@dataclass(frozen=True)
class Asked:
    """Pictures asked for: their `keys` [N][S], and the first (row, seed) of each key in `places`.

    `shared` is the part of the recipe that all have, `rows` the hash of each prompt's embedding.
    """

    keys: list[list[str]]
    places: dict[str, tuple[int, int]]
    shared: dict[str, Any]
    rows: list[str]

    def recipe(self, key: str) -> dict[str, Any]:
        """What the picture of `key` is made of: the key is the hash of this."""
        row, seed = self.places[key]
        return {**self.shared, "cond": self.rows[row], "seed": seed}


class Pictures(Files):
    """The pictures of a store, which are sampled where they are absent.

    `sampler` stands in for `memlib.sampling.batches.sample_batches`, which is imported at first need.
    """

    def __init__(self, root: str | Path | None = None, sampler: Callable[..., Iterator] | None = None):
        self._sampler = sampler
        super().__init__(root)

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
        prompt. Each batch is saved as soon as it is sampled; `cost` (memlib.sampling.batches.Cost) counts the work.
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
        asked = self.asked(substrate, embedding, seeds, steps, guidance, scheduler, uncond=uncond, mitigation=mitigation)
        absent = [key for key in dict.fromkeys(key for row_keys in asked.keys for key in row_keys) if not self._present(key, into)]
        with self._claimed(list(asked.places) if absent else ()) as waited:
            if waited:
                absent = [key for key in absent if not self._present(key, into)]
            if absent:
                batches = self._sampling()[0](
                    substrate, embedding, list(map(int, seeds)), steps=steps, guidance=guidance, scheduler=scheduler,
                    batch_size=batch_size, uncond=self._unconditional(substrate, uncond), pairs=[asked.places[key] for key in absent],
                    cost=cost, **({} if mitigation is None else {"around": mitigation.around}),
                )  # fmt: skip
                self._keep(batches, absent, asked, into, progress)
        self.found += sum(map(len, asked.keys)) - len(absent)
        return asked.keys

    def asked(
        self, substrate: Any, embedding: Any, seeds: Sequence[int], steps: int = 50, guidance: Any = 7.5, scheduler: str = "ddim", *,
        uncond: Any = None, mitigation: Any = None,
    ) -> Asked:  # fmt: skip
        """Return the keys and recipes of these pictures, whether they are stored or not; nothing is sampled or read."""
        seeds = [int(seed) for seed in seeds]
        if not seeds or not len(embedding.states):
            raise InputError("Sampling needs at least one prompt and one seed: pass some of each.")
        recipe = picture_recipe(substrate, self._unconditional(substrate, uncond), steps, guidance, scheduler, self._sampling()[1])
        if mitigation is not None:
            recipe["mitigation"] = mitigation.key
        rows = [digest(states.float()) for states in embedding.states]
        keys = [[digest({**recipe, "cond": row, "seed": seed}) for seed in seeds] for row in rows]
        # Of equal keys the first place counts; the order stays that of the rows.
        places = {key: (row, seed) for row, row_keys in reversed(list(enumerate(keys))) for seed, key in zip(seeds, row_keys)}
        return Asked(keys, places, recipe, rows)

    def _keep(self, batches: Iterable, names: Sequence[str], asked: Asked, into: dict | None, progress: bool) -> None:
        """Store the pictures of `batches`, which come in the order of `names`, batch by batch, while the next is sampled."""
        coming = iter(names)
        with tqdm(total=len(names), unit="picture", disable=not progress) as bar, Writer() as writer:
            for _, _, pictures in batches:
                for picture, key in zip(pictures, coming):
                    writer.submit(self.write_picture, key, picture, asked.recipe(key))
                    if into is not None:
                        into[key] = picture
                writer.settle(len(pictures))  # so that a kill loses two batches at most
                self.made += len(pictures)
                bar.update(len(pictures))

    def write_picture(self, key: str, picture: np.ndarray, recipe: Mapping[str, Any] | None = None) -> Path:
        """Store one uint8 picture [H, W, 3] under `key`, with `recipe` as text inside the PNG."""
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise InputError(f"A stored picture is uint8 [H, W, 3], not {picture.dtype} {list(picture.shape)}: convert it first.")
        text = PngInfo()
        text.add_text("key", key)
        text.add_text("pixels", digest(picture))
        text.add_text("recipe", json.dumps(canonical(recipe or {}), sort_keys=True))
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG", pnginfo=text, compress_level=4)
        return self.write(self.path("pictures", key), buffer.getvalue())

    def read_picture(self, key: str) -> np.ndarray | None:
        """Return the uint8 picture [H, W, 3] stored under `key`, or None if it is absent or broken."""
        return read_sound(self.path("pictures", key), key)

    def _present(self, key: str, into: dict[str, np.ndarray] | None) -> bool:
        picture = self.read_picture(key)
        if picture is not None:
            if into is not None:
                into[key] = picture
            return True
        self.repaired += self.path("pictures", key).exists()
        return False

    def _sampling(self) -> tuple[Callable[..., Iterator], int]:
        """Return the sampler and its version; imported late, so that reading a store needs no torch."""
        if self._sampler is not None:
            return self._sampler, 0
        from memlib.sampling.batches import SAMPLER_VERSION, sample_batches

        return sample_batches, SAMPLER_VERSION

    def _unconditional(self, substrate: Any, uncond: Any) -> Any:
        if uncond is not None:
            return getattr(uncond, "states", uncond)
        from memlib.sampling.batches import uncond_states

        return uncond_states(substrate)


def read_sound(path: Path, key: str) -> np.ndarray | None:
    """Return the picture of a file, uint8 [H, W, 3], or None if it is absent, cannot be read, or is not the one of `key`."""
    try:
        with Image.open(path) as image:
            picture = np.array(image)
            text = image.text
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError):
        return None
    if text.get("key") != key or text.get("pixels") != digest(picture):
        return None
    return picture


def read_recipe(path: Path) -> dict[str, Any]:
    """Return what the picture of a file was made of, without decoding it; empty where the file does not say."""
    try:
        with Image.open(path) as image:
            recipe = json.loads(image.info.get("recipe", "{}"))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError):
        return {}
    return recipe if isinstance(recipe, dict) else {}
