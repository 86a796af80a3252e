"""The rounds of fine-tuning against memorization: kept once at their ends whatever stops a run, and what the table says of them."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import binomtest

from memlib.models.minisd.paths import minisd_folder, settings
from memlib.models.substrate import load
from memlib.probes.attack import Attacked, Budget, Targets
from memlib.results import remedy_rounds as kept_rounds
from memlib.training.finetune import Recipe, against
from memlib.training.minisd import remedy_rounds
from memlib.training.minisd.trainer import Schedule, Trainer


class Shrinking:
    """A U-Net whose loss is another in each step, and which is stopped once before each of the steps `stops`."""

    def __init__(self, module, stops):
        self.module, self.stops = module.requires_grad_(True), stops

    def loss(self, step):
        if step in self.stops:
            self.stops.remove(step)
            raise KeyboardInterrupt
        return (step + 1) * sum(weight.square().mean() for weight in self.module.parameters()), {}


@pytest.fixture
def training(tmp_path, sd1_tiny, monkeypatch):
    """Train four steps in rounds of two, anew from the last checkpoint; returns the trainer."""

    def train(name, until=None, stops=()):
        monkeypatch.setenv("MEMLIB_RUNS", str(tmp_path))
        recipe = Recipe(name, str(sd1_tiny), steps=4, batch=1, lr=1e-3, posterior=False, seed=0)
        part = Shrinking(load(sd1_tiny, "cpu", "float32").unet, list(stops))
        trainer = Trainer(part, Schedule(4, 1e-3, 0, decay=False), tmp_path / name, torch.device("cpu"), checkpoint_every=0.0)
        remedy_rounds.train_rounds(trainer, recipe, 2, until, progress=False)
        return trainer

    return train


def kept(folder):
    """The U-Nets of the rounds by the names of their folders."""
    return {one.name: load_file(next((one / "unet").glob("*.safetensors"))) for one in sorted((folder / "rounds").iterdir())}


def alike(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_rounds_are_the_models_at_their_ends_and_a_stopped_run_keeps_the_same(tmp_path, training, monkeypatch):
    exported, write = [], against.export

    def counted(trainer, base, folder):
        exported.append(trainer.step)
        write(trainer, base, folder)

    monkeypatch.setattr(against, "export", counted)
    # What stands at the ends of the rounds, from a loop that knows of no rounds.
    part = Shrinking(training("other", until=0).part.module, [])
    plain = Trainer(part, Schedule(4, 1e-3, 0, decay=False), tmp_path / "plain", torch.device("cpu"))
    expected = {}
    for end in (2, 4):
        plain.run(end, progress=False)
        expected[f"{end:04d}"] = {name: value.clone() for name, value in part.module.state_dict().items()}
    assert not (tmp_path / "other" / "rounds").exists() and not exported  # `until` 0 trains nothing

    assert training("whole").step == 4
    assert exported == [2, 4]
    whole = kept(tmp_path / "whole")
    assert whole.keys() == expected.keys() and all(alike(whole[name], expected[name]) for name in expected)
    assert not alike(whole["0002"], whole["0004"])

    exported.clear()
    with pytest.raises(KeyboardInterrupt):
        training("broken", stops=[1])  # in the first round
    assert not (tmp_path / "broken" / "rounds").exists()
    with pytest.raises(KeyboardInterrupt):
        training("broken", stops=[3])  # in the second
    assert training("broken", until=3).step == 3 and training("broken").step == 4
    training("broken")
    assert exported == [2, 4]
    broken = kept(tmp_path / "broken")
    assert broken.keys() == whole.keys() and all(alike(broken[name], whole[name]) for name in whole)


def test_a_round_is_not_taken_for_kept_while_it_is_being_written(tmp_path, training, monkeypatch):
    write = against.export

    def stopped(trainer, base, folder):
        (folder / "unet").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(against, "export", stopped)
    with pytest.raises(KeyboardInterrupt):
        training("run")
    assert not remedy_rounds.round_folder("run", 2).exists()
    monkeypatch.setattr(against, "export", write)
    training("run")
    assert [path.name for path in sorted((tmp_path / "run" / "rounds").iterdir())] == ["0002", "0004"]
    assert load(remedy_rounds.round_folder("run", 4), "cpu", "float32").unet is not None


def an_attack(steps):
    """Attacks that succeeded after `steps` [P, R]; -1: never."""
    steps = np.array(steps)
    pictures, nothing = np.zeros((len(steps), 4, 4, 3), np.uint8), np.zeros(steps.shape)
    return Attacked(Targets("memorized", tuple(f"known {i}" for i in range(len(steps))), pictures), steps, nothing, nothing, nothing, (0, 10), 0.5)


def others(scores):
    return SimpleNamespace(prompts=SimpleNamespace(prompts=("x", "y")), score=lambda name: scores.get(name))


def test_rows_of_a_model():
    found = {"prompt": an_attack([[0], [10], [-1]]), "other": an_attack([[-1], [-1], [10]])}
    scores = {"alignment with prompt": np.array([[0.1, 0.2], [0.3, 0.5]]), "quality": np.array([[0.12345, 0.12345], [1, 0]])}
    rows = kept_rounds.rows_of(found, others(scores))
    assert rows == [
        {"prompts": "memorized", "prompt": "known 0", "at_once": 1, "from_prompt": 1, "from_other": 0},
        {"prompts": "memorized", "prompt": "known 1", "at_once": 0, "from_prompt": 1, "from_other": 0},
        {"prompts": "memorized", "prompt": "known 2", "at_once": 0, "from_prompt": 0, "from_other": 1},
        {"prompts": "not memorized", "prompt": "x", "alignment": 0.15, "quality": pytest.approx(0.1234, abs=1.1e-4)},
        {"prompts": "not memorized", "prompt": "y", "alignment": 0.4, "quality": 0.5},
    ]
    assert "quality" not in kept_rounds.rows_of(found, others({"alignment with prompt": scores["alignment with prompt"]}))[-1]


def test_rounds_are_measured_once_each_and_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_RUNS", str(tmp_path))
    monkeypatch.setattr(kept_rounds, "minisd_folder", lambda: tmp_path)
    asked = []

    def measured(name, folder, device):
        asked.append((name, folder))
        return [{"prompts": "memorized", "prompt": name, "at_once": 0, "from_prompt": 1, "from_other": 0},
                {"prompts": "not memorized", "prompt": "a, b", "alignment": 0.25, "quality": 0.5}]  # fmt: skip

    monkeypatch.setattr(remedy_rounds, "_measured", measured)
    block = settings()["remedies"]
    length, last = block["steps"], block["steps"] * block["rounds"]
    recipes = {name: Recipe(f"tiny-{name}", "none", steps=last, batch=1, lr=1e-3, posterior=False, seed=0) for name in ("adversarial", "surrogates")}
    assert kept_rounds.read_rounds() is None
    remedy_rounds.measure_rounds("surrogates", recipes["surrogates"])
    assert kept_rounds.read_rounds() is None and not asked  # nothing is trained
    for name, steps in (("surrogates", last), ("adversarial", last), ("adversarial", length)):
        remedy_rounds.round_folder(f"tiny-{name}", steps).mkdir(parents=True)
        for _ in range(2):
            remedy_rounds.measure_rounds(name, recipes[name])
    assert [(name, folder.name) for name, folder in asked] == [
        (f"tiny-surrogates-{last}", f"{last:04d}"), (f"tiny-adversarial-{last}", f"{last:04d}"), (f"tiny-adversarial-{length}", f"{length:04d}")
    ]  # fmt: skip
    found = kept_rounds.read_rounds()
    assert tuple(found.columns) == kept_rounds.COLUMNS
    expected = [("adversarial", length), ("adversarial", last), ("surrogates", last)]
    assert list(found[["remedy", "steps"]].itertuples(index=False, name=None)) == [run for run in expected for _ in range(2)]
    known, other = found.iloc[0], found.iloc[1]
    assert (known["prompt"], other["prompt"]) == (f"tiny-adversarial-{length}", "a, b")
    assert known["from_prompt"] == 1 and np.isnan(known["alignment"]) and other["quality"] == 0.5 and np.isnan(other["at_once"])


def test_a_kept_model_is_measured_as_minisd_is(sd1_tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("MEMLIB_STORE", str(tmp_path))
    monkeypatch.setattr(kept_rounds, "BUDGET", Budget(steps=1, samples=1, every=1, sampling_steps=2))
    monkeypatch.setattr(kept_rounds, "SAMPLING", {"steps": 2, "guidance": 7.5, "scheduler": "ddim"})
    for name, value in (("MEMORIZED", 2), ("OTHERS", 2), ("SEEDS", 1)):
        monkeypatch.setattr(kept_rounds, name, value)
    rows = remedy_rounds._measured("tiny-2", sd1_tiny, "cpu")
    assert [row["prompts"] for row in rows] == ["memorized"] * 2 + ["not memorized"] * 2
    for role, own in (("memorized", rows[:2]), ("heldout", rows[2:])):
        with open(minisd_folder() / "prompts" / f"minisd-{role}.csv", encoding="utf-8", newline="") as file:
            assert {row["prompt"] for row in own} <= {line["prompt"] for line in csv.DictReader(file)}
    # Random weights know no picture.
    assert all(row[name] == 0 for row in rows[:2] for name in ("at_once", "from_prompt", "from_other"))
    assert all(np.isfinite(row[name]) for row in rows[2:] for name in ("alignment", "quality"))


def a_model(back, alone, alignment):
    known = [{"prompts": "memorized", "prompt": f"known {i}", "at_once": a, "from_prompt": a, "from_other": b}
             for i, (b, a) in enumerate(zip(back, alone, strict=True))]  # fmt: skip
    return [*known, *({"prompts": "not memorized", "prompt": f"other {i}", "alignment": value} for i, value in enumerate(alignment))]


def test_curves_through_training():
    runs = {("adversarial", 60): a_model([0, 1, 0, 0], [1, 0, 0, 0], [0.2, 0.4]), ("surrogates", 60): a_model([1, 1, 1, 1], [0] * 4, [0.1, 0.1]),
            ("adversarial", 120): a_model([0] * 4, [0] * 4, [0.5, 0.7])}  # fmt: skip
    rounds = pd.DataFrame([{"remedy": remedy, "steps": steps, **row} for (remedy, steps), rows in runs.items() for row in rows])
    before = pd.DataFrame(a_model([1, 1, 1, 0], [1, 1, 0, 1], [0.8, 0.8]))
    found = kept_rounds.through_training(rounds, before)
    assert list(found) == [kept_rounds.BACK, kept_rounds.AT_ONCE, "alignment with prompt"]  # quality was not measured
    back = found[kept_rounds.BACK]
    assert {remedy: {steps: e.value for steps, e in curve.items()} for remedy, curve in back.items()} == {
        "adversarial": {0: 1.0, 60: 0.5, 120: 0.0}, "surrogates": {0: 1.0, 60: 1.0}
    }  # fmt: skip
    wilson = binomtest(2, 4).proportion_ci(method="wilson")
    assert (back["adversarial"][60].low, back["adversarial"][60].high) == pytest.approx((wilson.low, wilson.high))
    assert found[kept_rounds.AT_ONCE]["adversarial"][60].value == 0.25
    assert found["alignment with prompt"]["adversarial"][120].value == pytest.approx(0.6)
    fewer = before[before["prompt"] != "known 0"]
    assert 0 not in kept_rounds.through_training(rounds, fewer)[kept_rounds.BACK]["adversarial"]
    assert list(kept_rounds.through_training(rounds)[kept_rounds.BACK]["surrogates"]) == [60]


def test_the_notebooks_defaults_are_those_of_the_rounds():
    def run(**changed):
        return SimpleNamespace(**{"seeds": (0, 1), "steps": 50, "guidance": 7.5, "scheduler": "ddim"} | changed)

    page = (minisd_folder().parents[1] / "notebooks" / "20_adversarial_finetuning.py").read_text(encoding="utf-8")
    counts = [f"n_prompts = {kept_rounds.MEMORIZED} ", f"n_others = {kept_rounds.OTHERS} "]
    for line in (*counts, "n_seeds = 2 ", "attack_steps = 40 ", "attack_samples = 4 ", "attack_every = 10 ",
                 "check_steps = 25 ", "steps = 50 ", "guidance = 7.5 ", 'scheduler = "ddim" '):  # fmt: skip
        assert f"\n{line}" in page
    # The table has those prompts, of each model.
    rows = kept_rounds.read_rounds()
    counted = rows.groupby(["remedy", "steps", "prompts"]).size().unstack()
    assert (counted["memorized"] == kept_rounds.MEMORIZED).all() and (counted["not memorized"] == kept_rounds.OTHERS).all()
    assert kept_rounds.measured_alike(run(), Budget(40, 4, every=10, sampling_steps=25))
    assert not kept_rounds.measured_alike(run(steps=25), Budget(40, 4, every=10, sampling_steps=25))
    assert not kept_rounds.measured_alike(run(), Budget(40, 8, every=10, sampling_steps=25))
