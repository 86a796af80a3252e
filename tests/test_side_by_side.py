"""One scenario under every mitigation: settings, worst corners and variants against values made up, and a run on a tiny checkpoint."""

import numpy as np
import pytest

from memlib.mitigations import REGISTRY, get
from memlib.results import side_by_side as module
from memlib.results.mitigation_table import Row
from memlib.results.scenarios import SCENARIOS
from memlib.results.side_by_side import curves, settings_of, side_by_side, variants_of


def test_settings_run_from_weak_to_strong_and_keep_one_that_is_none_of_them():
    assert [m.params["fraction"] for m in settings_of(get("pad-mask"))] == [0.4, 0.7, 1.0]
    moved = get("static-transition", step=12)
    assert settings_of(moved) == [*REGISTRY["static-transition"].sweep(), moved] and settings_of(moved, strengths=False) == [moved]
    assert settings_of(get("pad-swap")) == [get("pad-swap")]


def test_curves_join_similarity_and_alignment_and_leave_out_what_is_not_measured(monkeypatch):
    values = {"none": 0.8, "pad-mask (fraction 0.4)": 0.6, "pad-mask": 0.4, "pad-mask (fraction 1)": 0.2}  # and nothing of pad-swap

    def measured(group, mitigations, scores, count):
        part = 0.5 if group == "kept" else 1.0
        return [Row(m, {scores[0]: part * np.full((3, 1), values[m.title])} if m.title in values else {}) for m in mitigations]

    monkeypatch.setattr(module, "measure", measured)
    monkeypatch.setattr(module, "alignment_by_chance", lambda group: 0.1 if group == "kept" else None)
    found, reference = curves("left", "kept", [get("none"), get("pad-mask"), get("pad-swap")])
    assert list(found) == ["none", "pad-mask"] and [s.left.mean() for s in found["pad-mask"]] == pytest.approx([0.6, 0.4, 0.2])
    assert [s.kept.mean() for s in found["pad-mask"]] == pytest.approx([0.3, 0.2, 0.1])
    assert (reference.left, reference.kept, reference.unharmed) == pytest.approx((0.8, 0.1, 0.4))
    assert curves("left", "left", [get("pad-mask")], False)[1] is None


def test_every_difference_is_a_variant_and_texts_that_disagree_are_too():
    found = variants_of(list(REGISTRY.values()))
    assert all(variant.ours != variant.other for variant in found)
    assert sum(len(m.differences) for m in REGISTRY.values()) + 3 == len(found)
    assert {"1", "2", "6", "9", "10", "11", "13", "21", "25"} <= {variant.point for variant in found}
    assert variants_of([get("pad-swap")]) == []


def test_a_scenario_without_metrics_or_training_pictures(tiny_group):
    group = tiny_group(2, 3)
    methods = [get("none"), get("pad-mask"), get("static-transition"), get("amg")]
    found = side_by_side(SCENARIOS["pretrained"], group, methods, group, strengths=True, variants=variants_of(methods), shown=1)
    assert [row.mitigation.name for row in found.rows] == [row.mitigation.name for row in found.others] == [m.name for m in methods]
    assert found.rows[3].reason and found.curves == {} and found.reference is found.other_reference is None
    assert list(found.pictures()) == [row.title for row in found.rows[:3]] and found.pictures()["none"].shape[0] == 1
    assert found.result.score("similarity to training", "pad-mask") is None and "amg" not in found.result.names
    # The only variant left is that of amg, which cannot be used here.
    assert [bool(row.reason) for row in found.variant_rows] == [False, True, True]
