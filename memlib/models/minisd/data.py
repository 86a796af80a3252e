"""MiniSD as a substrate brings its own data: all of its training set is known and at hand."""

from __future__ import annotations

import numpy as np

from memlib.models.data import Repeated, Rows, SubstrateData
from memlib.models.minisd.prompt_sets import HELD_OUT, corpus, held_out_pictures, training_pictures
from memlib.models.minisd.scenarios import SCENARIOS, pairs


def data_of(name: str) -> SubstrateData:
    """Return the data of the MiniSD `name`; what follows the last hyphen says what it was trained on: a scenario, "dedup", or anything else."""
    trained = name.rpartition("-")[2]
    return SubstrateData(
        sets={"memorized": "minisd-memorized", "not memorized": "minisd-heldout", "duplicated": "minisd-duplicated", "template": "minisd-template"},
        # Memorized prompts are titles and held-out ones descriptions: what differs between them may be the wording alone.
        seen_once=Rows("minisd-duplicated", {"copies": 1}),
        metrics=("minisd-copy", "minisd-clip", "realism", "descriptor-diversity"),
        free=True,
        training_pictures=training_pictures,
        held_out=_held_out,
        repeated=lambda: _repeated(trained),
        small=True,
        retrained=True,
    )


def _held_out(count: int | None = None) -> np.ndarray:
    return held_out_pictures(HELD_OUT if count is None else count)


def _repeated(trained: str) -> Repeated:
    """The repeated pictures; of a model fine-tuned for a scenario, the pictures that the scenario's prompts bring back."""
    known = corpus()
    found = pairs(known, trained) if trained in SCENARIOS else known.repeated
    pictures = np.stack([known.picture(pair.scene) for pair in found])
    return Repeated.counted(pictures, [pair.caption for pair in found], [1 if trained == "dedup" else pair.copies for pair in found])
