"""A sheet of random pictures for a person who says what they show before reading the prompts (the premise "named")."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from memlib.base.errors import InputError
from memlib.base.writing import replacing, write_table
from memlib.models.minisd2.data import world_of
from memlib.models.minisd2.paths import minisd2_folder
from memlib.models.minisd2.scenes import concepts
from memlib.models.substrate import load
from memlib.prompts.embedding import encode_prompts
from memlib.sampling.stored import PictureStore

PICTURES, COLUMNS, SIDE, EDGE = 40, 8, 256, 24
SHEET, SEEN, NAMED = "named.png", "named-seen.csv", "named.csv"


def draw_sheet(model: str) -> None:
    """Write named.png, forty numbered pictures of held-out prompts of any number of things, and named-seen.csv with a line for each, to be filled in.

    The prompts are in neither. Raises InputError for a model without a world.
    """
    world = world_of(Path(model))
    if world is None:
        raise InputError(f"{model} brings no world to name things of: give a folder of data/minisd2/models.")
    texts = [text for _, text in world.held_out(PICTURES, seed=7)]
    drawn = PictureStore().pictures(substrate := load(model), encode_prompts(substrate, texts), (0,))[:, 0]
    sheet = Image.new("RGB", (COLUMNS * SIDE, -(-PICTURES // COLUMNS) * (SIDE + EDGE)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, picture in enumerate(drawn):
        x, y = (number % COLUMNS) * SIDE, (number // COLUMNS) * (SIDE + EDGE)
        pen.text((x + 6, y + 6), str(number + 1), fill="black")
        sheet.paste(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, y + EDGE))
    with replacing(minisd2_folder() / SHEET) as partial:
        sheet.save(partial, "PNG")
    write_table(minisd2_folder() / SEEN, pd.DataFrame({"number": range(1, PICTURES + 1), "seen": ""}))


def judge_sheet(model: str) -> int:
    """Set what was seen against what was asked for: write named.csv, and return how many main things were named right.

    A thing is named right if what was seen holds its name, or one of the words that titles say of it. Raises InputError while a line is empty.
    """
    world = world_of(Path(model))
    if world is None:
        raise InputError(f"{model} brings no world to name things of: give a folder of data/minisd2/models.")
    with open(minisd2_folder() / SEEN, encoding="utf-8", newline="") as handle:
        seen = [row["seen"].strip().lower() for row in csv.DictReader(handle)]
    if len(seen) != PICTURES or not all(seen):
        raise InputError(f"{minisd2_folder() / SEEN} needs {PICTURES} lines that say what is seen: fill in those that are empty, with a dash where nothing is.")
    rows = []
    for number, (answer, (scene, text)) in enumerate(zip(seen, world.held_out(PICTURES, seed=7))):
        concept = concepts()[scene.main.concept]
        right = any(word.lower() in answer for word in (concept.name, *concept.words))
        rows.append([number + 1, answer, concept.name, text, int(right)])
    write_table(minisd2_folder() / NAMED, pd.DataFrame(rows, columns=["number", "seen", "main thing", "prompt", "right"]))
    return int(np.sum([row[-1] for row in rows]))
