"""Dominated areas against hand-made points, and their ranking."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from memlib.base.errors import InputError
from memlib.results import figures as plots
from memlib.results.pareto import Reference, dominated_area, front, rank

CORNER = (1.0, 0.0)


def area(*points, corner=CORNER):
    left, kept = np.array(points, float).T
    return float(dominated_area(left, kept, corner))


def test_the_area_of_points_worked_out_by_hand():
    assert area((0, 1)) == 1 and area((0.5, 0.5)) == 0.25
    # Two steps: 0.3 wide and 0.4 high, then 0.5 wide and 0.9 high.
    assert area((0.2, 0.4), (0.5, 0.9)) == pytest.approx(0.3 * 0.4 + 0.5 * 0.9)
    assert area((0.5, 0.9), (0.2, 0.4)) == pytest.approx(0.57)
    # A point that another one beats in both adds nothing; one beyond the corner dominates nothing.
    assert area((0.2, 0.4), (0.6, 0.3)) == pytest.approx(0.32) and area((1.2, 0.8)) == 0 and area((0.2, -0.1)) == 0
    assert area((0.2, 0.4), (1.2, 5)) == pytest.approx(0.32) and area((0.2, 0.7), (0.2, 0.4)) == pytest.approx(0.56)
    assert area((0.2, 0.4), corner=(0.6, 0.3)) == pytest.approx(0.04)


def test_the_area_is_the_share_of_random_points_that_are_dominated():
    draw = np.random.default_rng(0)
    points, thrown = draw.uniform(size=(5, 2)), draw.uniform(size=(200_000, 2))
    hit = ((points[:, 0] <= thrown[:, :1]) & (points[:, 1] >= thrown[:, 1:])).any(1)
    assert area(*points) == pytest.approx(hit.mean(), abs=0.005)
    many = draw.uniform(size=(3, 4, 5, 2))
    assert np.allclose(dominated_area(many[..., 0], many[..., 1], CORNER)[2, 1], area(*many[2, 1]))
    with pytest.raises(InputError, match="as many similarities as alignments"):
        dominated_area(np.zeros(2), np.zeros(3), CORNER)


def setting(title, left, kept, spread=0.0, prompts=8):
    draw = np.random.default_rng(len(title))
    noise = draw.normal(size=(2, prompts, 2)) * spread
    return {title: (left + noise[0], kept + noise[1])}


def test_methods_are_ranked_by_what_their_settings_dominate_together():
    curves = {
        "none": setting("none", 0.8, 0.3),
        "weak": setting("weak", 0.6, 0.3),
        "swept": setting("swept", 0.6, 0.3) | setting("swept, strong", 0.2, 0.25),
    }
    found = rank(curves, Reference(0.8, 0.1, 0.3), {"swept": "swept"})
    assert list(found) == ["swept", "weak", "none"]
    unit = 0.8 * 0.2
    assert found["weak"].area.value == pytest.approx(0.2 * 0.2 / unit) == found["swept"].single
    assert found["swept"].area.value == pytest.approx((0.2 * 0.2 + 0.4 * 0.15) / unit) and found["none"].area.value == 0
    # Without any spread between prompts intervals have no width, and the first is always first.
    assert found["swept"].area.low == pytest.approx(found["swept"].area.high) and [r.first for r in found.values()] == [1, 0, 0]


def test_intervals_and_first_places_follow_the_prompts():
    draw = np.random.default_rng(1)
    base = draw.uniform(0.2, 0.6, (12, 2))
    none = {"none": {"none": (np.full((12, 2), 0.8), np.full((12, 2), 0.3))}}
    same = none | {"a": {"a": (base, np.full((12, 2), 0.3))}, "b": {"b": (base.copy(), np.full((12, 2), 0.3))}}
    found = rank(same, Reference(0.8, 0.1, 0.3))
    assert found["a"].area.low < found["a"].area.value < found["a"].area.high and found["a"].first == found["b"].first == 0.5
    means = base.mean(1)
    drawn = [1 - means[draw.integers(12, size=12)].mean() / 0.8 for _ in range(4000)]
    assert np.allclose([found["a"].area.low, found["a"].area.high], np.quantile(drawn, [0.025, 0.975]), atol=0.02)
    # Alignment on other prompts, and another number of them.
    apart = {name: {name: (left, draw.uniform(0.2, 0.4, (5, 2)))} for name, left in (("none", none["none"]["none"][0]), ("a", base))}
    assert rank(apart, Reference(0.8, 0.1, 0.3), same_prompts=False)["a"].area.n_prompts == 12


def test_there_is_no_ranking_where_alignment_tells_nothing():
    curves = {name: setting(name, left, 0.3, prompts=1) for name, left in (("none", 0.8), ("a", 0.2))}
    assert rank(curves, Reference(0.8, 0.3, 0.3)) == {} and rank({}, Reference(0.8, 0.1, 0.3)) == {}
    assert np.isnan(rank(curves, Reference(0.8, 0.1, 0.3))["a"].area.low)


def test_areas_are_those_beyond_no_mitigation_on_the_same_prompts():
    # Prompts differ much in how memorized they are, and the method lowers each by the same: the interval of what is gained is narrow.
    base = np.random.default_rng(2).uniform(0.4, 1.0, (20, 2))
    kept = np.full((20, 2), 0.3)
    curves = {"none": {"none": (base, kept)}, "a": {"a": (base - 0.2, kept)}, "beyond": {"beyond": (base - 2, kept)}}
    found = rank(curves, Reference(float(base.mean()), 0.1, 0.3))
    assert (found["none"].area.low, found["none"].area.high) == (0, 0)
    assert found["a"].area.high - found["a"].area.low < 1e-9 and found["a"].area.value == pytest.approx(0.2 / base.mean())
    assert found["beyond"].area.value == pytest.approx(1)


def test_the_front_is_what_nothing_beats_in_both():
    curves = {"none": setting("none", 0.9, 0.7, 0), "a": setting("weak", 0.6, 0.6, 0) | setting("strong", 0.2, 0.5, 0),
              "beaten": setting("b", 0.6, 0.55, 0), "even": setting("c", 0.2, 0.5, 0)}  # fmt: skip
    assert front(curves) == [("a", "strong"), ("a", "weak"), ("none", "none")]
    assert front({name: curves[name] for name in ("beaten", "even")}) == [("even", "c"), ("beaten", "b")]


def test_the_figures_show_every_method_in_the_colour_of_its_family():
    curves = {name: setting(name, 0.5, 0.3, 0.05) | setting(name + "+", 0.3, 0.25, 0.05) for name in ("none", "a", "b", "c")}
    families = {"none": "text", "a": "text", "b": "noise", "c": "noise"}
    reference = Reference(0.8, 0.1, 0.3)
    figure = plots.trade_off({"one": (curves, reference), "two": (curves, None), "three": (curves, None)}, families, "left", "kept")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["no mitigation", "text", "noise"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["a"]  # of equal ones the first; none has its star
    colours = [handle.get_color() for handle in figure.legends[0].legend_handles]
    assert len(set(colours)) == 3 and colours[0] == "black"
    drawn = [line.get_color() for line in figure.axes[0].lines if len(line.get_xdata()) == 2 and line.get_marker() not in ("None", "", "*")]
    assert drawn == [colours[1], colours[2], colours[2]]
    bars = plots.dominance({"one": rank(curves, reference)}, families)
    assert len(bars.axes[0].get_yticklabels()) == 4
    plt.close("all")
