"""Every mitigation on one group of prompts, side by side: scores, U-Net evaluations, and a few pictures of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from memlib.base.errors import InputError, NotMeasured
from memlib.base.hashing import digest
from memlib.judging.estimates import Estimate, mean_interval, paired_difference, quantile_interval, share_interval
from memlib.mitigations import Mitigation, get
from memlib.sampling.batches import Cost, sample_batches, uncond_states
from memlib.sampling.recipe import Recipe, picture_recipe

SCORES = ("similarity to training", "similarity to original", "alignment with prompt", "quality", "diversity")
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Row:
    """One mitigation on N prompts x S seeds: `scores` are [N, S] ([N] for diversity), None where a metric or picture is not at hand.

    `evaluations` counts U-Net rows a picture, `pictures` [K, H, W, 3] are the first seed's of the first prompts. `reason` says why
    there is nothing, where the mitigation cannot be used on this substrate.
    """

    mitigation: Mitigation
    scores: Mapping[str, np.ndarray | None] = field(default_factory=dict)
    evaluations: float = float("nan")
    pictures: np.ndarray | None = None
    reason: str = ""

    @property
    def title(self) -> str:
        return self.mitigation.title

    def score(self, name: str) -> np.ndarray | None:
        return self.scores.get(name)


def measure(group: Any, mitigations: Iterable[Mitigation], scores: Sequence[str] = SCORES, shown: int = 0, count: bool = True) -> list[Row]:
    """Measure each mitigation on a group (`memlib.experiment.group.Group`), no mitigation first; one that cannot be used says why.

    The first seed's pictures of `shown` prompts are kept; U-Net rows are left out without `count`.
    """
    found, every = [], list(dict.fromkeys([get("none"), *mitigations]))
    missing = {m: m.missing(group.experiment.substrate) for m in every}
    made = group.make(m for m in every if not missing[m])
    for mitigation in every:
        try:
            if missing[mitigation]:
                raise NotMeasured(missing[mitigation])
            pictures, rows = counted(group, mitigation, made.get(mitigation)) if count else (group.pictures(mitigation), float("nan"))
        except (InputError, NotMeasured) as error:
            if mitigation.name == "none":
                raise
            found.append(Row(mitigation, reason=str(error)))
            continue
        values = {name: group.score_of(name, pictures) for name in scores}
        found.append(Row(mitigation, values, rows, pictures[:shown, 0].copy() if shown else None))
    return found


def counted(group: Any, mitigation: Mitigation, known: float | None = None) -> tuple[np.ndarray, float]:
    """Return the pictures of a group under a mitigation, [N, S, H, W, 3], and the U-Net rows that one of them took.

    Rows are counted while pictures are made, and kept in the store beside them. Where all pictures were there before and no count was, one
    prompt's are made once more, unless `known` says what a picture took. What a calibration takes belongs to the model and is not counted.
    """
    x = group.experiment
    guidance = mitigation.guidance(x.guidance)
    key = {
        "U-Net rows": 1, "mitigation": mitigation.key, "seeds": list(x.seeds), "prompts": digest(list(group.prompts.prompts)),
        **picture_recipe(x.substrate, uncond_states(x.substrate), Recipe(x.steps, guidance, x.scheduler)),
    }  # fmt: skip
    rows, made = x.cost.evaluations, x.cost.pictures
    pictures = group.pictures(mitigation)
    made = x.cost.pictures - made
    if known is not None:
        return pictures, x.store.score(key, lambda: known)
    if made == len(group) * len(x.seeds):
        return pictures, x.store.score(key, lambda: (x.cost.evaluations - rows) / made)
    return pictures, x.store.score(key, lambda: _rows_of_one_prompt(group, mitigation))


def _rows_of_one_prompt(group: Any, mitigation: Mitigation) -> float:
    x, cost = group.experiment, Cost()
    batches = sample_batches(
        x.substrate,
        group.edited(mitigation).select([0]),
        x.seeds,
        Recipe(x.steps, mitigation.guidance(x.guidance), x.scheduler),
        batch_size=x.batch_size,
        cost=cost,
        around=mitigation.around if mitigation.sampled else None,
        latents_only=True,
    )
    for _ in batches:
        pass
    return cost.evaluations / len(x.seeds)


def alignment_by_chance(group: Any) -> float | None:
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

    key = {"score": "alignment by chance", "metric": metric.fingerprint, "of": [digest(pictures), texts]}
    return group.experiment.store.score(key, compute)


def alignment_with_changed(group: Any, mitigation: Mitigation) -> np.ndarray | None:
    """Alignment [N, S] of a mitigation's pictures with the prompt as the mitigation has changed it; None where it is not measured."""
    x = group.experiment
    if not x.metrics["alignment"].available:
        return None
    pictures = group.pictures(mitigation)
    texts = [mitigation.rewrite(prompt, x.substrate.tokenizer) for prompt in group.prompts.prompts]
    metric = x.metrics["alignment"]
    return x.store.score({"score": "alignment", "metric": metric.fingerprint, "of": [digest(pictures), texts]}, lambda: metric(pictures, texts))


def told(estimate: Estimate | None, digits: int = 2) -> str:
    """An estimate as text, or "not measured"."""
    return NOT_MEASURED if estimate is None else estimate.text(digits)


def _cell(values: np.ndarray | None, of: Callable[[np.ndarray], Estimate] = mean_interval) -> str:
    return NOT_MEASURED if values is None else told(of(values))


def table(rows: Sequence[Row], threshold: float | None) -> pd.DataFrame:
    """One row a mitigation: means with 95 % intervals, 95th percentile and share above the copy threshold, U-Net evaluations a picture."""
    shown = {}
    for row in rows:
        if row.reason:
            shown[row.title] = {"note": f"not measured: {row.reason}"}
            continue
        similarity = row.score("similarity to training")
        shown[row.title] = {
            "acts on": "" if row.mitigation.name == "none" else row.mitigation.family,
            "similarity to training": _cell(similarity),
            "95th percentile": _cell(similarity, lambda v: quantile_interval(v, 0.95, resamples=500)),
            "above the threshold": _cell(None if similarity is None or threshold is None else similarity >= threshold, share_interval),
            **{name: _cell(row.score(name)) for name in SCORES[1:]},
            "U-Net evaluations": f"{row.evaluations:.0f}",
        }
    return pd.DataFrame(shown).T.fillna("")


def change(rows: Sequence[Row], title: str, score: str, baseline: str = "none") -> Estimate | None:
    """Mean of a score under one mitigation minus under another, paired by prompt and seed; None where one was not measured."""
    by = {row.title: row for row in rows}
    values = [by[name].score(score) if name in by else None for name in (title, baseline)]
    return None if any(v is None for v in values) else paired_difference(*values)
