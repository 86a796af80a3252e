"""Flips found by a sweep beside those predicted by a trace, on runs made by hand."""

import numpy as np
import pytest

from memlib.probes.flips import Flips
from memlib.probes.switch_on import REFERENCE_STEPS

SWITCHES = [0, 10, 20, 30]


def flips(similarity, predicted, steps=50):
    return Flips(np.asarray(similarity, dtype=float), SWITCHES, np.asarray(predicted), 0.5, steps)


def test_flips_are_counted_and_compared():
    one = flips([[[1, 1, 0, 0], [1, 0, 1, 0]], [[1, 1, 1, 1], [1, 0, 0, 0]]], [[14, -1], [7, 5]])
    assert one.crosses.tolist() == [[True, True], [False, True]] and one.comes_back.tolist() == [[False, True], [False, False]]
    assert np.allclose(one.found, [[15, 5], [np.nan, 5]], equal_nan=True)
    assert one.both.tolist() == [[True, False], [False, True]]
    assert np.allclose(one.error(), [[1, np.nan], [np.nan, 0]], equal_nan=True)
    assert np.allclose(one.error(np.full((2, 2), 10)), [[5, -5], [np.nan, -5]], equal_nan=True)
    found = one.quantities()
    assert found["similarity_first"].value == 1 and found["similarity_last"].value == pytest.approx(0.25)
    assert found["error"].value == pytest.approx(0.5) and found["share_predicted"].value == pytest.approx(0.75)


def test_errors_count_in_steps_of_the_reference_schedule():
    assert flips([[[1, 1, 0, 0]]], [[10]], steps=25).error()[0, 0] == 10


def test_where_no_picture_flips_the_whole_schedule_counts_and_nothing_is_predicted():
    found = flips([[[1, 1, 1, 1]], [[1, 1, 1, 1]]], [[5], [5]]).quantities()
    assert found["error"].value == found["error"].low == REFERENCE_STEPS and found["share_predicted"].value == 0 < found["share_predicted"].high


def test_where_all_flips_are_predicted_the_share_still_has_a_width():
    found = flips([[[1, 0, 0, 0]], [[1, 0, 0, 0]]], [[5], [5]]).quantities()["share_predicted"]
    assert found.value == 1 and found.low < 1
