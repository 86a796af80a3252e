"""Settings, worst corners and alternatives against values made up."""

import numpy as np
import pandas as pd
import pytest

from memlib.mitigations import REGISTRY, get
from memlib.results.evaluations import BY_CHANCE
from memlib.results.settings import KEPT, LEFT, alternatives, curves, settings_of
from memlib.results.table import join, name_of, typed


def rows(values, metric, prompts=3):
    """The same value for each prompt under each method, one seed."""
    made = []
    for method, value in values.items():
        name, params = name_of(method)
        made.append(typed(pd.DataFrame({"prompt": [f"{i}" for i in range(prompts)], "seed": 0, "method": name, "params": params,
                                                          "metric": metric, "value": value})))  # fmt: skip
    return join(made)


def test_settings_run_from_weak_to_strong_and_keep_one_that_is_none_of_them():
    assert [m.params["fraction"] for m in settings_of(get("pad-mask"))] == [0.4, 0.7, 1.0]
    moved = get("static-transition", step=12)
    assert settings_of(moved) == [*REGISTRY["static-transition"].sweep(), moved] and settings_of(moved, strengths=False) == [moved]
    assert settings_of(get("pad-swap")) == [get("pad-swap")]


def test_curves_join_similarity_and_alignment_and_leave_out_what_is_not_measured():
    values = {get("none"): 0.8, get("pad-mask", fraction=0.4): 0.6, get("pad-mask"): 0.4, get("pad-mask", fraction=1.0): 0.2}  # and nothing of pad-swap
    left = rows(values, LEFT)
    chance = rows({get("none"): 0.1}, BY_CHANCE, 1).assign(prompt="", seed=None)
    kept = join([rows({m: value / 2 for m, value in values.items()}, KEPT), typed(chance)])
    found, reference = curves(left, kept, [get("none"), get("pad-mask"), get("pad-swap")])
    assert list(found) == ["none", "pad-mask"] and [x.mean() for x, _ in found["pad-mask"].values()] == pytest.approx([0.6, 0.4, 0.2])
    assert list(found["pad-mask"]) == ["pad-mask (fraction 0.4)", "pad-mask", "pad-mask (fraction 1)"]
    assert [y.mean() for _, y in found["pad-mask"].values()] == pytest.approx([0.3, 0.2, 0.1])
    assert (reference.left, reference.kept, reference.unharmed) == pytest.approx((0.8, 0.1, 0.4))
    assert curves(left, left, [get("pad-mask")], False) == ({}, None)
    assert curves(left, join([rows({get("none"): 0.4}, KEPT)]), [])[1] is None
    assert np.shape(found["none"]["none"]) == (2, 3, 1)


def test_every_difference_is_an_alternative_and_texts_that_disagree_are_too():
    found = alternatives(list(REGISTRY.values()))
    assert all(ours != other for _, _, ours, other in found)
    assert sum(len(m.differences) for m in REGISTRY.values()) + 3 == len(found)
    assert {"1", "2", "6", "9", "10", "11", "13", "21", "25"} <= {point for point, *_ in found}
    assert alternatives([get("pad-swap")]) == []
