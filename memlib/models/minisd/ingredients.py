"""The drawings MiniSD's pictures are composed of, and where they come from.

Four openly licensed npm packages are read once (`build`); what is committed is compact: one WebP atlas per rendering,
one of people in six skin tones, and a table of names and keywords. Training and looking up a training picture need
only those files.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from memlib.base.errors import InputError
from memlib.base.writing import replacing, write_table, write_text

CELL = 64  # pixels per side of one drawing in an atlas
COLUMNS = 24
RENDERINGS = ("noto", "twemoji", "fluent")
TONES = ("default", "light", "medium-light", "medium", "medium-dark", "dark")
_TONE_CODES = ("", "1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")

# npm package -> (folder inside it, file ending, drawings' licence)
SOURCES = {
    "noto": ("emoji-datasource-google", "img/google/64", "png"),
    "twemoji": ("emoji-datasource-twitter", "img/twitter/64", "png"),
    "fluent": ("@lobehub/fluent-emoji-3d", "assets", "webp"),
}

# Subgroups of openmoji.csv whose members can be told apart at 24 pixels and whose names are everyday words. Faces,
# hands, clocks, arrows, flags and signs look alike at that size; people are kept for the template group.
SUBGROUPS = [
    "animal-mammal",
    "animal-bird",
    "animal-amphibian",
    "animal-reptile",
    "animal-marine",
    "animal-bug",
    "plant-flower",
    "plant-other",
    "food-fruit",
    "food-vegetable",
    "food-prepared",
    "food-asian",
    "food-sweet",
    "drink",
    "transport-ground",
    "transport-water",
    "transport-air",
    "place-geographic",
    "sky-weather",
    "sport",
    "game",
    "event",
    "musical-instrument",
]
MAX_WORDS = 2  # longer names are mostly variants of a shorter one ("oncoming police car")
_LOOKALIKES = (
    "moon", " face", "oncoming", "suit", "service dog", "guide dog", "paw prints", "pig nose", "wing", "departure",
    "arrival", "construction", "tram car", "motorized", "reminder", "tickets", "liquid", "closed umbrella", "bus stop",
)  # fmt: skip
PEOPLE = [
    "1f46e",
    "1f477",
    "1f482",
    "1f478",
    "1f934",
    "1f9d1-200d-1f373",
    "1f9d1-200d-1f680",
    "1f9d1-200d-1f692",
    "1f9d1-200d-1f33e",
    "1f9d1-200d-1f3a8",
    "1f9d1-200d-1f52c",
    "1f385",
]


@dataclass(frozen=True)
class Concept:
    """One nameable thing: `index` is its cell in every atlas, `keywords` are CLDR's and OpenMoji's tags."""

    index: int
    name: str
    hexcode: str
    group: str
    keywords: tuple[str, ...]
    held_out: bool


def _find(folder: Path, hexcode: str, ending: str) -> Path | None:
    code = hexcode.lower()
    for name in (code, code.replace("-fe0f", ""), code + "-fe0f"):
        if (path := folder / f"{name}.{ending}").exists():
            return path
    return None


def _cell(path: Path) -> Image.Image:
    picture = Image.open(path).convert("RGBA")
    return picture if picture.size == (CELL, CELL) else picture.resize((CELL, CELL), Image.Resampling.LANCZOS)


def _atlas(cells: list[Image.Image], path: Path) -> None:
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for i, cell in enumerate(cells):
        sheet.paste(cell, ((i % COLUMNS) * CELL, (i // COLUMNS) * CELL))
    with replacing(path) as partial:
        sheet.save(partial, "WEBP", quality=88, alpha_quality=90, method=6)


def build(packages: Path, out: Path, held_out_share: float = 0.1, seed: int = 0) -> int:
    """Write `out`/{noto,twemoji,fluent,people}.webp and concepts.csv from unpacked npm packages; return the count.

    `packages` holds one folder per package, named as on npm with `/` and `@` dropped (`lobehub-fluent-emoji-3d`).
    """
    roots = {k: packages / name.lstrip("@").replace("/", "-") for k, (name, _, _) in SOURCES.items()}
    roots["openmoji"] = packages / "openmoji"
    if missing := [str(r) for r in roots.values() if not r.is_dir()]:
        raise InputError(f"No unpacked npm package at {', '.join(missing)}; run `memlib minisd data` to fetch them.")
    folders = {k: (roots[k] / inner, ending) for k, (_, inner, ending) in SOURCES.items()}
    with open(roots["openmoji"] / "data" / "openmoji.csv", encoding="utf-8", newline="") as handle:
        table = [row for row in csv.DictReader(handle) if not row["skintone"] and row["subgroups"] in SUBGROUPS]
    kept = []
    cells: dict[str, list[Image.Image]] = {k: [] for k in RENDERINGS}
    for row in table:
        name = row["annotation"].lower()
        there = {k: _find(folder, row["hexcode"], ending) for k, (folder, ending) in folders.items()}
        paths = {k: path for k, path in there.items() if path is not None}
        if len(paths) < len(there) or len(name.split()) > MAX_WORDS or any(w in name for w in _LOOKALIKES) or not name.isascii():
            continue
        tags = [t.strip().lower() for t in f"{row['tags']},{row['openmoji_tags']}".split(",")]
        keywords = [t for t in dict.fromkeys(tags) if t and t != name and t.isascii() and len(t.split()) <= 2]
        kept.append((name, row["hexcode"], row["group"], keywords))
        for k, path in paths.items():
            cells[k].append(_cell(path))
    held = set(np.random.default_rng([seed, 1]).permutation(len(kept))[: round(held_out_share * len(kept))].tolist())
    for k in RENDERINGS:
        _atlas(cells[k], out / f"{k}.webp")
    people = []
    for base in PEOPLE:
        first, *rest = base.split("-", 1)
        for tone in _TONE_CODES:
            code = "-".join(p for p in (first, tone, *rest) if p)
            if (drawing := _find(folders["noto"][0], code, "png")) is None:
                raise InputError(f"The package emoji-datasource-google has no drawing {code}; use version 16.0.0.")
            people.append(_cell(drawing))
    _atlas(people, out / "people.webp")
    rows = [(i, name, hexcode, group, int(i in held), "; ".join(keywords)) for i, (name, hexcode, group, keywords) in enumerate(kept)]
    write_table(out / "concepts.csv", pd.DataFrame(rows, columns=["index", "name", "hexcode", "group", "held_out", "keywords"]))
    versions = {k: json.loads((roots[k] / "package.json").read_text())["version"] for k in roots}
    write_text(out / "versions.json", json.dumps(versions, indent=1, sort_keys=True) + "\n")
    return len(kept)


class Ingredients:
    """The committed drawings and names. `drawing(rendering, index)` is RGBA float32 [64,64,4] in [0,1]."""

    def __init__(self, folder: Path):
        if not (folder / "concepts.csv").exists():
            raise InputError(f"No ingredients at {folder}; run `memlib minisd data` to build them.")
        with open(folder / "concepts.csv", encoding="utf-8", newline="") as handle:
            self.concepts = tuple(
                Concept(int(r["index"]), r["name"], r["hexcode"], r["group"],
                        tuple(k for k in r["keywords"].split("; ") if k), r["held_out"] == "1")
                for r in csv.DictReader(handle)
            )  # fmt: skip
        self._sheets = {k: Image.open(folder / f"{k}.webp").convert("RGBA") for k in (*RENDERINGS, "people")}
        self.trained = tuple(c for c in self.concepts if not c.held_out)
        self.held_out = tuple(c for c in self.concepts if c.held_out)

    def cell(self, rendering: str, index: int) -> Image.Image:
        x, y = (index % COLUMNS) * CELL, (index // COLUMNS) * CELL
        return self._sheets[rendering].crop((x, y, x + CELL, y + CELL))

    @lru_cache(maxsize=60_000)  # noqa: B019  one object for the process
    def drawing(self, rendering: str, index: int, size: int) -> Image.Image:
        """The drawing `index` of `rendering` ("noto", "twemoji", "fluent", "people") at `size` x `size` pixels."""
        return self.cell(rendering, index).resize((size, size), Image.Resampling.LANCZOS, reducing_gap=2.0)
