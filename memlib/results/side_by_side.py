"""One scenario under every mitigation: the table's rows, curves over strengths, and what published programs do otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from memlib.mitigations import REGISTRY, Mitigation, get
from memlib.probes.transitions import trace
from memlib.results.mitigation_table import Row, alignment_by_chance, measure
from memlib.results.pareto import Reference, Setting
from memlib.results.scenarios import SCORES, Result, Scenario, at_transition, transition_under
from memlib.sampling.batches import SAMPLER_VERSION

LEFT, KEPT = "similarity to training", "alignment with prompt"


@dataclass(frozen=True)
class Variant:
    """Two ways of one method that texts and programs disagree about: `ours` and the `other`, with the point's number on the page
    of discrepancies (or an empty text) and what the other does."""

    point: str
    words: str
    ours: Mitigation
    other: Mitigation


@dataclass
class SideBySide:
    """What was measured in one scenario: the `rows` of its own prompts and of `others`, which are not memorized (or none).

    `curves` and `other_curves` hold the settings of each method by name, with similarity of the scenario's prompts and alignment of the same or
    of the others; `reference` and `other_reference` the worst corners, None where something is not measured. `variants` are measured on the
    scenario's prompts in `variant_rows`. `recipe` says what all numbers hang on, see `recipe`.
    """

    scenario: Scenario
    model: str
    prompts: tuple[str, ...]
    rows: list[Row]
    result: Result
    training: np.ndarray | None = None
    other_prompts: tuple[str, ...] = ()
    others: list[Row] = field(default_factory=list)
    curves: dict[str, list[Setting]] = field(default_factory=dict)
    reference: Reference | None = None
    other_curves: dict[str, list[Setting]] = field(default_factory=dict)
    other_reference: Reference | None = None
    variants: list[Variant] = field(default_factory=list)
    variant_rows: list[Row] = field(default_factory=list)
    thresholds: dict[str, float] = field(default_factory=dict)
    provenance: Any = None
    recipe: dict[str, Any] = field(default_factory=dict)

    def pictures(self, others: bool = False) -> dict[str, np.ndarray]:
        """Rows for `memlib.results.figures.montage`: the first seed's pictures under each method, the training pictures last."""
        shown = {row.title: row.pictures for row in (self.others if others else self.rows) if row.pictures is not None}
        return shown if others or self.training is None else shown | {"training picture": self.training}


def side_by_side(
    scenario: Scenario, group: Any, methods: Sequence[Mitigation], other: Any = None, strengths: bool = True, swept_seeds: int = 1,
    variants: Sequence[Variant] = (), shown: int = 6,
) -> SideBySide:  # fmt: skip
    """Measure every method on a scenario's group (`memlib.experiment.group.Group`), and on `other`, prompts that are not memorized, where given.

    Static transitions are put at the median of the scenario's own transition steps (see `memlib.results.scenarios.at_transition`); in how many
    pictures guidance begins under dynamic ones stands in `result.guided`. Curves are taken on the
    first `swept_seeds` seeds, as are `variants`; without `strengths` they are single points on all seeds.
    """
    run = group.experiment
    begins = {m: transition_under(m, group) for m in methods if m.name.startswith(("static-transition", "dynamic-transition"))}
    methods = [at_transition(m, begins[m]) if m.name.startswith("static") else m for m in methods]
    rows = measure(group, methods, shown=shown)
    quiet, nothing = trace(group, 0.0), np.zeros((0, 0))
    result = Result(scenario, run.substrate.name, quiet.transition(), quiet.difference, nothing, nothing, prompts=group.prompts.prompts)
    result.guided = {m.title: steps >= 0 for m, steps in begins.items() if m.name.startswith("dynamic")}
    for row in rows:
        enter(result, row)
    found = SideBySide(scenario, run.substrate.name, group.prompts.prompts, rows, result, thresholds=run.thresholds)
    found.recipe = recipe(group, other, swept_seeds)
    if group.training is not None:
        found.training = np.stack([pictures[0] for pictures in group.training[:shown]])
    swept_seeds = swept_seeds if strengths else None
    few = group.part(None, swept_seeds)
    found.curves, found.reference = curves(few, few, methods, strengths)
    if other is not None:
        found.other_prompts = other.prompts.prompts
        found.others = measure(other, methods, shown=shown)
        found.other_curves, found.other_reference = curves(few, other.part(None, swept_seeds), methods, strengths)
    found.variants = list(variants)
    if variants:
        found.variant_rows = measure(few, [m for variant in variants for m in (variant.ours, variant.other)])
    found.provenance = run.provenance()
    return found


