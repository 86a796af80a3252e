"""The scenarios of `basin` Section 6: which model, which prompts, which methods, and what is compared across them.

A scenario's model is the substrate itself (its own memorized prompts), or one fine-tuned from it: MiniSD's come by name, others are
folders written by `python -m memlib.training.finetune`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memlib.base.errors import InputError
from memlib.experiment import Experiment
from memlib.experiment.group import Group
from memlib.judging.claims import reported
from memlib.judging.equivalence import relative_change
from memlib.judging.estimates import Estimate, bootstrap
from memlib.metrics.distribution import kernel_distance
from memlib.mitigations import REGISTRY, Mitigation, get
from memlib.models.catalogue import SUBSTRATES, locate
from memlib.probes.transitions import trace
from memlib.results.table import change, matrix, name_of

SHARED_SPREAD = 0.05  # share of the schedule up to which claim B3 takes a transition point to be one for all
RESAMPLES = 5_000
SIMILARITY = "similarity to training"


@dataclass(frozen=True)
class Scenario:
    """One way in which memorization comes about; `methods` are those that the text uses there, `place` is its table."""

    key: str
    number: str
    title: str
    kind: str
    methods: tuple[str, ...]
    place: str


_STATIC, _DYNAMIC = ("static-transition", "static-transition-opposite"), ("dynamic-transition", "dynamic-transition-opposite")
SCENARIOS: dict[str, Scenario] = {
    scenario.key: scenario
    for scenario in (
        Scenario("small", "1", "small set overfitted", "static", _STATIC, "Table 1"),
        Scenario("large", "1b", "ten times larger set", "static", _STATIC[:1], "Table 5"),
        Scenario("class", "2", "class captions", "static", _STATIC[:1], "Table 2"),
        Scenario("duplicated", "3", "duplicates among single pictures", "dynamic", _DYNAMIC, "Table 3"),
        Scenario("pretrained", "4", "pre-trained model", "dynamic", _DYNAMIC, "Table 4"),
    )
}


def place(scenario: str, substrate: str, model: str = "auto") -> tuple[str, str] | str:
    """Return a scenario's model (substrate name or folder) and prompt set, or a sentence on why there is none.

    `model` "auto" is the substrate's own where it has one by name (minisd-v1-small), else a folder written by
    `python -m memlib.training.finetune` with its prompts.csv. Raises InputError for an unknown scenario and for a folder without prompts.
    """
    if scenario not in SCENARIOS:
        raise InputError(f"Unknown scenario {scenario!r}: use one of {', '.join(SCENARIOS)}.")
    if scenario == "pretrained":
        return substrate, "memorized"
    if model != "auto":
        prompts = Path(model).expanduser() / "prompts.csv"
        if not prompts.is_file():
            raise InputError(f"{model} has no prompts.csv with the captions it was trained on: write it, with columns prompt and training_picture.")
        return str(Path(model).expanduser()), str(prompts)
    name = f"{substrate}-{scenario}"
    if name not in SUBSTRATES:
        return (
            f"There is no model fine-tuned from {substrate} here: make one with `python -m memlib.training.finetune` and give its folder as {scenario}_model."
        )
    try:
        locate(name)
    except InputError as error:
        return str(error)
    return name, name


def earlier_methods() -> list[Mitigation]:
    """The registered mitigations of others with which the text compares its own in its tables."""
    compared = set(reported(text="basin")["method"]) - {"none"}
    return [m for m in REGISTRY.values() if compared & set(m.reported) and not m.source.startswith("basin")]


def transition_under(method: Mitigation, group: Group) -> np.ndarray:
    """Return a group's transition steps [P, S] (-1 for none) under the guidance that a method has before the transition.

    For the methods of `basin`: static and dynamic transitions, with and without opposite guidance.
    """
    before = method.guidance(group.experiment.guidance).params["before"]
    return trace(group, before).transition()


def at_transition(method: Mitigation, steps: np.ndarray) -> Mitigation:
    """Return a static transition whose point is the median of the dynamic ones, `steps` [P, S] (-1 for none); others unchanged.

    The text reads a scenario's static point off its mean trace. A mitigation without a parameter `step`, or `steps` without any
    transition, leaves the method as it is.
    """
    found = steps[steps >= 0]
    if "step" not in method.params or not found.size:
        return method
    return method.with_params(step=int(np.median(found)))


def _valid(steps: np.ndarray) -> np.ndarray:
    return steps[(steps >= 0).any(1)]


def _deviation(steps: np.ndarray, total: int) -> float:
    values = steps[steps >= 0]
    return float(values.std(ddof=1)) / total if values.size > 1 else 0.0


def spread(steps: np.ndarray, total: int) -> Estimate | None:
    """Standard deviation of the transition steps [P, S] as a share of `total` steps, bootstrap over prompts.

    Pictures without a transition (-1) are left out; None with fewer than two prompts that have one.
    """
    kept = _valid(steps)
    return None if len(kept) < 2 else _estimate(lambda rows: _deviation(kept[rows], total), [kept])


def spread_difference(first: np.ndarray, second: np.ndarray, total: int) -> Estimate | None:
    """Spread of the first minus that of the second, steps [P, S] and [Q, S] of independent prompts."""
    sides = [_valid(steps) for steps in (first, second)]
    if min(map(len, sides)) < 2:
        return None
    return _estimate(lambda one, two: _deviation(sides[0][one], total) - _deviation(sides[1][two], total), sides)


def effect_share(none: np.ndarray, method: np.ndarray, own: np.ndarray) -> Estimate | None:
    """How much `method` lowers the mean of `none` as a share of what `own` does, all [P, S] on the same prompts and seeds.

    None where `own` lowers nothing, so that there is nothing to compare with, or with fewer than two prompts.
    """
    falls = [(none - other).mean(1) for other in (method, own)]
    if len(none) < 2 or falls[1].mean() <= 0:
        return None

    def share(rows: np.ndarray) -> float:
        below = falls[1][rows].mean()
        return float(falls[0][rows].mean() / below) if below > 0 else np.inf

    return _estimate(share, [none])


def _estimate(statistic: Callable[..., float], tables: Sequence[np.ndarray]) -> Estimate:
    value = statistic(*(np.arange(len(table)) for table in tables))
    # Infinite resamples (a share of nothing) belong to the upper end: quantiles are taken of the draws themselves.
    return bootstrap(lambda *drawn: np.array([statistic(*rows) for rows in zip(*drawn, strict=True)]), tables, value,
                     rows=True, resamples=RESAMPLES, method="nearest")  # fmt: skip


def scenario_group(
    scenario: str, substrate: str, model: str = "auto", memorized: str = "memorized", n_prompts: int | None = None, **sampling: Any
) -> Group | str:
    """Return a scenario's prompts under its model (see `place`), or a sentence on why there are none; `sampling` is passed to `Experiment`.

    Raises InputError for a model that was given and cannot be loaded.
    """
    where = place(scenario, substrate, model)
    if isinstance(where, str):
        return where
    try:
        run = Experiment(where[0], **sampling)
    except InputError as error:
        if scenario == "pretrained" or model != "auto":
            raise
        return str(error)  # a difference file that belongs to another base
    own = scenario == "pretrained"
    return run.group(memorized if own else where[1], n_prompts, "memorized" if own else SCENARIOS[scenario].title)


def placed(methods: Sequence[Mitigation], group: Group) -> tuple[list[Mitigation], dict[str, np.ndarray]]:
    """Return the methods with static transitions at the group's own point (`at_transition`), and in which pictures guidance begins under the
    methods that wait for a transition, bool [P, S] by title."""
    begins = {m: transition_under(m, group) for m in methods if m.name.startswith(("static-transition", "dynamic-transition"))}
    moved = [at_transition(m, begins[m]) if m.name.startswith("static") else m for m in methods]
    return moved, {m.title: steps >= 0 for m, steps in begins.items() if m.name.startswith("dynamic")}


def distances(group: Group, methods: Sequence[Mitigation]) -> dict[str, tuple[float, float]]:
    """Return by title the kernel distance of a group's pictures to real ones, with its standard deviation over subsets.

    Real are pictures that the substrate brings and no model saw; where it has none, the prompts' training pictures, as in the text. A method is
    left out, and so are all of them, where there are no features or fewer than two pictures on either side.
    """
    held_out, training = group.experiment.substrate.data.held_out, group.training
    real = held_out(None) if held_out else None if training is None else np.concatenate(training)
    features = _features(group.experiment.metrics)
    if features is None or real is None or len(real) < 2:
        return {}
    reference = features(real)
    found = {m.title: features(group.pictures(m)).reshape(-1, reference.shape[-1]) for m in methods}
    return {title: kernel_distance(own, reference, np.random.default_rng(0)) for title, own in found.items() if len(own) > 1}


def _features(metrics: Any) -> Any:
    """The features of distribution distances: Inception's where the substrate has them, else the evaluator's (MiniSD)."""
    if "distribution" in set(metrics):
        return metrics.distribution if metrics.distribution.available else None
    return metrics.alignment.pictures if metrics.alignment.available else None


def strips(group: Group, methods: Sequence[Mitigation], count: int) -> dict[str, np.ndarray]:
    """Rows for `memlib.results.figures.montage`: the first seed's pictures of the first prompts under each method, training pictures last."""
    rows = range(min(count, len(group)))
    shown = {m.title: group.some_pictures(m, rows, 1)[:, 0] for m in methods}
    return shown if group.training is None else shown | {"training picture": np.stack([group.training[row][0] for row in rows])}


