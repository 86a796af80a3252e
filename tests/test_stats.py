import numpy as np
import pytest
from scipy import stats as scipy_stats

from memlib.base.errors import InputError
from memlib.judging.estimates import (
    Estimate,
    mean_interval,
    paired_difference,
    quantile_interval,
    relative_change,
    share_interval,
)


@pytest.fixture
def draw():
    return np.random.default_rng(7)


def test_intervals_of_earlier_verdicts_stay_as_they_were():
    # Values of the first implementation, one for each way of drawing: weights, rows. A verdict of a page must not
    # move because the code that draws was rewritten.
    draw = np.random.default_rng(3)
    first = draw.normal(0.5, 0.2, (24, 10))
    mean = mean_interval(first)
    assert (mean.low, mean.high) == pytest.approx((0.47562078231138444, 0.5261550028363047), abs=1e-12)
    quantile = quantile_interval(first, 0.95)
    assert (quantile.low, quantile.high) == pytest.approx((0.781192588626977, 0.9081838242770366), abs=1e-12)


def clustered(draw, prompts=40, seeds=5):
    return draw.normal(size=(prompts, 1)) + 0.2 * draw.normal(size=(prompts, seeds))


def test_mean_interval_agrees_with_scipy_on_prompt_means(draw):
    values = clustered(draw)
    ours = mean_interval(values)
    theirs = scipy_stats.bootstrap((values.mean(axis=1),), np.mean, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)
    assert (ours.n_prompts, ours.n_seeds) == (40, 5)


def test_more_seeds_do_not_narrow_the_interval_when_prompts_differ(draw):
    # 20 prompts that differ, seeds that do not: 50 seeds hold no more information than one.
    prompts = draw.normal(size=(20, 1))
    one, many = mean_interval(prompts), mean_interval(np.repeat(prompts, 50, axis=1))
    assert many.high - many.low == pytest.approx(one.high - one.low)


def test_interval_covers_the_truth_about_as_often_as_it_says(draw):
    hits = 0
    for _ in range(300):
        estimate = mean_interval(draw.normal(size=(50, 1)), resamples=300, generator=draw)
        hits += estimate.low <= 0 <= estimate.high
    assert 0.89 <= hits / 300 <= 0.985


def test_calls_repeat_exactly_and_a_generator_changes_them(draw):
    values = clustered(draw)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values) != mean_interval(values, generator=np.random.default_rng(5))


def test_pairing_removes_what_the_prompts_share(draw):
    base = 10 * draw.normal(size=(30, 1)) + draw.normal(size=(30, 4))
    estimate = paired_difference(base - 0.5, base)
    assert estimate.value == pytest.approx(-0.5)
    assert estimate.high - estimate.low < 1e-9
    with pytest.raises(InputError, match="same prompts and seeds"):
        paired_difference(base, base[:, :2])


def test_missing_values_raise_or_are_dropped_by_prompt():
    values = np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, np.nan]])
    with pytest.raises(InputError, match="3 of 6 values are missing"):
        mean_interval(values)
    estimate = mean_interval(values, missing="drop")
    assert estimate.value == pytest.approx((1 + 4) / 2)
    assert estimate.n_prompts == 2
    with pytest.raises(InputError, match="Every value is missing"):
        mean_interval([np.nan, np.nan], missing="drop")
    with pytest.raises(InputError, match="infinite"):
        mean_interval([1.0, np.inf])


def test_one_prompt_has_no_interval():
    estimate = mean_interval([[0.4, 0.6]])
    assert estimate.value == pytest.approx(0.5)
    assert np.isnan(estimate.low) and np.isnan(estimate.high)
    assert estimate.text() == "0.50 [no interval]"


@pytest.mark.parametrize("flags", [[1, 0, 1, 1, 1, 0, 1, 1], [1] * 24, [0] * 24])
def test_share_per_prompt_is_wilsons_interval(flags):
    ours = share_interval(np.array(flags, dtype=bool))
    theirs = scipy_stats.binomtest(sum(flags), len(flags)).proportion_ci(method="wilson")
    assert ours.value == pytest.approx(np.mean(flags))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_share_over_seeds_is_clustered_and_never_without_width(draw):
    by_prompt = np.repeat(draw.random((30, 1)) < 0.5, 10, axis=1)
    clustered_share = share_interval(by_prompt)
    as_if_independent = share_interval(by_prompt.reshape(-1))
    assert clustered_share.high - clustered_share.low > 2 * (as_if_independent.high - as_if_independent.low)
    certain = share_interval(np.ones((24, 10), dtype=bool))
    assert certain.value == certain.high == 1 and certain.low == share_interval(np.ones(24)).low
    with pytest.raises(InputError, match="true or false"):
        share_interval([0.3, 1.0])


def test_quantile_agrees_with_scipy(draw):
    values = draw.normal(size=400)
    ours = quantile_interval(values, 0.95)
    theirs = scipy_stats.quantile_test(values, q=0, p=0.95).confidence_interval(0.95)
    assert ours.value == pytest.approx(np.quantile(values, 0.95))
    assert ours.low == pytest.approx(theirs.low, abs=0.2)
    assert ours.high == pytest.approx(theirs.high, abs=0.2)
    with pytest.raises(InputError, match="0..1"):
        quantile_interval(values, 95)


def test_estimate_text_format_and_json():
    estimate = Estimate(0.5512, 0.5, 0.6, 24, 10)
    assert str(estimate) == "0.55 [0.50, 0.60]"
    assert f"{estimate:.3f}" == "0.551 [0.500, 0.600]"
    assert Estimate.from_json(estimate.to_json()) == estimate


@pytest.mark.parametrize("bad", [[], np.zeros((0, 3)), np.zeros((2, 2, 2))])
def test_unusable_shapes_are_refused(bad):
    with pytest.raises(InputError, match="shape"):
        mean_interval(bad)


def test_relative_change_is_the_paired_difference_in_units_of_the_baseline():
    draw = np.random.default_rng(1)
    first, second = draw.normal(3.8, 0.2, (9, 4)), draw.normal(4.0, 0.2, (9, 4))
    plain, scaled = paired_difference(first, second), relative_change(first, second)
    for part in ("value", "low", "high"):
        assert getattr(scaled, part) == pytest.approx(getattr(plain, part) / second.mean())
    assert relative_change(first, second, base=2.0).value == pytest.approx(plain.value / 2)
    with pytest.raises(InputError, match="must be positive"):
        relative_change(first, second - 10)