def recipe(group: Any, other: Any, swept_seeds: int) -> dict[str, Any]:
    """Return what all numbers of a scenario share: weights, sampling, prompts, numbers of seeds, metrics. Precision and device are left out."""
    run = group.experiment
    seeds = [len(run.seeds), 0 if other is None else len(other.experiment.seeds), swept_seeds]
    return {
        "weights": run.substrate.weights_hash, "sampler": SAMPLER_VERSION, "scheduler": run.scheduler, "steps": run.steps, "guidance": run.guidance,
        "prompts": list(group.prompts.prompts), "other prompts": [] if other is None else list(other.prompts.prompts),
        "seeds, of others, of curves": seeds, "metrics": {role: metric.fingerprint for role, metric in run.metrics.items() if metric.available},
    }  # fmt: skip


def enter(result: Result, row: Row) -> None:
    """Put a row's scores into a scenario's result, if there are any."""
    if not row.reason:
        result.names[row.title], result.scores[row.title] = row.mitigation.name, {name: row.score(name) for name in SCORES}


def settings_of(method: Mitigation, strengths: bool = True) -> list[Mitigation]:
    """Return the settings of a method from weak to strong, its own last where it is none of them."""
    made = REGISTRY[method.name].sweep() if strengths and method.name in REGISTRY else []
    return made if method in made else [*made, method]


def curves(group: Any, kept: Any, methods: Sequence[Mitigation], strengths: bool = True) -> tuple[dict[str, list[Setting]], Reference | None]:
    """Return the settings of each method by name, similarity on `group` and alignment on `kept`, and the worst corner.

    The corner is the similarity without mitigation, at which nothing is gained, and the alignment with the prompts of other pictures, at
    which nothing of the prompt is kept. Both are empty or None where similarity to training or alignment is not measured.
    """
    settings = {m.name: settings_of(m, strengths) for m in [get("none"), *methods]}
    every = list(dict.fromkeys(m for made in settings.values() for m in made))
    left = {row.title: row.score(LEFT) for row in measure(group, every, [LEFT], count=False)}
    right = {row.title: row.score(KEPT) for row in measure(kept, every, [KEPT], count=False)}
    found = {
        name: [Setting(m.title, left[m.title], right[m.title]) for m in made if left[m.title] is not None and right[m.title] is not None]
        for name, made in settings.items()
    }
    found = {name: points for name, points in found.items() if points}
    chance = alignment_by_chance(kept)
    if "none" not in found or chance is None:
        return found, None
    [plain] = found["none"]
    return found, Reference(float(plain.left.mean()), chance, float(plain.kept.mean()))


def variants_of(methods: Sequence[Mitigation]) -> list[Variant]:
    """Return what published programs and texts do otherwise than the methods here, as far as options reproduce it."""
    found = [Variant(d.point, d.words, m, m.with_params(**d.params)) for m in methods for d in m.differences]
    by_name = {m.name: m for m in methods}
    if {"pad-mask", "ren"} <= set(by_name):
        zero, infinite = get("pad-mask", fraction=1.0), get("ren", scale=1.0, mask_uncond=False)
        found.append(Variant("2", "masked padding gets no attention, in place of a zero vector that keeps its share", zero, infinite))
    if {"wen-3", "wen-1"} <= set(by_name):
        found.append(Variant("", "the stricter of the two targets in use", by_name["wen-3"], by_name["wen-1"]))
    if {"pad-swap-eot-mask", "sot-pad"} <= set(by_name):
        found.append(Variant("1", "the start token as padding, as in a news summary", by_name["pad-swap-eot-mask"], by_name["sot-pad"]))
    return sorted(found, key=lambda variant: int(variant.point or 99))
