"""The second miniature's prompt sets as CSV files under data/minisd2/prompts, and the pictures that belong to their rows.

`duplicated` and `template` hold what training repeats; `once` titles that it shows once, of the repeated ones' kind; `heldout` descriptions of
held-out combinations. All follow from training.yml.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from memlib.base.errors import InputError
from memlib.base.writing import write_table
from memlib.models.minisd.corpus import Pair
from memlib.models.minisd.scenes import Scene
from memlib.models.minisd2.corpus import Corpus
from memlib.models.minisd2.language import reference
from memlib.models.minisd2.paths import minisd2_folder, training_settings
from memlib.models.minisd2.scenarios import SCENARIOS, pairs, substrate_name
from memlib.models.minisd2.scenes import concepts

HELD_OUT = 200
SEEN_ONCE = 144  # as many as there are duplicated pairs
COLUMNS = ("prompt", "training_picture", "description", "group", "copies", "length", "main", "places", "background", "kind")


@lru_cache(1)
def corpus() -> Corpus:
    """The corpus of training.yml."""
    return Corpus(**training_settings()["corpus"])


@lru_cache(1)
def seen_once() -> tuple[Pair, ...]:
    """Titles that a U-Net of training.yml is shown once."""
    block = training_settings()["unet"]
    return corpus().seen_once(SEEN_ONCE, block["steps"] * block["batch"])


def row(prompt: str, picture: str, scene: Scene, group: str, copies: int, length: str) -> dict[str, Any]:
    """A row of a prompt set: what the caption says, and what the scene shows."""
    return {
        "prompt": prompt, "training_picture": picture, "description": reference(scene), "group": group, "copies": copies, "length": length,
        "main": concepts()[scene.main.concept].name, "places": "; ".join(thing.place for thing in scene.things),
        "background": "; ".join(scene.background.colours), "kind": scene.background.kind,
    }  # fmt: skip


def row_of(pair: Pair) -> dict[str, Any]:
    return row(pair.caption, pair.name, pair.scene, pair.group, pair.copies, pair.length)


def write_csv(name: str, rows: Iterable[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> None:
    """Write data/minisd2/prompts/minisd-`name`.csv."""
    # As objects: what a row lacks must not make floats of the others' whole numbers.
    write_table(minisd2_folder() / "prompts" / f"minisd-{name}.csv", pd.DataFrame(list(rows), columns=list(columns), dtype=object))


def write_prompt_sets() -> None:
    """Write all sets but those that a trained model decides ("memorized")."""
    of_templates = {pair.caption: pair for pair in reversed(corpus().templates)}
    colours = len(corpus().templates) // max(1, len(of_templates))
    write_csv("duplicated", map(row_of, corpus().pairs))
    write_csv("once", map(row_of, seen_once()))
    write_csv("template", (
        {**row_of(pair), "training_picture": pair.name.partition("-")[0], "copies": pair.copies * colours} for pair in reversed(of_templates.values())
    ))  # fmt: skip
    write_csv("heldout", (row(text, "", scene, "held out", 0, "held out") for scene, text in corpus().held_out(HELD_OUT)))
    for scenario in SCENARIOS:
        write_csv(substrate_name(scenario).removeprefix("minisd-"), _scenario_rows(scenario))


def _scenario_rows(scenario: str) -> list[dict[str, Any]]:
    """A row a picture, or a class, whose pictures have nothing else in common than its caption."""
    found = pairs(corpus(), scenario)
    if scenario != "class":
        return [row_of(pair) for pair in found]
    first = {pair.caption: pair for pair in reversed(found)}
    unknown = {"description": "", "places": "", "background": "", "kind": ""}
    return [{**row_of(pair), "training_picture": pair.name.rpartition("-")[0], **unknown} for pair in reversed(first.values())]


def pairs_of(name: str) -> list[Pair]:
    """The pairs behind a `training_picture` entry: one, or six of a template or a class. Raises InputError for a name that no set has."""
    scenario = name.partition("-")[0]
    if scenario == "once" and name.partition("-")[2].isdigit() and (once := corpus().title_at(int(name.partition("-")[2]))):
        return [once]
    known = pairs(corpus(), scenario) if scenario in SCENARIOS else corpus().repeated
    found = [pair for pair in known if pair.name == name or pair.name.startswith(f"{name}-")]
    if not found:
        raise InputError(f"MiniSD has no training picture {name!r}; names are those of the column training_picture of its prompt sets.")
    return found


def training_pictures(name: str) -> np.ndarray:
    """The training pictures of a `training_picture` entry, uint8 [K, 64, 64, 3]. Raises InputError for an unknown name."""
    return corpus().paint([pair.scene for pair in pairs_of(name)]).cpu().numpy()


def held_out_pictures(count: int = HELD_OUT) -> np.ndarray:
    """The real pictures of the held-out set, in its order, uint8 [N, 64, 64, 3]."""
    return corpus().paint([scene for scene, _ in corpus().held_out(HELD_OUT)[:count]]).cpu().numpy()
