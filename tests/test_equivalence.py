"""Equivalence, relative changes and intervals over pairs, against closed forms and cases made by hand."""

import numpy as np
import pytest

from memlib.base.errors import InputError
from memlib.judging.equivalence import equivalence, pair_interval, relative_change
from memlib.judging.estimates import Estimate, mean_interval, paired_difference


def change(low, high):
    return Estimate((low + high) / 2, low, high, 10, 2)


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (-0.04, 0.04, "equivalent"), (-0.06, 0.04, "open"), (-0.04, 0.06, "open"), (-0.2, 0.2, "open"),
        (-0.3, -0.06, "lower"), (0.06, 0.3, "higher"), (-0.05, 0.0, "open"), (float("nan"), float("nan"), "open"),
    ],
)  # fmt: skip
def test_outcomes_by_hand(low, high, outcome):
    result = equivalence(change(low, high), 0.05)
    assert result.outcome == outcome and result.margin == 0.05 and outcome in result.text()


@pytest.mark.parametrize("margin", [0, -0.1, float("nan"), True, "5 %"])
def test_a_margin_is_a_positive_number(margin):
    with pytest.raises(InputError, match="equivalence margin"):
        equivalence(change(-0.01, 0.01), margin)


def test_two_one_sided_tests_err_as_often_as_they_should():
    # The true change is the margin itself: "equivalent" is then an error, allowed in 2.5 % of the runs.
    draw = np.random.default_rng(0)
    wrong = [equivalence(mean_interval(draw.normal(0.5, 1, 60), resamples=400, generator=draw), 0.5).outcome == "equivalent" for _ in range(600)]
    assert 0.005 < np.mean(wrong) < 0.06


def test_relative_change_is_the_paired_difference_in_units_of_the_baseline():
    draw = np.random.default_rng(1)
    first, second = draw.normal(3.8, 0.2, (9, 4)), draw.normal(4.0, 0.2, (9, 4))
    plain, scaled = paired_difference(first, second), relative_change(first, second)
    for part in ("value", "low", "high"):
        assert getattr(scaled, part) == pytest.approx(getattr(plain, part) / second.mean())
    assert relative_change(first, second, base=2.0).value == pytest.approx(plain.value / 2)
    with pytest.raises(InputError, match="must be positive"):
        relative_change(first, second - 10)


def test_pairs_by_hand():
    values = np.array([[9.0, 1.0, 2.0], [3.0, 9.0, 4.0], [5.0, 6.0, 9.0]])
    estimate = pair_interval(values)
    assert estimate.value == pytest.approx(21 / 6) and estimate.n_prompts == 3
    assert 1 <= estimate.low < estimate.value < estimate.high <= 6
    assert pair_interval(np.full((4, 4, 2), 0.7)).low == pytest.approx(0.7)
    # Two prompts: every drawing that has a pair has both, so that an interval would have no width.
    two = pair_interval([[0, 1.0], [3.0, 0]])
    assert two.value == pytest.approx(2.0) and np.isnan(two.low) and np.isnan(two.high)


def test_intervals_over_pairs_cover_where_those_that_take_pairs_as_independent_do_not():
    draw = np.random.default_rng(2)
    covered, naive = [], []
    for _ in range(200):
        giver, taker = draw.normal(size=(2, 14))
        values = giver[:, None] + taker[None]
        estimate = pair_interval(values, resamples=400, generator=draw)
        covered.append(estimate.low <= 0 <= estimate.high)
        apart = mean_interval(values[~np.eye(14, dtype=bool)], resamples=400, generator=draw)
        naive.append(apart.low <= 0 <= apart.high)
    assert np.mean(covered) > 0.85 > 0.6 > np.mean(naive)


@pytest.mark.parametrize("values", [np.zeros((3, 4)), np.zeros((1, 1)), np.zeros(5), np.full((3, 3), np.nan)])
def test_bad_pairs_are_named(values):
    with pytest.raises(InputError, match=r"[Pp]airs"):
        pair_interval(values)
