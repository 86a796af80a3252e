"""The registration: parts, bounds, and what the texts' own figures answer."""

from __future__ import annotations

import pytest
import yaml

from memlib.base.errors import InputError
from memlib.base.paths import data_folder
from memlib.judging.registration import Part, claim_verdict, load, part_verdict, put_through

BOUNDS = {"strict": 0.75, "lax": 0.5, "near": 0.4, "lost": 0.25}


def part(relation, bound=0.0):
    return Part(name="x", kind="direction", quantity="x", relation=relation, bound=bound)


@pytest.mark.parametrize(
    ("relation", "bound", "low", "high", "verdict"),
    [
        (">", 0, 0.1, 0.2, "met"),
        (">", 0, 0.0, 0.2, "undecided"),  # the interval touches what it must exceed
        (">", 0, -0.2, 0.0, "refuted"),
        (">=", "near", 0.4, 0.5, "met"),
        (">=", "near", 0.3, 0.39, "refuted"),
        (">=", "near", 0.3, 0.4, "undecided"),
        ("<", "lost", 0.0, 0.25, "undecided"),
        ("<", "lost", 0.25, 0.3, "refuted"),
        ("<=", 1, 0.9, 1.0, "met"),
        ("<=", 1, 1.01, 1.2, "refuted"),
    ],
)
def test_whole_intervals_decide_on_either_side(relation, bound, low, high, verdict):
    assert part_verdict(part(relation, bound), low, high, BOUNDS) == verdict


def test_one_verdict_of_several_parts():
    assert claim_verdict(["met", "met", "not reported"]) == "holds"
    assert claim_verdict(["refuted", "refuted"]) == "does not hold"
    assert claim_verdict(["met", "refuted", "undecided"]) == "holds in part"
    assert claim_verdict(["met", "undecided"]) == claim_verdict(["refuted", "undecided"]) == "undecided"
    assert claim_verdict(["not reported"]) == "not reported"


def test_every_claim_is_registered_and_bounds_are_of_one_kind():
    registration = load()
    claims = yaml.safe_load((data_folder() / "claims.yml").read_text(encoding="utf-8"))
    assert sorted(claim.id for claim in registration.claims) == sorted(entry["id"] for entry in claims)
    assert registration.bounds_for(0.75) == pytest.approx(registration.bounds)
    assert registration.bounds_for(0.6)["lax"] == pytest.approx(0.4)


def test_texts_figures_pass_but_where_the_text_contradicts_itself():
    rows = put_through(load())
    failed = {(row["claim"], row["part"]) for row in rows if row["verdict"] == "refuted"}
    # `basin` Table 3: 140.05 for 106.49; `basin` 6.3: 2.08 s for 1.26 s.
    assert failed == {("B6", "quality with duplicates"), ("A3", "time as without")}
    values = {(row["claim"], row["part"]): row["value"] for row in rows}
    assert values["C1a", "zeroed prompt states keep more than prompt states alone"] == pytest.approx(0.42 - 0.04)
    assert values["C5b", "alignment under partial masking"] == pytest.approx(0.34 / 0.35)
    assert values["B2", "the trace tells where"] is None


def test_a_registration_that_does_not_say_why_is_refused(tmp_path):
    content = yaml.safe_load((data_folder() / "registration.yml").read_text(encoding="utf-8"))
    path = tmp_path / "registration.yml"

    def refused(match):
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        with pytest.raises(InputError, match=match):
            load(path)

    strength = next(p for p in content["claims"][0]["parts"] if p["kind"] == "strength")
    reason = strength.pop("reason")
    refused("claims.0.parts.2.*gives a reason")
    strength["reason"], strength["bound"] = reason, "large"
    refused("claims.0.parts.2.bound")
    strength["bound"] = "near"
    content["claims"].append(content["claims"][0])
    refused("registered twice: C1a")
    content["claims"].pop()
    content["claims"][0]["design"] = "some"
    refused("no design is called some")
    content["claims"][0]["design"] = "edits"
    content["claims"][0]["parts"][0]["text"]["add"] = [["Table 2", "z", "sscd_to_original"]]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"C1a.*has no row clip, Table 2, z, sscd_to_original"):
        put_through(load(path))
