"""Equivalence and relative changes, against closed forms and cases made by hand."""

import numpy as np
import pytest

from memlib.base.errors import InputError
from memlib.judging.equivalence import equivalence, relative_change
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
