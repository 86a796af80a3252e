"""One rule of verdicts: what estimates answer to the registration, by hand."""

from __future__ import annotations

import json
import math

import pytest

from memlib.base.errors import InputError
from memlib.judging.estimates import Estimate
from memlib.judging.judge import judge, prompts_needed, registration
from memlib.judging.verdicts import Verdict

STRICT = 0.6  # so that lax is 0.4, near 0.32, lost 0.2


def around(value, half=0.02, prompts=24):
    return Estimate(value, value - half, value + half, n_prompts=prompts, n_seeds=10)


@pytest.mark.parametrize(
    ("name", "measured", "verdict"),
    [
        ("C2a", [around(0.5), around(0.7)], "holds"),
        ("C2a", [around(0.5), around(0.61)], "undecided"),  # the interval holds the strict bound
        ("C2a", [around(0.5), around(0.5)], "holds in part"),
        ("C2a", [around(-0.5), around(0.5)], "does not hold"),
        ("C2a", [around(0.5), None], "undecided"),
        ("C2a", [None, None], "not testable here"),
        ("C2c", [around(0.1), around(0.5), around(0.3)], "holds"),
        ("C2c", [around(0.1), around(0.5), around(-0.3)], "holds in part"),  # the picture is lost, and the other clause fails
        ("B5", [around(-3.0)], "holds"),
        ("B5", [around(-0.01)], "undecided"),
        ("B5", [around(0.05)], "does not hold"),
    ],
)
def test_verdicts_by_hand(name, measured, verdict):
    found = judge(name, measured, "a model", STRICT)
    assert found.verdict == verdict
    assert [part.part for part in found.parts] == [part.name for part in registration().claim(name).parts]


def test_fewer_than_twelve_prompts_or_three_trainings_decide_nothing():
    few, enough = (judge("B5", [around(-3.0, prompts=count)], "a model") for count in (11, 12))
    assert (few.verdict, few.parts[0].outcome, few.parts[0].needed) == ("undecided", "undecided", 12) and enough.verdict == "holds"
    assert [judge("A4", [around(-3.0, prompts=count), around(1.0, prompts=count)], "a model").verdict for count in (2, 3)] == ["undecided", "holds"]
    assert judge("B5", [Estimate(-3.0, math.nan, math.nan, 24, 1)], "a model").verdict == "undecided"


def test_a_bound_of_the_descriptor_needs_the_descriptor():
    found = judge("C2a", [around(0.5), around(0.9)], "a model")
    assert [part.outcome for part in found.parts] == ["met", "not measured"] and found.verdict == "undecided"
    assert found.parts[1].asked == "at least the bound “strict”"
    assert judge("C2a", [around(0.5), around(0.9)], "a model", STRICT).parts[1].asked == "at least 0.60 (strict)"


def test_how_many_prompts_an_undecided_part_would_take():
    # Half as far from the bound as the interval is wide: four times as many prompts.
    assert prompts_needed(Estimate(0.05, -0.05, 0.15, 24, 1), 0.0) == 96
    assert prompts_needed(Estimate(0.25, 0.0, 0.75, 24, 1), 0.5) == 96  # the side towards the bound counts
    assert prompts_needed(Estimate(0.0, -0.1, 0.1, 24, 1), 0.0) is None
    assert judge("B5", [around(-0.25, 0.5)], "a model").parts[0].needed == 96


def test_parts_are_those_of_the_registration():
    by_name = {part.name: around(0.9) for part in registration().claim("C2a").parts}
    assert judge("C2a", by_name, "a model", STRICT).verdict == "holds"
    with pytest.raises(InputError, match="C2a has 2 parts, and 1 estimates were given: give one for each of keeps more than with padding zeroed, a copy"):
        judge("C2a", [around(0.9)], "a model", STRICT)
    with pytest.raises(InputError, match="C2a has no part looks nice: its parts are keeps more"):
        judge("C2a", {"looks nice": around(0.9)}, "a model", STRICT)
    with pytest.raises(InputError, match="No claim 'C9' is registered"):
        judge("C9", [], "a model")


def test_a_verdict_carries_effect_interval_numbers_trainings_and_the_texts_own_figure():
    found = judge("C2a", [around(0.5), around(0.61)], "minisd-v1", STRICT, trainings={"first": "undecided", "second": "holds"})
    shown = found.to_html()
    for words in (
        "undecided",
        "0.61 [0.59, 0.63]",
        "at least 0.60 (strict)",
        "24 prompts, 10 seeds each",
        "the same in 1 of 2 trainings",
        "before the criteria",
    ):
        assert words in shown
    assert found.parts[1].reported == 0.95 and found.parts[1].reported_outcome == "met"
    again = Verdict.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert again == found and str(again) == str(found)
    assert not judge("C2a", [around(0.5), around(0.61)], "another", STRICT).before
