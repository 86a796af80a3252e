"""The self-check passes on sound checkpoints, and notices each thing that is wrong; published figures beside ours."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from memlib.base.errors import InputError
from memlib.companion import check_published, check_substrate
from memlib.companion.check_substrate import Check, changed, check
from memlib.companion.commands import main


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    monkeypatch.setenv("MEMLIB_METRICS", str(tmp_path))


@pytest.fixture
def tiny(sd1_tiny):
    from memlib.models.substrate import load

    return load(str(sd1_tiny), "cpu", "float32")


def by_name(found):
    return {fact.name: fact.holds for fact in found}


@pytest.mark.parametrize("fixture", ["sd1_tiny", "sd2_tiny"])
def test_sound_checkpoints_of_both_versions_pass(request, fixture):
    from memlib.models.substrate import load

    substrate = load(str(request.getfixturevalue(fixture)), "cpu", "float32")
    found = by_name(check(substrate, say=lambda line: None))
    assert found.pop("copy metric") is None and found.pop("picture") is not None  # random weights need not give a picture with contrast
    assert len(found) == 6 and all(found.values()), found


def test_the_right_names_bring_stricter_facts(tiny):
    wrong = dataclasses.replace(tiny, name="sd21")
    found = by_name(check(wrong, say=lambda line: None))
    assert found["padding"] is False and found["schedule"] is False and found["token ids"]
    assert by_name(check(dataclasses.replace(tiny, name="sd14"), say=lambda line: None))["padding"]


def test_a_model_that_predicts_otherwise_than_the_pipeline_is_noticed(tiny, monkeypatch):
    real = check_substrate.trajectory
    monkeypatch.setattr(check_substrate, "trajectory", lambda s, cond, *rest: real(s, cond * 1.05, *rest))
    found = by_name(check(tiny, say=lambda line: None))
    assert found["first step"] is False and found["text states"]


def test_a_check_that_breaks_is_wrong_and_the_others_go_on(tiny, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(check_substrate, "uncond_states", broken)
    said = []
    found = by_name(check(tiny, say=said.append))
    assert found["predictions"] is False and found["token ids"] and any("no such kernel" in line for line in said)


def test_copies_are_changed_but_the_same_size():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    copy = changed(picture)
    assert copy.shape == picture.shape and not np.array_equal(copy, picture)


def test_the_command_ends_with_a_status(tiny, sd1_tiny, monkeypatch, capsys):
    monkeypatch.setattr("memlib.models.substrate.load", lambda *_: tiny)
    for holds, status in ((True, 0), (None, 0), (False, 1)):
        monkeypatch.setattr(check_substrate, "CHECKS", (lambda substrate, holds=holds: Check("fact", holds, "so"),))
        assert main(["check", str(sd1_tiny)]) == status
        assert ("do not start" in capsys.readouterr().out) == bool(status)


def test_published_figures_name_detectors_that_exist():
    table = check_published.reported()
    assert len(table) >= 4 and table["value"].between(0.5, 1).all() and set(table["metric"]) <= {"auc", "tpr_1"}
    assert check_published.rows_per_prompt(table, 50) == 2 * 50 * 4 + 6
    assert check_published.rows_per_prompt(table[table["detector"] == "magnitude"], 50) == 2


def test_as_many_prompts_as_the_time_allows():
    assert check_published.affordable(20, 0.001, 406) == 500
    assert check_published.affordable(1, 0.001, 406) == 73
    with pytest.raises(InputError, match="tells nothing"):
        check_published.affordable(1, 0.1, 406)


def test_ours_stands_beside_theirs(monkeypatch):
    """Scores with a known area: memorized 1 to 20 above others -20 to -1, but for one of them."""
    from memlib.probes.detectors import REGISTRY
    from memlib.probes.detectors.base import Scores

    figures = pd.DataFrame(
        [("magnitude", 1, "auc", 0.95, "s", "x"), ("magnitude", 1, "auc", 0.2, "s", "y"), ("sharpness", 1, "auc", 0.9, "s", "z")],
        columns=check_published.COLUMNS,
    )
    up, down = np.arange(1.0, 21)[:, None], -np.arange(1.0, 21)[:, None]
    up[0] = -1.5
    found = {REGISTRY["magnitude"]: [Scores(up, 2.0, 1), Scores(down, 2.0, 1)], REGISTRY["sharpness"]: "no derivative here"}
    monkeypatch.setattr(check_published, "measure_all", lambda groups, detectors: {d: found[d] for d in detectors})
    run = SimpleNamespace(group=lambda prompts, count, label: range(count), seeds=())
    table = check_published.compare(run, figures, "a", "b", 20)
    assert table["ours"][0] == pytest.approx(1 - 1 / 400) and list(table["agrees"])[1] is False and list(table["agrees"])[2] is None
    text = check_published.as_text(table)
    assert "theirs outside our interval" in text and "not measured (no derivative here)" in text
    assert run.seeds == (0,) and torch.is_grad_enabled()


def test_the_comparison_runs_on_a_checkpoint(sd1_tiny, tmp_path, monkeypatch, capsys):
    """From the command line to the table, on a random model: nothing is told apart, and every row has its interval."""
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    monkeypatch.setenv("MEMLIB_STORE", str(tmp_path / "store"))
    words = ("cat", "dog", "lamp", "boat", "tree", "house", "cloud", "stone", "fish", "bird")
    for name in ("some", "others"):
        (tmp_path / f"{name}.csv").write_text("prompt\n" + "\n".join(f"a {word} for {name}" for word in words))
    arguments = [str(sd1_tiny), "--memorized", str(tmp_path / "some.csv"), "--others", str(tmp_path / "others.csv"), "--steps", "2"]
    assert main(["published", *arguments, "--minutes", "600", "--csv", str(tmp_path / "table.csv")]) == 0
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(table["detector"]) == ["magnitude", "sharpness", "magnitude-all", "magnitude-all"] and (table["prompts"] == 20).all()
    assert (table["low"] <= table["ours"]).all() and (table["ours"] <= table["high"]).all() and (table["low"] < table["high"]).all()
    text = capsys.readouterr().out
    assert text.count("theirs 0.9") == text.count("theirs outside our interval") == 4
