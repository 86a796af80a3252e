"""Times of a page: ratios within turns, kept runs where all are there, and new ones where they are not."""

import numpy as np
import pytest

from memlib.base.errors import InputError
from memlib.companion.bench.mitigations import table as made_of_runs
from memlib.mitigations import get
from memlib.results import times as module
from memlib.results.timed import Run, by_turn, path_of, read, write
from memlib.results.times import TURNS, Times, kept_table, times


class Sampled:
    """Stands in for a sampler on a substrate of this name."""

    class substrate:
        name = "folder/made-up"


# The machine is three times slower in the second turn, and "ren" is hit by something else in the third.
SECONDS = {"none": [1.0, 3.0, 1.0, 1.0], "pad-swap": [0.9, 2.7, 0.9, 0.9], "ren": [1.1, 3.3, 9.0, 1.1]}


@pytest.fixture
def runs():
    return [Run("memorized", name, turn, s, 100.0, 0, 10.0) for name, row in SECONDS.items() for turn, s in enumerate(row)]


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    monkeypatch.setenv("MEMLIB_DATA", str(tmp_path))
    (tmp_path / "bench").mkdir()
    return tmp_path


def test_ratios_are_medians_over_turns(runs):
    found = Times(runs, "")
    ratio = found.ratio("seconds", "ren")
    assert ratio.value == pytest.approx(1.1) and ratio.low == pytest.approx(1.1) and ratio.high <= 9
    assert found.ratio("seconds", "ren", "pad-swap").value == pytest.approx(1.1 / 0.9)
    assert found.ratio("seconds", "amg") is None and found.ratio("evaluations", "ren").value == 1
    assert found.extreme("seconds", ["none", "ren", "amg"], largest=True) == "ren"
    assert found.extreme("seconds", ["none", "ren", "pad-swap"]) == "pad-swap" and found.extreme("seconds", ["amg"]) is None
    shown = found.table()
    assert shown.index[0] == "none" and shown.loc["none", "seconds per picture"] == 1 and shown.loc["none", "time, as a multiple of none"].startswith("1.000")


def test_the_dearest_of_ours_stands_against_the_cheapest_of_the_others(runs):
    faster = [Run("memorized", "amg", run.turn, 0.5 * run.seconds, 50.0, 0, 10.0) for run in runs if run.mitigation == "none"]
    found = Times([*runs, *faster], "").against(["pad-swap", "ren"])
    assert found["seconds_to_none"].value == pytest.approx(1.1) and found["seconds_to_cheapest"].value == pytest.approx(2.2)
    assert found["evaluations_to_none"].value == 1 and found["evaluations_to_cheapest"].value == 2
    assert Times(runs, "").against(["pad-swap", "wen-3"]) == dict.fromkeys(found)
    assert Times(runs, "").against(["pad-swap"], ["ren"])["seconds_to_cheapest"] is None


def test_runs_of_both_kinds_of_prompts_are_turns_of_their_own(runs):
    others = [Run("not memorized", run.mitigation, run.turn, 2 * run.seconds, 100.0, 0, 10.0) for run in runs]
    assert Times([*runs, *others], "").ratio("seconds", "pad-swap").n_prompts == 8


def test_kept_runs_come_back_and_are_taken_where_all_are_there(runs, monkeypatch):
    assert read("made-up") is None
    write(runs, "substrate: made-up; commit: abc", path_of("made-up"))
    back, source = read("folder/made-up")
    assert back == runs and source == "substrate: made-up; commit: abc"
    monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("was timed anew"))
    found = times(Sampled, [get("none"), get("ren")], ["a"])
    assert {run.mitigation for run in found.runs} == {"none", "ren"} and found.source == source


@pytest.mark.parametrize(("mitigations", "turns", "expected"), [(["ren"], 3, 3), (["ren", "amg"], None, TURNS)])
def test_they_are_timed_anew_where_that_is_asked_for_or_one_is_not_there(mitigations, turns, expected, runs, monkeypatch):
    write(runs, "kept", path_of("made-up"))
    asked = []
    monkeypatch.setattr(module, "measure", lambda sampler, chosen, prompts, count: (asked.append((chosen, prompts, count)) or runs, {}))
    found = times(Sampled, [get(name) for name in mitigations], ["a", "b"], turns)
    assert found.source == "Timed in this run."
    assert asked == [([get(name) for name in ["none", *mitigations]], {"prompts": ["a", "b"]}, expected)]


def test_a_broken_file_is_named(data):
    path_of("made-up").write_text("mitigation,seconds\nnone,1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"made-up-runs\.csv cannot be read"):
        read("made-up")


def test_a_quantity_by_turn_has_no_mitigation_first():
    runs = [Run("memorized", name, turn, 10 * turn + n, 100, 0, 0) for turn in (1, 0) for n, name in enumerate(("dear", "none", "cheap"))]
    found = by_turn(runs, "seconds")
    assert list(found) == ["none", "dear", "cheap"] and found.to_numpy().tolist() == [[1, 0, 2], [11, 10, 12]]


def test_one_turn_has_no_interval():
    ratio = Times([Run("p", name, 0, 1.0, 2.0, 0, 1.0) for name in ("none", "ren")], "").ratio("seconds", "ren")
    assert ratio.value == 1 and np.isnan(ratio.low)


def test_the_kept_table_of_a_substrate_is_shown_and_its_absence_said(data, runs):
    shown, words = kept_table("made-up")
    assert shown.empty and "memlib bench mitigations" in words
    made_of_runs(runs, {}).assign(provenance="commit: abc").to_csv(data / "bench" / "made-up.csv", index=False)
    shown, words = kept_table("folder/made-up")
    assert shown.index[0] == "none" and words == "commit: abc"
    (data / "bench" / "made-up.csv").write_text("mitigation\nnone\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"made-up\.csv cannot be read"):
        kept_table("made-up")
