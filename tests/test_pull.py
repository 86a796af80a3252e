"""What is read off traces of the prompt's pull, against numbers made by hand."""

import numpy as np

from memlib.probes.pull import log_ratio_after, share_at_end


def test_the_pull_after_the_transition_is_compared_and_traces_without_one_have_no_value():
    free = np.array([[[8.0, 4.0, 1.0, 1.0]], [[8.0, 4.0, 2.0, 1.0]]])
    guided = np.array([[[8.0, 8.0, 4.0, 4.0]], [[8.0, 8.0, 8.0, 8.0]]])
    found = log_ratio_after(guided, free, np.array([[2], [-1]]))
    assert np.isclose(found[0, 0], np.log(4)) and np.isnan(found[1, 0])


def test_the_end_is_the_last_tenth_and_is_compared_with_what_came_before_the_transition():
    guided = np.concatenate([np.full((1, 1, 10), 4.0), np.full((1, 1, 8), 3.0), np.full((1, 1, 2), 1.0)], axis=-1)
    assert share_at_end(guided, np.array([[10]]))[0, 0] == 0.25
    assert np.isnan(share_at_end(guided, np.array([[0]]))[0, 0]), "nothing comes before step 0"
    assert np.isnan(share_at_end(guided, np.array([[-1]]))[0, 0])


def test_a_pull_of_zero_has_a_finite_logarithm():
    zero = np.zeros((1, 1, 4))
    assert log_ratio_after(zero, zero, np.array([[1]]))[0, 0] == 0
