"""Intervals for bounded scores: by hand, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from memlib.base.errors import InputError
from memlib.judging.bounded import FEWEST, bounded_mean, coverage


def test_one_prompt_at_either_end_is_added_before_students_interval():
    values = np.array([[0.2, 0.4], [0.9, 0.7], [0.5, 0.5]] * 4)
    filled = [0.3, 0.8, 0.5] * 4 + [0.0, 1.0]
    expected = stats.t.interval(0.95, 13, loc=np.mean(filled), scale=stats.sem(filled))
    estimate = bounded_mean(values)
    assert (estimate.low, estimate.high) == pytest.approx(expected)
    assert estimate.value == pytest.approx(1.6 / 3) and (estimate.n_prompts, estimate.n_seeds) == (12, 2)


def test_scores_that_are_all_alike_keep_a_width_and_their_mean():
    estimate = bounded_mean(np.ones(60))
    assert estimate.value == estimate.high == 1.0 and 0.9 < estimate.low < 1
    with pytest.raises(InputError, match="from low to high"):
        bounded_mean([0.1, 0.2], 1, 1)


def test_it_covers_where_the_bootstrap_does_not():
    table = coverage(shares=(0.08, 0.5), counts=(FEWEST, 60), repeats=300).set_index(["method", "share", "prompts"])["coverage"]
    assert table["Student's t, ends added"].min() > 0.91  # nominal 0.95, standard error 0.013
    assert table["percentile bootstrap", 0.08, FEWEST] < 0.75
