"""Which prompts a trained MiniSD reproduces: the prompt sets that its own pictures decide."""

from __future__ import annotations

from pathlib import Path

from memlib.base.errors import InputError
from memlib.models.minisd2.prompt_sets import COLUMNS, write_csv, write_prompt_sets
from memlib.models.substrate import load
from memlib.probes.reproduced import NEEDED, SEEDS, reproduced
from memlib.sampling.stored import PictureStore

FOUND = (*COLUMNS, "seeds_tried", "seeds_above", "mean_similarity", "memorized")


def find(model: str) -> None:
    """Write found-NAME.csv, which repeated prompts the pipeline folder `model` reproduces with at least nine of ten seeds.

    For minisd-v1 also the set "memorized", of the pairs among them, and all sets that follow from training.yml. Raises InputError where it reproduces none.
    """
    name = Path(model).name
    rows = reproduced(load(model), PictureStore())
    memorized = [row for row in rows if row["memorized"]]
    print(f"{len(memorized)} of {len(rows)} repeated prompts are reproduced with at least {NEEDED} of {len(SEEDS)} seeds by {name}")
    write_csv(f"found-{name.removeprefix('minisd-')}", rows, FOUND)
    if name == "minisd-v1":
        exact = [row for row in memorized if row["group"] == "duplicated"]
        if not exact:
            raise InputError(f"{name} memorized no prompt: train it longer before building on it.")
        write_prompt_sets()
        write_csv("memorized", exact, FOUND)
