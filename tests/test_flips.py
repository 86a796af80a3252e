"""Flips found by a sweep beside those predicted by a trace, on runs made by hand."""

import numpy as np

from memlib.probes.flips import Flips

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


def test_errors_count_in_steps_of_the_reference_schedule():
    assert flips([[[1, 1, 0, 0]]], [[10]], steps=25).error()[0, 0] == 10


def test_a_run_without_a_flip_has_no_error():
    found = flips([[[1, 1, 1, 1]], [[0, 0, 0, 0]]], [[5], [5]])
    assert not found.crosses.any() and np.isnan(found.error()).all()
