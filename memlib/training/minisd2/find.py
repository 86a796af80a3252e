"""Which prompts a trained MiniSD reproduces: the prompt sets that its own pictures decide."""

from __future__ import annotations

from pathlib import Path

from memlib.base.errors import InputError
from memlib.models.minisd2.prompt_sets import COLUMNS, write_csv, write_prompt_sets
from memlib.models.substrate import load
from memlib.probes.reproduced import FOUND, memorized_pairs, reproduced
from memlib.sampling.stored import PictureStore


def find(model: str) -> None:
    """Write found-NAME.csv, which repeated prompts the pipeline folder `model` reproduces with at least nine of ten seeds.

    For minisd-v1 also the set "memorized", of the pairs among them, and all sets that follow from training.yml. Raises InputError where it reproduces none.
    """
    name = Path(model).name
    rows = reproduced(load(model), PictureStore())
    exact = memorized_pairs(rows, name)
    write_csv(f"found-{name.removeprefix('minisd-')}", rows, COLUMNS + FOUND)
    if name == "minisd-v1":
        if not exact:
            raise InputError(f"{name} memorized no prompt: train it longer before building on it.")
        write_prompt_sets()
        write_csv("memorized", exact, COLUMNS + FOUND)
