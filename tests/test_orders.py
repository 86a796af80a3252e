"""Orders that texts report, against values made up so that each outcome is known."""

import numpy as np
import pytest

from memlib.judging.claims import reported
from memlib.judging.estimates import Estimate
from memlib.mitigations import REGISTRY
from memlib.results.orders import OUTCOMES, Order, orders, tally


def values(mean, seed=0, spread=0.02):
    return mean + spread * np.random.default_rng(seed).normal(size=(10, 2))


def test_every_reported_method_is_one_that_is_registered():
    known = {key for mitigation in REGISTRY.values() for key in mitigation.reported}
    assert set(reported(text="basin")["method"]) <= known
    table = reported("clip", "Table 4")
    assert set(table["method"]) <= known


def test_orders_are_confirmed_reversed_open_or_not_measured():
    score = "similarity to original"
    # clip, Table 4: 0.08 with ! and a masked <eot>, 0.51 with wen-3, 0.58 with random tokens; the third is left out.
    measured = {
        "pad-swap-eot-mask": {score: values(0.1)}, "pad-swap": {score: values(0.6, 1)}, "wen-3": {score: values(0.3, 2)},
        "random-token": {score: values(0.3, 2, 0.5)}, "random-number": {score: None},
    }  # fmt: skip
    found = {(o.lower, o.higher): o for o in orders("clip", "Table 4", measured) if o.score == score}
    assert found["pad-swap-eot-mask", "wen-3"].outcome == "confirmed" and found["pad-swap", "wen-3"].outcome == "reversed"
    assert found["wen-3", "random-token"].outcome == "open" and found["random-number", "random-token"].outcome == "not measured"
    assert found["pad-swap-eot-mask", "wen-3"].gap == pytest.approx(0.43) and found["pad-swap", "wen-3"].measured.value < 0
    # 0.08 and 0.09 (ren) are a tie, the last digit being a hundredth; 0.08 and 0.10 (pad-mask) are not.
    assert ("pad-swap-eot-mask", "pad-mask") in found and not any({"pad-swap-eot-mask", "ren"} == set(pair) for pair in found)


def test_the_mean_stands_before_the_percentile_and_settings_of_one_method_count_once():
    found = orders("basin", "Table 4", {})
    assert {o.score for o in found} == {"similarity to training", "alignment with prompt"}
    means = {row["method"]: row["value"] for _, row in reported("basin", "Table 4", metric="similarity").iterrows()}
    pair = next(o for o in found if {o.lower, o.higher} == {"wen-1", "wen-3"} and o.score == "similarity to training")
    assert (pair.lower, pair.gap) == ("wen-1", pytest.approx(means["wen_l3"] - means["wen_l1"]))
    second = orders("basin", "Table 2", {})
    assert [(o.lower, o.higher) for o in second if o.score == "similarity to training"] == [("static-transition", "none")]


def test_the_tally_counts_every_outcome():
    def order(low, high):
        return Order("basin Table 1", "similarity to training", "a", "b", 0.1, Estimate((low + high) / 2, low, high, 4, 2))

    table = tally([order(0.1, 0.2), order(0.1, 0.3), order(-0.2, -0.1), order(-0.1, 0.1), order(np.nan, np.nan)])
    assert table.loc[("basin Table 1", "similarity to training")].to_dict() == {
        "confirmed": 2, "reversed": 1, "open": 1, "not measured": 1, "pairs": 5,
    }  # fmt: skip
    assert list(tally([]).columns) == [*OUTCOMES, "pairs"]
