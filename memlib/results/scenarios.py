"""The scenarios of `basin` Section 6: which model, which prompts, which methods, and what is compared across them.

A scenario's model is the substrate itself (its own memorized prompts), or one fine-tuned from it: MiniSD's come by name, others are
folders written by `memlib finetune`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memlib.base.errors import InputError, NotMeasured
from memlib.base.numbers import counted
from memlib.experiment import Experiment
from memlib.experiment.group import Group
from memlib.experiment.page import NOT_MEASURED
from memlib.judging.claims import reported
from memlib.judging.estimates import Estimate, mean_interval, quantile_interval, share_interval
from memlib.metrics.distribution import kernel_distance
from memlib.mitigations import REGISTRY, Mitigation
from memlib.models.catalogue import SUBSTRATES, locate
from memlib.probes.transitions import trace
from memlib.results.evaluations import EVALUATIONS
from memlib.results.table import matrix, summarise
from memlib.sampling.guidance import as_rule

SIMILARITY, TRANSITION = "similarity to training", "transition step"


@dataclass(frozen=True)
class Scenario:
    """One way in which memorization comes about; `methods` are those that the text uses there, `place` is its table."""

    key: str
    number: str
    title: str
    kind: str
    methods: tuple[str, ...]
    place: str

    @property
    def label(self) -> str:
        """Number and title."""
        return f"{self.number}: {self.title}"


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


def transition_under(method: Mitigation, group: Group) -> np.ndarray:
    """Return a group's transition steps [P, S] (-1 for none) under the guidance that a method has before the transition.

    For the methods of `basin`: static and dynamic transitions, with and without opposite guidance.
    """
    rule = as_rule(method.guidance(group.experiment.guidance))
    return trace(group, float(rule.params["before"])).transition()


def at_transition(method: Mitigation, steps: np.ndarray) -> Mitigation:
    """Return a static transition whose point is the median of the dynamic ones, `steps` [P, S] (-1 for none); others unchanged.

    The text reads a scenario's static point off its mean trace. A mitigation without a parameter `step`, or `steps` without any
    transition, leaves the method as it is.
    """
    found = steps[steps >= 0]
    if "step" not in method.params or not found.size:
        return method
    return method.with_params(step=int(np.median(found)))


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


def each(measured: Callable[[str, Group], Any], models: Mapping[str, str], keys: Iterable[str] | None = None, **options: Any) -> dict[str, Any]:
    """Return by key what `measured` makes of each scenario and its group, of all or of `keys`; a line is printed on each, and those that have no
    model are left out. `models` (by key; "auto" by default) and `options` are those of `scenario_group`; one model is held at a time."""
    found = {}
    for key in SCENARIOS if keys is None else keys:
        group = scenario_group(key, model=models.get(key, "auto"), **options)
        if isinstance(group, str):
            print(f"{SCENARIOS[key].label}: {NOT_MEASURED}. {group}")
            continue
        print(f"{SCENARIOS[key].label}: model {group.experiment.substrate.name}, {counted(len(group), 'prompt')}")
        found[key] = measured(key, group)
        del group
        gc.collect()
    return found


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
    rows, shown = range(min(count, len(group))), {}
    for method in methods:
        with suppress(InputError, NotMeasured):  # it cannot be used here: the table says why
            shown[method.title] = group.some_pictures(method, rows, 1)[:, 0]
    return shown if group.training is None else shown | {"training picture": np.stack([group.training[row][0] for row in rows])}


def own_methods(scenario: str, methods: Sequence[Mitigation]) -> list[Mitigation]:
    """Return those of the methods that the text uses in a scenario."""
    return [m for m in methods if m.name in SCENARIOS[scenario].methods]


def summary(
    rows: pd.DataFrame, methods: Sequence[Mitigation], metrics: Sequence[str], guided: Mapping[str, np.ndarray] | None = None,
    threshold: float | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return one line for each method: what it acts on, with `guided` in how many pictures guidance begins, and the means of `metrics`.

    Beside similarity to training stand its 95th percentile and the share of pictures above the copy `threshold`, and last the U-Net
    evaluations of a picture, where rows have them.
    """
    columns: dict[str, tuple[str, Callable[[np.ndarray], Estimate]]] = {}
    for metric in metrics:
        columns[metric] = (metric, mean_interval)
        if metric == SIMILARITY:
            columns["95th percentile"] = (metric, lambda values: quantile_interval(values, 0.95, resamples=500))
        if metric == SIMILARITY and threshold is not None:
            columns["above the threshold"] = (metric, lambda values: share_interval(values >= threshold))
    shown, by_title = summarise(rows, columns), {m.title: m for m in methods}
    shown.insert(0, "acts on", ["" if title == "none" else by_title[title].family for title in shown.index])
    if guided is not None:
        shown.insert(1, "guided", [f"{guided[title].sum()} of {guided[title].size}" if title in guided else "all" for title in shown.index])
    counts = [matrix(rows, EVALUATIONS, by_title[title]) for title in shown.index]
    return shown if not any(count is not None for count in counts) else shown.assign(
        **{EVALUATIONS: ["" if count is None else f"{count[0]:.0f}" for count in counts]}
    )  # fmt: skip
