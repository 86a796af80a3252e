"""Attacks as rows of the table, on outcomes made by hand; which pictures are aimed at."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from memlib.base.errors import InputError
from memlib.probes.attack import Attacked, Budget, Targets, never_seen
from memlib.prompts.sets import PromptSet
from memlib.results import attacks
from memlib.results.attacks import BEGIN, DISTANCE, HIGHEST, LINE, NEVER, STEPS, after_pruning, method_of, rows_from, where_triggers_lie
from memlib.results.evidence import MEMORIZED, SEEN_ONCE
from memlib.results.table import matrix

# Three pictures, two runs each: the first is there at once, the second after ten steps in one run, the third never.
OUTCOMES = np.array([[0, 0], [10, -1], [-1, -1]])
SIMILARITIES = np.array([[[0.9, np.nan], [0.8, np.nan]], [[0.1, 0.8], [0.1, 0.3]], [[0.2, 0.1], [0.0, 0.4]]])[..., None]


class Group:
    """A group of prompts without a model."""

    def __init__(self, label, prompts=("a", "b", "c"), copy=True):
        facts = SimpleNamespace(facts={})
        self.label, self.prompts = label, PromptSet("some", tuple(prompts), pd.DataFrame({"prompt": list(prompts)}), "a test", "none")
        metrics = SimpleNamespace(copy=SimpleNamespace(available=copy), items=dict)
        self.experiment = SimpleNamespace(
            seeds=(0,), steps=25, guidance=7.5, scheduler="ddim", metrics=metrics, provenance=lambda: facts,
            substrate=SimpleNamespace(name="toy", weights_hash="f" * 64, data=SimpleNamespace(sets={"not memorized": "captions"}, held_out=pictures)),
        )  # fmt: skip
        self.training = [pictures(1)] * len(prompts)

    def __len__(self):
        return len(self.prompts)

    def part(self, count):
        return Group(self.label, self.prompts.prompts[:count])


def pictures(count):
    """Pictures that hold their own number."""
    return np.stack([np.full((4, 4, 3), place, np.uint8) for place in range(count)])


def attacked(aims, runs):
    states = np.arange(len(aims) * runs * 77 * 2, dtype=np.float32).reshape(len(aims), runs, 77, 2)
    return Attacked(aims, OUTCOMES[: len(aims), :runs], SIMILARITIES[: len(aims), :runs], states, np.zeros_like(states), (0, 10), 0.75)


@pytest.fixture(autouse=True)
def captions(monkeypatch):
    known = PromptSet("captions", ("x", "b", "a", "c"), pd.DataFrame({"prompt": list("xbac")}), "a test", "none")
    # The package's name for this module is that of a function in it.
    monkeypatch.setattr(sys.modules["memlib.probes.attack.targets"], "load_prompts", lambda name: known)

    class Attack:
        def __init__(self, experiment, budget, name="none"):
            self.name = name

        def run(self, aims, start="prompt", restarts=1):
            return attacked(aims, restarts)

    monkeypatch.setattr(attacks, "Attack", Attack)


def test_rows_are_those_of_each_run():
    group = Group(MEMORIZED)
    rows = rows_from(group, "wanda", attacked(Targets("some", ("a", "b", "c"), pictures(3)), 2), "other")
    for r in (0, 1):
        assert matrix(rows, STEPS, method_of("wanda", "other", r + 1)).tolist() == OUTCOMES[:, r].tolist()
    assert matrix(rows, BEGIN, "wanda from other, run 1").tolist() == [0.9, 0.1, 0.2]
    assert matrix(rows, HIGHEST, "wanda from other, run 2").tolist() == [0.8, 0.3, 0.4]
    assert set(rows["n"]) == {1}


def test_a_picture_never_seen_belongs_to_its_caption():
    found = never_seen(Group(NEVER, ("a", "b")))
    assert found.prompts == ("a", "b") and found.pictures[:, 0, 0, 0].tolist() == [2, 1]  # their places among the captions
    with pytest.raises(InputError, match="'d' is no caption of a picture held out"):
        never_seen(Group(NEVER, ("a", "d")))


@pytest.mark.parametrize(("label", "starts"), [(MEMORIZED, {"other", "random"}), (SEEN_ONCE, set()), (NEVER, {"other"})])
def test_pruned_models_are_attacked_from_elsewhere_too(label, starts):
    rows = after_pruning(Group(label), Budget(10, 2), 2)
    tried = {method: set(own["prompt"]) for method, own in rows.groupby("method")}
    assert all(tried[method_of(name)] == {"a", "b", "c"} for name in ("none", "nemo", "wanda"))
    elsewhere = {method_of("wanda", start) for start in starts} | {method_of("nemo", start) for start in starts}
    assert all(tried[method] == {"a", "b"} for method in elsewhere)
    assert set(tried) == {method_of(name) for name in ("none", "nemo", "wanda")} | elsewhere | ({method_of("none", "other")} if label == NEVER else set())


def test_without_a_judge_nothing_is_attacked():
    assert after_pruning(Group(MEMORIZED, copy=False), Budget(10, 2), 2).empty


def test_distances_are_of_pictures_with_two_triggers(monkeypatch):
    monkeypatch.setattr(attacks, "reference_prompts", lambda substrate: ["p", "q"])
    ordinary = np.zeros((2, 77, 2), np.float32)
    ordinary[1] = 1.0
    monkeypatch.setattr(attacks, "encode_prompts", lambda substrate, prompts: SimpleNamespace(states=ordinary))
    monkeypatch.setattr(attacks, "between", lambda attack, one, shares: np.array([[[0.9], [0.5], [0.6], [0.7], [0.8]]]))
    rows = where_triggers_lie(Group(MEMORIZED), Budget(10, 2), 2)
    # The two triggers of the first picture differ by 154 in each of 154 numbers, the ordinary prompts by 1; the other two have no pair.
    own = rows[rows["metric"].eq(DISTANCE) & rows["value"].notna()]
    assert own.set_index("method")["value"].to_dict()["triggers"] == pytest.approx(154) and set(own["prompt"]) == {"a"}
    assert matrix(rows, LINE, "25% of the second").tolist() == [0.5]
    assert matrix(rows, STEPS, method_of("none", "other", 2)).tolist() == OUTCOMES[:, 1].tolist()
