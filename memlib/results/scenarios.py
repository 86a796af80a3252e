"""The scenarios of `basin` Section 6: which model, which prompts, which methods, and what is compared across them.

A scenario's model is the substrate itself (its own memorized prompts), or one fine-tuned from it: MiniSD's come by name, others are
folders written by `memlib finetune`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from memlib.base.errors import InputError
from memlib.judging.claims import reported
from memlib.judging.equivalence import relative_change
from memlib.judging.estimates import Estimate, bootstrap, paired_difference
from memlib.metrics.distribution import kernel_distance
from memlib.mitigations import REGISTRY, Mitigation
from memlib.models.catalogue import SUBSTRATES, locate
from memlib.probes.transitions import trace

SHARED_SPREAD = 0.05  # share of the schedule up to which claim B3 takes a transition point to be one for all
RESAMPLES = 5_000


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
    `memlib finetune` with its prompts.csv. Raises InputError for an unknown scenario and for a folder without prompts.
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
        return f"There is no model fine-tuned from {substrate} here: make one with `memlib finetune` and give its folder as {scenario}_model."
    try:
        locate(name)
    except InputError as error:
        return str(error)
    return name, name


def earlier_methods() -> list[Mitigation]:
    """The registered mitigations of others with which the text compares its own in its tables."""
    compared = set(reported(text="basin")["method"]) - {"none"}
    return [m for m in REGISTRY.values() if compared & set(m.reported) and not m.source.startswith("basin")]


def transition_under(method: Mitigation, group: Any) -> np.ndarray:
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


@dataclass
class Result:
    """What was measured in one scenario: scores by method's title, transition steps [P, S], traces [P, S, T], a few pictures.

    `scores` holds arrays [P, S] for "similarity to training", "alignment with prompt" and "quality", or None where not measured;
    `distance` is the kernel distance to real pictures with its spread over subsets; `own` names the text's methods here;
    `guided` has the pictures, [P, S] of bool, in which guidance ever began under a method that waits for a transition.
    """

    scenario: Scenario
    model: str
    transitions: np.ndarray
    traces: np.ndarray
    other_transitions: np.ndarray
    other_traces: np.ndarray
    scores: dict[str, dict[str, np.ndarray | None]] = field(default_factory=dict)
    distance: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    guided: dict[str, np.ndarray] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    thresholds: dict[str, float] = field(default_factory=dict)
    provenance: Any = None

    @property
    def own(self) -> list[str]:
        """Titles of the methods that the text uses in this scenario."""
        return [title for title, name in self.names.items() if name in self.scenario.methods]

    def score(self, name: str, title: str = "none") -> np.ndarray | None:
        """Return a score [P, S] under a method, None where it was not measured."""
        return self.scores[title][name]


SCORES = ("similarity to training", "alignment with prompt", "quality")


def measure(group: Any, result: Result, methods: Sequence[Mitigation], shown: int = 6) -> None:
    """Fill `result` with scores, distances and pictures of a group (`memlib.experiment.group.Group`) under each method.

    Distances are to MiniSD's held-out pictures, which no model saw; elsewhere to the scenario's training pictures, as in the text.
    """
    run = group.experiment
    result.prompts, result.thresholds = group.prompts.prompts, run.thresholds
    features, real = _features(run.metrics), _real_pictures(group)
    reference = None if features is None or real is None else features(real)
    for method in methods:
        pictures = group.pictures(method)
        result.names[method.title] = method.name
        result.scores[method.title] = {name: group.score(name, method) for name in SCORES}
        result.distance[method.title] = None if reference is None or len(reference) < 2 else kernel_distance(
            features(pictures).reshape(-1, reference.shape[-1]), reference, np.random.default_rng(0)
        )  # fmt: skip
        if method.name == "none" or method.name in result.scenario.methods:
            result.pictures[method.title] = pictures[:shown, 0]
    if group.training is not None:
        result.pictures["training picture"] = np.stack([pictures[0] for pictures in group.training[:shown]])
    result.provenance = run.provenance()


def _real_pictures(group: Any) -> np.ndarray | None:
    held_out = group.experiment.substrate.data.held_out
    if held_out is not None:
        return held_out(None)
    return None if group.training is None else np.concatenate(group.training)


def _features(metrics: Any) -> Any:
    """The features of distribution distances: Inception's where the substrate has them, else the evaluator's (MiniSD)."""
    if "distribution" in set(metrics):
        return metrics.distribution if metrics.distribution.available else None
    return metrics.alignment.pictures if metrics.alignment.available else None


def least_lowering(result: Result) -> Estimate | None:
    """Change of similarity to training under that of the text's methods here that lowers it least, paired; None: not measured."""
    none = result.score(SCORES[0])
    found = [paired_difference(result.score(SCORES[0], title), none) for title in result.own] if none is not None else []
    return max(found, key=lambda estimate: estimate.value, default=None)


def largest_cost(result: Result, score: str) -> Estimate | None:
    """Change of a score under that of the text's methods here that costs most, as a share of the mean without mitigation."""
    none = result.score(score)
    if none is None or none.mean() <= 0:
        return None
    found = [relative_change(result.score(score, title), none) for title in result.own]
    return min(found, key=lambda estimate: estimate.value, default=None)


def shares_of_effect(results: Mapping[str, Result]) -> dict[str, dict[str, Estimate | None]]:
    """By earlier method and scenario: how much it lowers similarity, as a share of what the better of the text's own does."""
    found: dict[str, dict[str, Estimate | None]] = {method.name: {} for method in earlier_methods()}
    for key, result in results.items():
        none = result.score(SCORES[0])
        own = [result.score(SCORES[0], title) for title in result.own]
        best = min(own, key=np.mean) if none is not None and own else None
        for title, name in result.names.items():
            if name in found:
                found[name][key] = None if best is None else effect_share(none, result.score(SCORES[0], title), best)
    return found


def weakest_scenario(shares: Mapping[str, Mapping[str, Estimate | None]]) -> Estimate | None:
    """The lowest share of each earlier method over all scenarios, and of these the highest; None unless all are measured."""
    lowest = []
    for by_scenario in shares.values():
        if set(by_scenario) != set(SCENARIOS) or any(estimate is None for estimate in by_scenario.values()):
            return None
        lowest.append(min(by_scenario.values(), key=lambda estimate: estimate.value))
    return max(lowest, key=lambda estimate: estimate.value, default=None)
