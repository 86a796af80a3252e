"""The trainings under mitigations: design, tables that survive being stopped, effects of hand-made tables, command line."""

import csv
import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from memlib.base.errors import InputError
from memlib.companion.commands import main
from memlib.models.minisd.paths import settings
from memlib.results import trainings
from memlib.training.minisd import family
from memlib.training.minisd.mitigations import TRAINING_MITIGATIONS
from memlib.training.minisd.run_tables import RunTable

SEEDS = settings()["replicates"]["seeds"]


def test_the_design_goes_seed_by_seed_and_refuses_what_it_does_not_know():
    runs = family.mitigated()
    assert Counter(run.seed for run in runs) == dict.fromkeys(SEEDS, len(TRAINING_MITIGATIONS))
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert family.mitigated(["entropy-filter"], [SEEDS[1]]) == [family.Run(SEEDS[1], mitigation="entropy-filter")]
    with pytest.raises(InputError, match="no replicate with seed 5"):
        family.mitigated(None, [5])
    with pytest.raises(InputError, match="Unknown training-time mitigation 'hope'"):
        family.mitigated(["hope"])
    assert family.Run(11).name == "minisd-v1-s11" and family.Run(11, mitigation="entropy-filter").name == "minisd-v1-s11-entropy-filter"


def test_rows_of_a_run_take_the_place_of_earlier_ones(tmp_path):
    made = RunTable(tmp_path / "runs.csv", ("run", "value"), ("run",), lambda row: int(row["run"]), tmp_path)
    assert made.rows() == [] and not made.has({"run": 2})
    made.add([{"run": 2, "value": "a, b"}, {"run": 2, "value": "c"}])
    made.add([{"run": 1, "value": "first", "other": 3}])
    made.add([{"run": 2, "value": "new"}])
    assert made.rows() == [{"run": "1", "value": "first"}, {"run": "2", "value": "new"}] and made.has({"run": 2})


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """All tables in an empty folder, runs in another."""
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(trainings, "minisd_folder", lambda: tmp_path)
    monkeypatch.setattr(family, "runs_folder", lambda: tmp_path / "runs")
    return tmp_path


