"""ROC points and areas against scikit-learn, and intervals where a bootstrap has no width."""

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_curve

from memlib.base.errors import InputError
from memlib.judging.roc import auc_interval, best_accuracy, roc_curve, tpr_at_fpr


@pytest.fixture
def draw():
    return np.random.default_rng(7)


def labelled(positive, negative):
    return np.r_[np.ones(len(positive)), np.zeros(len(negative))], np.r_[positive, negative]


def test_auc_agrees_with_sklearn_ties_included(draw):
    positive, negative = draw.integers(0, 8, 40) + 2, draw.integers(0, 8, 55)
    ours = auc_interval(positive, negative)
    assert ours.value == pytest.approx(roc_auc_score(*labelled(positive, negative)))
    assert ours.low < ours.value < ours.high <= 1 and ours.n_prompts == 95


def test_seeds_of_a_prompt_count_as_one(draw):
    positive, negative = draw.normal(0.7, 1, (30, 1)), draw.normal(0, 1, (30, 1))
    one, many = auc_interval(positive, negative), auc_interval(np.repeat(positive, 20, 1), np.repeat(negative, 20, 1))
    assert (one.value, one.low, one.high) == pytest.approx((many.value, many.low, many.high))


@pytest.mark.parametrize("count", [3, 24])
def test_sets_that_do_not_overlap_still_have_an_interval(count):
    # Lower end: the area whose own Hanley-McNeil standard error, 1.96 times, reaches up to 1.
    ours = auc_interval(np.arange(count) + 100.0, np.arange(count))
    a = ours.low
    q1, q2 = a / (2 - a), 2 * a**2 / (1 + a)
    variance = (a * (1 - a) + (count - 1) * (q1 - a**2) + (count - 1) * (q2 - a**2)) / count**2
    assert ours.value == ours.high == 1
    assert 1 - a == pytest.approx(scipy_stats.norm.ppf(0.975) * np.sqrt(variance))
    turned = auc_interval(np.arange(count), np.arange(count) + 100.0)
    assert (turned.value, turned.low, turned.high) == pytest.approx((0, 0, 1 - a))
    assert np.isnan(auc_interval([3.0], [1.0, 2.0]).low)


def test_curve_is_sklearns(draw):
    positive, negative = draw.integers(0, 6, 30) + 1, draw.integers(0, 6, 20)
    false, true, _ = sklearn_curve(*labelled(positive, negative), drop_intermediate=False)
    ours = roc_curve(positive, negative)
    np.testing.assert_allclose(ours, (false, true))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.05, 0.1, 0.3, 1.0])
def test_rates_are_those_of_sklearns_curve_under_each_rule(draw, fpr, ties):
    for _ in range(20):
        positive, negative = draw.normal(1.5, 1, 60), draw.normal(0, 1, 80)
        if ties:
            positive, negative = positive.round(), negative.round()
        false, true, _ = sklearn_curve(*labelled(positive, negative), drop_intermediate=False)
        not_above, below = true[false <= fpr], true[false < fpr]
        assert tpr_at_fpr(positive, negative, fpr, resamples=5).value == pytest.approx(not_above[-1])
        assert tpr_at_fpr(positive, negative, fpr, rule="below", resamples=5).value == pytest.approx(below[-1] if len(below) else 0)
        # The programs of Ren et al. and Jeon et al. take scikit-learn's curve as it comes by default, without collinear points.
        false, true, _ = sklearn_curve(*labelled(positive, negative))
        nearest = tpr_at_fpr(positive, negative, fpr, rule="nearest", resamples=5)
        assert nearest.value == pytest.approx(true[np.abs(false - fpr).argmin()])


def test_the_rules_differ_where_a_point_lies_on_the_target():
    positive, negative = [3.0, 1.5], [2.0] + [0.0] * 99
    assert tpr_at_fpr(positive, negative, 0.01).value == 1.0
    assert tpr_at_fpr(positive, negative, 0.01, rule="below").value == 0.5
    # A perfect detector whose curve starts with a long step: the point nearest to 1 % is the origin.
    assert tpr_at_fpr([1.0, 1.0], [0.0, 0.0], 0.01, rule="nearest").value == 0.0
    assert tpr_at_fpr([1.0, 1.0], [0.0, 0.0], 0.01).value == 1.0


def test_the_published_nearest_rule_gives_a_perfect_detector_nothing():
    # A curve that goes straight up and then straight on has three points; the origin is the first of the two nearest to 1 to 10 %.
    positive, negative = np.arange(500) + 1000.0, np.arange(500.0)
    for fpr in (0.01, 0.03, 0.05, 0.1):
        assert tpr_at_fpr(positive, negative, fpr, rule="nearest", resamples=5).value == 0
        assert tpr_at_fpr(positive, negative, fpr, resamples=5).value == 1


def test_interval_of_a_rate_agrees_with_a_plain_bootstrap(draw):
    positive, negative = draw.normal(1.5, 1, 40), draw.normal(0, 1, 50)
    ours = tpr_at_fpr(positive, negative, 0.1)
    rates = []
    for _ in range(2000):
        up, down = draw.choice(positive, 40), draw.choice(negative, 50)
        false, true, _ = sklearn_curve(*labelled(up, down), drop_intermediate=False)
        rates.append(true[false <= 0.1 + 1e-12][-1])
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(rates, [0.025, 0.975])), abs=0.04)


def test_a_rate_of_one_has_wilsons_interval():
    ours = tpr_at_fpr(np.arange(24) + 100.0, np.arange(30), 0.01)
    wilson = scipy_stats.binomtest(24, 24).proportion_ci(method="wilson")
    assert (ours.value, ours.low, ours.high) == pytest.approx((1, wilson.low, wilson.high))


def test_bad_requests_are_refused():
    with pytest.raises(InputError, match="below"):
        tpr_at_fpr([1.0], [0.0], 0.05, rule="above")
    with pytest.raises(InputError, match="0..1"):
        tpr_at_fpr([1.0], [0.0], 5)


def test_the_best_accuracy_is_that_of_the_best_threshold():
    draw = np.random.default_rng(3)
    up, down = draw.normal(1, 1, 40).round(1), draw.normal(0, 1, 60).round(1)
    tried = [((up >= cut).mean() + (down < cut).mean()) / 2 for cut in [*up, *down, np.inf]]
    assert best_accuracy(up, down) == pytest.approx(max(tried)) and 0.6 < max(tried) < 0.9
    assert best_accuracy([2.0, 3.0], [0.0, 1.0]) == 1.0 and best_accuracy([1.0], [1.0]) == 0.5
