"""What is read off traces of the prompt's pull, against numbers made by hand."""

import numpy as np

from memlib.probes.pull import log_ratio_after, log_ratio_at_end


def test_the_pull_after_the_transition_is_compared_and_traces_without_one_have_no_value():
    free = np.array([[[8.0, 4.0, 1.0, 1.0]], [[8.0, 4.0, 2.0, 1.0]]])
    guided = np.array([[[8.0, 8.0, 4.0, 4.0]], [[8.0, 8.0, 8.0, 8.0]]])
    found = log_ratio_after(guided, free, np.array([[2], [-1]]))
    assert np.isclose(found[0, 0], np.log(4)) and np.isnan(found[1, 0])


def test_the_end_is_the_last_tenth_of_the_steps():
    guided = np.concatenate([np.full((1, 1, 18), 100.0), np.full((1, 1, 2), 6.0)], axis=-1)
    free = np.concatenate([np.full((1, 1, 18), 1.0), np.array([[[1.0, 3.0]]])], axis=-1)
    assert np.isclose(log_ratio_at_end(guided, free)[0, 0], np.log(3))
    assert np.isclose(log_ratio_at_end(guided[..., -4:], free[..., -4:])[0, 0], np.log(2)), "one step at the least"


def test_a_pull_of_zero_has_a_finite_logarithm():
    zero = np.zeros((1, 1, 4))
    assert log_ratio_after(zero, zero, np.array([[1]]))[0, 0] == 0 == log_ratio_at_end(zero, zero)[0, 0]