def own_methods(scenario: str, methods: Sequence[Mitigation]) -> list[Mitigation]:
    """Return those of the methods that the text uses in a scenario."""
    return [m for m in methods if m.name in SCENARIOS[scenario].methods]


def least_lowering(rows: pd.DataFrame, own: Sequence[Mitigation]) -> Estimate | None:
    """Change of similarity to training under that of `own` methods that lowers it least, paired; None where one was not measured."""
    found = [change(rows, SIMILARITY, method) for method in own]
    return None if None in found else max(filter(None, found), key=lambda estimate: estimate.value, default=None)


def largest_cost(rows: pd.DataFrame, own: Sequence[Mitigation], metric: str) -> Estimate | None:
    """Change of a score under that of `own` methods that costs most, as a share of the mean without mitigation."""
    none, under = matrix(rows, metric, get("none")), [matrix(rows, metric, method) for method in own]
    if none is None or none.mean() <= 0:
        return None
    found = [relative_change(values, none) for values in under if values is not None]
    return min(found, key=lambda estimate: estimate.value, default=None) if len(found) == len(own) else None


def shares_of_effect(measured: Mapping[str, tuple[pd.DataFrame, Sequence[Mitigation]]]) -> dict[str, dict[str, Estimate | None]]:
    """By earlier method and scenario: how much it lowers similarity, as a share of what the better of the text's own does.

    `measured` has by scenario its rows and the methods as they were placed there.
    """
    earlier = [method.name for method in earlier_methods()]
    found: dict[str, dict[str, Estimate | None]] = {name: {} for name in earlier}
    for key, (rows, methods) in measured.items():
        none = matrix(rows, SIMILARITY, get("none"))
        own = [values for m in own_methods(key, methods) if (values := matrix(rows, SIMILARITY, m)) is not None]
        best = min(own, key=np.mean) if none is not None and own else None
        for method in methods:
            if method.name in found and _has_scores(rows, method):
                values = matrix(rows, SIMILARITY, method)
                found[method.name][key] = None if none is None or best is None or values is None else effect_share(none, values, best)
    return found


def _has_scores(rows: pd.DataFrame, method: Mitigation) -> bool:
    name, params = name_of(method)
    return bool(((rows["method"] == name) & (rows["params"] == params) & (rows["note"] == "")).any())


def weakest_scenario(shares: Mapping[str, Mapping[str, Estimate | None]]) -> Estimate | None:
    """The lowest share of each earlier method over all scenarios, and of these the highest; None unless all are measured."""
    lowest = []
    for by_scenario in shares.values():
        measured = [estimate for estimate in by_scenario.values() if estimate is not None]
        if set(by_scenario) != set(SCENARIOS) or len(measured) < len(by_scenario):
            return None
        lowest.append(min(measured, key=lambda estimate: estimate.value))
    return max(lowest, key=lambda estimate: estimate.value, default=None)
