"""Intervals for bounded scores: by hand, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from memlib.base.errors import InputError
from memlib.judging.bounded import FEWEST, bounded_mean, coverage, student_change, student_contrast, student_mean, student_ratio


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


@pytest.mark.slow
def test_it_covers_where_the_bootstrap_does_not():
    table = coverage(shares=(0.08, 0.5), counts=(FEWEST, 60), repeats=300).set_index(["method", "share", "prompts"])["coverage"]
    assert table["Student's t, ends added"].min() > 0.91  # nominal 0.95, standard error 0.013
    assert table["percentile bootstrap", 0.08, FEWEST] < 0.75


def ends(estimate):
    return estimate.low, estimate.high


def test_other_means_have_students_interval_over_prompts():
    draw = np.random.default_rng(0)
    first, second = draw.normal(3, 1, (20, 4)), draw.normal(2, 1, (15, 4))
    means = first.mean(1)
    assert ends(student_mean(first)) == pytest.approx(stats.t.interval(0.95, 19, loc=means.mean(), scale=stats.sem(means)))
    assert ends(student_change(first[:15], second)) == pytest.approx(stats.ttest_rel(first[:15].mean(1), second.mean(1)).confidence_interval())
    assert ends(student_contrast(first, second)) == pytest.approx(stats.ttest_ind(means, second.mean(1), equal_var=False).confidence_interval())
    assert student_contrast(first, second).n_prompts == 15
    assert np.isnan(student_mean(first[:1]).low) and np.isnan(student_contrast(first, second[:1]).low)


def test_differences_of_scores_with_ends_have_ends():
    same = np.ones(12)
    assert ends(student_change(same, same, (0, 1))) == pytest.approx(ends(bounded_mean(np.zeros(12), -1, 1)))
    found = student_contrast(same, 0 * same, (0, 1))
    assert found.value == found.high == 1.0 and 0.5 < found.low < 1


def test_a_ratio_covers_what_it_says():
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        base = draw.normal(2, 0.5, 24)
        found = student_ratio(0.8 * base + draw.normal(0, 0.2, 24), base)
        held += found.low <= 0.8 <= found.high
    assert 0.92 < held / 400 < 0.98  # standard error 0.011
    with pytest.raises(InputError, match="mean above 0"):
        student_ratio([1.0, 2.0], [-1.0, 1.0])
