"""What is counted or judged once for a whole group of prompts, beside the scores: U-Net rows of a picture, alignment with other prompts."""

from __future__ import annotations

import numpy as np

from memlib.base.hashing import digest
from memlib.experiment.group import Group
from memlib.mitigations import Mitigation, get
from memlib.sampling.batches import Cost

EVALUATIONS = "U-Net evaluations"
BY_CHANCE = "alignment by chance"
WITH_CHANGED = "alignment with changed prompt"


def counted(group: Group, mitigation: Mitigation, known: float | None = None) -> float:
    """Return the U-Net rows that one picture of a group takes under a mitigation; its pictures are made.

    Rows are counted while pictures are made, and kept in the store beside them. Where all pictures were there before and no count was, one
    prompt's are made once more, unless `known` says what a picture took. What a calibration takes belongs to the model and is not counted.
    """
    x = group.experiment
    key = {
        "U-Net rows": 1, "mitigation": mitigation.key, "seeds": list(x.seeds), "prompts": digest(list(group.prompts.prompts)),
        **x.keyed(mitigation.guidance(x.guidance)),
    }  # fmt: skip
    rows, made = x.cost.evaluations, x.cost.pictures
    group.pictures(mitigation)
    made = x.cost.pictures - made
    if known is not None:
        return x.store.score(key, lambda: known)
    if made == len(group) * len(x.seeds):
        return x.store.score(key, lambda: (x.cost.evaluations - rows) / made)
    return x.store.score(key, lambda: _rows_of_one_prompt(group, mitigation))


def _rows_of_one_prompt(group: Group, mitigation: Mitigation) -> float:
    x, cost = group.experiment, Cost()
    around = mitigation.around if mitigation.sampled else None
    for _ in x.batches(group.edited(mitigation).select([0]), mitigation.guidance(x.guidance), cost=cost, around=around, latents_only=True):
        pass
    return cost.evaluations / len(x.seeds)


def alignment_by_chance(group: Group) -> float | None:
    """Mean alignment of pictures without mitigation with the prompts of *other* pictures: what a method keeps that ignores the prompt.

    None with fewer than two prompts, or where alignment is not measured.
    """
    metric, texts = group.experiment.metrics["alignment"], list(group.prompts.prompts)
    if not metric.available or len(set(texts)) < 2:
        return None
    pictures = group.pictures(get("none"))

    def compute() -> float:
        shifts = range(1, min(len(texts), 6))
        return float(np.mean([metric(pictures, texts[shift:] + texts[:shift]) for shift in shifts]))

    key = {"score": BY_CHANCE, "metric": metric.fingerprint, "of": [digest(pictures), texts]}
    return group.experiment.store.score(key, compute)


def alignment_with_changed(group: Group, mitigation: Mitigation) -> np.ndarray | None:
    """Alignment [N, S] of a mitigation's pictures with the prompt as the mitigation has changed it; None where it is not measured."""
    x = group.experiment
    if not x.metrics["alignment"].available:
        return None
    pictures = group.pictures(mitigation)
    texts = [mitigation.rewrite(prompt, x.substrate.tokenizer) for prompt in group.prompts.prompts]
    metric = x.metrics["alignment"]
    return x.store.score({"score": "alignment", "metric": metric.fingerprint, "of": [digest(pictures), texts]}, lambda: metric(pictures, texts))
