"""MiniSD's prompt sets as CSV files under data/minisd/prompts, and the pictures that belong to their rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from memlib.base.errors import InputError
from memlib.base.writing import write_table
from memlib.models.minisd.captions import reference_caption
from memlib.models.minisd.corpus import TEMPLATES, Corpus
from memlib.models.minisd.ingredients import TONES
from memlib.models.minisd.paths import minisd_folder, settings
from memlib.models.minisd.scenarios import SCENARIOS, pairs, substrate_name
from memlib.models.minisd.scenes import Scene

HELD_OUT = 200
COLUMNS = ("prompt", "training_picture", "description", "group", "copies", "length", "main", "places", "background", "kind")


@lru_cache(1)
def corpus() -> Corpus:
    """The corpus of the committed ingredients and training.yml."""
    block = settings()["corpus"]
    return Corpus(minisd_folder(), fresh=block["fresh"], seed=block["seed"])


def _row(prompt: str, picture: str, scene: Scene, group: str, copies: int, length: str) -> dict:
    concepts = corpus().ingredients.concepts
    main = f"person {scene.main.concept}" if scene.tone is not None else concepts[scene.main.concept].name
    description = "" if scene.tone is not None else reference_caption(scene, corpus().ingredients)
    return {
        "prompt": prompt, "training_picture": picture, "description": description, "group": group, "copies": copies, "length": length,
        "main": main, "places": "; ".join(t.place for t in scene.things), "background": "; ".join(scene.background.colours),
        "kind": scene.background.kind,
    }  # fmt: skip


def write_csv(name: str, rows: Sequence[dict], columns: Sequence[str] = COLUMNS) -> None:
    # As objects: what a row lacks must not make floats of the others' whole numbers.
    write_table(minisd_folder() / "prompts" / f"{name}.csv", pd.DataFrame(rows, columns=list(columns), dtype=object))


def write_prompt_sets() -> None:
    """Write the duplicated, template, held-out and scenarios' sets; they follow from the seeds alone."""
    c = corpus()
    write_csv("minisd-duplicated", [_row(p.caption, p.name, p.scene, p.group, p.copies, p.length) for p in c.pairs])
    templates = [c.templates[i * len(TONES)] for i in range(TEMPLATES)]
    copies = sum(p.copies for p in c.templates[: len(TONES)])
    write_csv("minisd-template", [_row(p.caption, p.name.split("-")[0], p.scene, "template", copies, "template") for p in templates])
    held = c.held_out(HELD_OUT, "combinations")
    write_csv("minisd-heldout", [_row(text, "", scene, "held out", 0, "held out") for scene, text in held])
    for scenario in SCENARIOS:
        write_csv(substrate_name(scenario), _scenario_rows(scenario))
    print(f"Prompt sets written to {minisd_folder() / 'prompts'}")


def _scenario_rows(scenario: str) -> list[dict]:
    """A row per picture, or per class, whose prompt is its own description and whose pictures have nothing else in common."""
    found = pairs(corpus(), scenario)
    if scenario != "class":
        return [_row(p.caption, p.name, p.scene, scenario, p.copies, p.length) for p in found]
    first = {p.caption: p for p in reversed(found)}
    rows = [_row(p.caption, p.name.rpartition("-")[0], p.scene, scenario, p.copies, p.length) for p in reversed(first.values())]
    return [{**row, "description": "", "places": "", "background": "", "kind": ""} for row in rows]


def training_pictures(name: str) -> np.ndarray:
    """The training pictures of a row by its `training_picture` entry: one for a pair, six for a template or a class, uint8 [K,64,64,3].

    Raises InputError for a name that is neither.
    """
    c = corpus()
    scenario = name.partition("-")[0]
    known = pairs(c, scenario) if scenario in SCENARIOS else c.repeated
    found = [p for p in known if p.name == name or p.name.startswith(f"{name}-")]
    if not found:
        raise InputError(f"MiniSD has no training picture {name!r}; names are those of the column training_picture of its prompt sets.")
    return np.stack([c.picture(p.scene) for p in found])


def held_out_pictures(count: int = HELD_OUT) -> np.ndarray:
    """The real pictures of the held-out set, in its order, uint8 [N,64,64,3]."""
    return np.stack([corpus().picture(scene) for scene, _ in corpus().held_out(HELD_OUT, "combinations")[:count]])