def test_a_stopped_design_goes_on_with_what_the_tables_lack(folder, monkeypatch, capsys):
    trained = []

    def stop_after_two(name, *rest):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(name)
        (folder / "runs" / name).mkdir(exist_ok=True)
        mark = {"first_step": 0, "last_step": 9, "group": "fresh", "copies": 1, "seen": 5, "marked": 1}
        (folder / "runs" / name / "marks.json").write_text(json.dumps([mark]))

    monkeypatch.setattr(family, "train", stop_after_two)
    monkeypatch.setattr(family, "load_run", lambda name: name)
    monkeypatch.setattr(family, "metrics_for", lambda substrate: None)
    monkeypatch.setattr(family, "PictureStore", lambda: None)
    monkeypatch.setattr(family, "_keep_strip", lambda substrate, name: None)
    found = [{"prompt": "a, b", "group": "duplicated", "copies": 4, "memorized": 1}]
    monkeypatch.setattr(family, "reproduced", lambda substrate, store: found)
    good = [{"prompt": "a, b", "alignment": 0.3, "alignment_of_real": 0.4, "background_right": 1}]
    monkeypatch.setattr(family, "quality_rows", lambda store, substrate, metrics: good)
    names = ["entropy-filter", "random-caption"]
    (folder / "runs" / f"minisd-v1-s{SEEDS[0]}" / "pipeline").mkdir(parents=True)
    (folder / "runs" / f"minisd-v1-s{SEEDS[0]}" / "pipeline" / "model_index.json").touch()
    with pytest.raises(KeyboardInterrupt):
        family.run_mitigated(names, progress=False)
    assert f"minisd-v1-s{SEEDS[1]} is not trained yet" in capsys.readouterr().out
    first, trained[:] = list(trained), []
    with pytest.raises(KeyboardInterrupt):
        family.run_mitigated(names, progress=False)
    assert first + trained == [run.name for run in family.mitigated(names)[:4]]
    with open(folder / "training_mitigations.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["mitigation"] for row in rows] == names * 2 and set(rows[0]) == {"mitigation", *family.REPRODUCED}
    assert {(row["padding"], row["duplicated"], row["steps"]) for row in rows} == {("v1", "1", str(settings()["replicates"]["steps"]))}
    quality = family.table("training_quality").rows()
    assert [row["mitigation"] for row in quality] == ["none", *names, *names]  # no plain training with the second seed at hand
    assert len(family.table("training_marks").rows()) == 4


def reproduced(seeds, shares, **shared):
    """Rows with the first so many of eight pairs a level reproduced."""
    return [
        {"padding": "v1", "duplicated": 1, "training_seed": seed, "steps": 1400, "group": group, "copies": copies,
         "training_picture": f"{group}{copies}-{i}", "prompt": f"{copies} {i}", "memorized": int(i < count), **shared}
        for seed in seeds for (group, copies), count in shares.items() for i in range(8)
    ]  # fmt: skip


def test_effects_of_hand_made_tables(folder):
    with pytest.raises(InputError, match="There is no replicates.csv"):
        trainings.compared("entropy-filter")
    shares = {("duplicated", 1): 0, ("duplicated", 16): 2, ("duplicated", 64): 4, ("duplicated", 128): 8, ("template", 48): 4}
    plain = reproduced((11, 12, 13), shares)
    pd.DataFrame([*plain, *reproduced((11,), {("duplicated", 16): 8}, padding="v2")]).to_csv(folder / "replicates.csv", index=False)
    with pytest.raises(InputError, match="There is no training_mitigations.csv"):
        trainings.compared("entropy-filter")
    shares = {("duplicated", 1): 0, ("duplicated", 16): 0, ("duplicated", 64): 4, ("duplicated", 128): 4, ("template", 48): 8}
    other = reproduced((11, 12), shares, mitigation="entropy-filter") + reproduced((21,), shares, mitigation="random-caption")
    pd.DataFrame(other).to_csv(folder / "training_mitigations.csv", index=False)
    assert trainings.measured() == ["entropy-filter", "random-caption"]
    found = trainings.compared("entropy-filter")
    assert found.seeds == (11, 12) and found.values["none"].shape == (40, 2)
    kinds = ("entropy-filter", "none")
    judged = found.pairs(trainings.JUDGED_LEVELS)
    difference = judged.difference(*kinds)
    assert sorted(set(judged.copies)) == [16, 64, 128] and difference.value == pytest.approx(-6 / 24)
    assert difference.low <= -6 / 24 <= difference.high < 0
    assert [judged.share(kind).value for kind in ("none", "entropy-filter")] == pytest.approx([14 / 24, 8 / 24])
    assert found.templates().difference(*kinds).value == 0.5
    before, after = (found.pairs().by_level(kind) for kind in ("none", "entropy-filter"))
    assert {n: e.value for n, e in before.items()} == {1: 0, 16: 0.25, 64: 0.5, 128: 1} and after[128].value == 0.5
    with pytest.raises(InputError, match="No training seed has both"):
        trainings.compared("random-caption")
    pd.DataFrame(other[1:]).to_csv(folder / "training_mitigations.csv", index=False)  # a prompt is missing
    with pytest.raises(InputError, match="do not list the same prompts"):
        trainings.compared("entropy-filter")


def test_quality_marks_and_costs_of_hand_made_tables(folder):
    rows = [
        {"mitigation": m, "training_seed": seed, "steps": 1400, "prompt": f"p{i}", "alignment": a, "alignment_of_real": 0.5,
         "background_right": int(i < right)}
        for m, a, right in (("none", 0.4, 8), ("entropy-filter", 0.3, 6)) for seed in (11, 12) for i in range(10)
    ]  # fmt: skip
    with pytest.raises(InputError, match="There is no training_quality.csv"):
        trainings.quality("entropy-filter")
    pd.DataFrame(rows).to_csv(folder / "training_quality.csv", index=False)
    found = trainings.quality("entropy-filter")
    values = {name: round(e.value, 6) for name, e in found.items()}
    for name in ("alignment", "background"):
        assert (values[f"plain {name}"], values[name], values[f"change of {name}"]) == (0.8, 0.6, -0.2)
    plain, filtered = trainings.held_out("entropy-filter")
    assert plain.shape == filtered.shape == (10, 2) and (plain == 0.4).all() and (filtered == 0.3).all()
    with pytest.raises(InputError, match="random-caption is not measured yet"):
        trainings.quality("random-caption")

    marks = [
        {"mitigation": "entropy-filter", "training_seed": seed, "steps": 20, "first_step": 2 * stage, "last_step": 2 * stage + 1,
         "group": group, "copies": copies, "seen": 10, "marked": (stage >= 5) * count + (seed == 12)}
        for seed in (11, 12) for stage in range(10)
        for group, copies, count in (("fresh", 1, 1), ("duplicated", 1, 2), ("duplicated", 128, 8), ("template", 48, 4))
    ]  # fmt: skip
    pd.DataFrame(marks).to_csv(folder / "training_marks.csv", index=False)
    shares = trainings.marked("entropy-filter")
    assert set(shares) == {"seen once", "1 copy", "128 copies", "templates"} and list(shares["128 copies"]) == list(range(0, 20, 2))
    late = trainings.marked("entropy-filter", last_half=True)["128 copies"]
    assert {step: (e.value, e.low, e.high, e.n_seeds) for step, e in late.items()} == {10: (pytest.approx(0.85), 0.8, 0.9, 2)}
    with pytest.raises(InputError, match="No training with random-words"):
        trainings.marked("random-words")

    with pytest.raises(InputError, match="--cost 12"):
        trainings.costs()
    times = [{"mitigation": m, "repeat": i, "seconds": (1 + i) * factor} for m, factor in (("none", 1), ("magnitude-filter", 1.3)) for i in range(4)]
    pd.DataFrame(times).to_csv(folder / "training_cost.csv", index=False)
    cost = trainings.costs()
    assert list(cost) == ["magnitude-filter"] and cost["magnitude-filter"].value == pytest.approx(1.3)


def test_quality_is_measured_on_each_held_out_prompt(monkeypatch):
    from memlib.models.minisd.prompt_sets import held_out_pictures

    class Drawn:
        def pictures(self, substrate, embedding, seeds):
            return held_out_pictures(5)[:, None]

    class Metrics:
        @staticmethod
        def alignment(pictures, prompts):
            return np.full(pictures.shape[:-3], 0.25)

    monkeypatch.setattr(family, "encode_prompts", lambda substrate, prompts: prompts)
    rows = family.quality_rows(Drawn(), None, Metrics, 5)
    assert len(rows) == 5 and [row["background_right"] for row in rows] == [1] * 5 and rows[0]["alignment"] == rows[0]["alignment_of_real"] == 0.25


def test_a_strip_of_pictures_comes_back(folder, monkeypatch):
    prompts = trainings.shown_prompts()
    assert list(prompts.table["copies"]) == [16, 16, 64, 64, 128, 128]
    drawn = np.random.default_rng(0).integers(0, 255, (10, 1, 64, 64, 3), dtype=np.uint8)
    monkeypatch.setattr(family, "PictureStore", lambda: type("Drawn", (), {"pictures": lambda self, *rest: drawn})())
    monkeypatch.setattr(family, "encode_prompts", lambda substrate, prompts: prompts)
    assert trainings.read_strip("none") is None
    family._keep_strip(None, "none")
    repeated, held_out = trainings.read_strip("none")
    assert (repeated == drawn[:6, 0]).all() and (held_out == drawn[6:, 0]).all()


def test_the_command_line_answers_in_one_sentence(capsys):
    assert main(["minisd", "mitigated", "--mitigation", "hope"]) == 1
    assert "Unknown training-time mitigation 'hope'" in capsys.readouterr().err
    assert main(["minisd", "mitigated", "--seed", "5"]) == 1
    assert "no replicate with seed 5" in capsys.readouterr().err
    assert main(["minisd", "mitigated", "--cost", "1"]) == 1
    assert "use 2 or more" in capsys.readouterr().err
