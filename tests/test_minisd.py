"""MiniSD's data, trainer and judges: determinism, known duplication, held-out parts, exact resume, hand-made cases."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from memlib.base.errors import InputError
from memlib.models.minisd.augment import augmented
from memlib.models.minisd.captions import caption, reference_caption
from memlib.models.minisd.corpus import LEVELS, PAIRS_PER_LEVEL, Corpus
from memlib.models.minisd.drawn import background_right, retrieval
from memlib.models.minisd.judges import pool_at_eot
from memlib.models.minisd.paths import minisd_folder
from memlib.models.minisd.prompt_sets import corpus, training_pictures
from memlib.models.minisd.scenes import COLOURS, Background, held_out_combination, paint_background
from memlib.probes.reproduced import copies_by_level
from memlib.prompts.sets import load_prompts
from memlib.training.minisd.calibrate import near_misses, precision_recall, threshold_at
from memlib.training.minisd.trainer import Schedule, Trainer, generator

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def small():
    return Corpus(minisd_folder(), fresh=500, seed=3)


def test_an_epoch_holds_every_pair_as_often_as_its_level_says(small):
    counts = Counter(small.example(i)[2] for i in range(small.epoch_length))
    expected = {i: p.copies for i, p in enumerate(small.repeated)} | {-1: 500}
    assert counts == expected
    assert Counter(p.copies for p in small.pairs) == dict.fromkeys(LEVELS, PAIRS_PER_LEVEL)


def test_deduplicated_epochs_have_the_same_length_and_one_copy_each(small):
    once = Corpus(minisd_folder(), fresh=500, seed=3, duplicates=False)
    assert once.epoch_length == small.epoch_length
    counts = Counter(once.example(i)[2] for i in range(once.epoch_length))
    assert all(counts[i] == 1 for i in range(len(once.repeated)))
    assert [p.scene for p in once.pairs] == [p.scene for p in small.pairs]


def test_examples_depend_on_seed_and_position_alone(small):
    again, other = Corpus(minisd_folder(), fresh=500, seed=3), Corpus(minisd_folder(), fresh=500, seed=4)
    positions = [0, 17, small.epoch_length + 5, 2]
    assert [small.example(i) for i in positions] == [again.example(i) for i in positions]
    assert [small.example(i) for i in range(20)] != [other.example(i) for i in range(20)]


def test_fresh_scenes_do_not_come_back_and_captions_vary(small):
    fresh = [e for e in (small.example(i) for i in range(2 * small.epoch_length)) if e[2] < 0]
    pictures = {small.picture(scene).tobytes() for scene, _, _ in fresh[:400]}
    assert len(pictures) == 400
    assert len({text for _, text, _ in fresh}) > 0.9 * len(fresh)


def test_held_out_concepts_and_combinations_are_never_trained_on(small):
    held = {c.index for c in small.ingredients.held_out}
    for i in range(small.epoch_length):
        scene, _, _index = small.example(i)
        if scene.tone is not None:
            continue
        ids = [t.concept for t in scene.things]
        assert not held & set(ids)
        assert not any(held_out_combination(a, b) for k, a in enumerate(ids) for b in ids[k + 1 :])
        assert not held_out_combination(ids[0], scene.background.first)
    for scene, _ in small.held_out(50, "concepts"):
        assert {t.concept for t in scene.things} <= held


def test_captions_name_what_is_there(small):
    rng = np.random.default_rng(0)
    for scene, _ in small.fresh_scenes(9, 0, 60):
        text = caption(scene, small.ingredients, rng, "medium")
        assert all(small.ingredients.concepts[t.concept].name in text for t in scene.things)
        assert all(colour in text for colour in scene.background.colours)
        described = reference_caption(scene, small.ingredients)
        assert all(t.place in described or scene.layout == "centre" for t in scene.things)


def test_prompt_files_are_what_the_seeds_give():
    table = load_prompts("minisd-duplicated").table
    assert list(table["prompt"]) == [p.caption for p in corpus().pairs]
    assert list(table["copies"]) == [p.copies for p in corpus().pairs]
    assert (training_pictures("dup128-03")[0] == corpus().picture(corpus().pairs[4 * PAIRS_PER_LEVEL + 3].scene)).all()
    assert training_pictures("tpl00").shape == (6, 64, 64, 3)
    with pytest.raises(InputError, match="no training picture 'dup999-00'"):
        training_pictures("dup999-00")


def test_backgrounds_are_told_apart():
    names = list(COLOURS)
    plain = np.stack([paint_background(Background("plain", name)) for name in names])[:, None]
    assert background_right(plain, ["plain"] * len(names), names).all()
    assert not background_right(plain, ["plain"] * len(names), names[1:] + names[:1]).any()
    gradient = paint_background(Background("gradient", "red", "blue"))[None, None]
    assert background_right(gradient, ["gradient"], ["red; blue"]).all()
    assert not background_right(gradient, ["gradient"], ["blue; red"]).any()
    stripes = paint_background(Background("stripes", "red", "blue"))[None, None]
    assert background_right(stripes, ["stripes"], ["blue; red"]).all()


def test_retrieval_redraws_the_scene_with_every_concept(small):
    scene = small.pairs[0].scene
    other = scene.with_main((scene.main.concept + 1) % len(small.ingredients.concepts))
    assert [a == b for a, b in zip(scene.things, other.things, strict=True)].count(False) == 1
    pictures = np.stack([small.picture(scene), small.picture(other)])[None]

    def pixels(batch):
        flat = batch.reshape(len(batch), -1).astype(np.float32)
        flat -= flat.mean(1, keepdims=True)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    assert retrieval(pixels, pictures, [scene], within=1).tolist() == [[True, False]]


def test_copies_by_level_needs_nine_tenths_of_the_seeds():
    similarity = np.full((4, 10), 0.9)
    similarity[0, :1] = 0.1  # nine of ten: counts
    similarity[1, :2] = 0.1  # eight of ten: does not
    shares = copies_by_level(similarity, [1, 1, 64, 64], threshold=0.8)
    assert {level: e.value for level, e in shares.items()} == {1: 0.5, 64: 1.0}


def test_threshold_and_precision_by_hand():
    positive, negative = np.array([0.9, 0.8, 0.7, 0.4]), np.array([0.75, 0.3, 0.2])
    precision, recall = precision_recall(positive, negative, np.array([0.4, 0.76]))
    np.testing.assert_allclose(precision, [4 / 5, 1])
    np.testing.assert_allclose(recall, [1, 2 / 4])
    assert threshold_at(positive, negative, 0.9) == 0.8  # at 0.7 one of four is wrong
    assert threshold_at(positive, negative, 0.75) == 0.4


def test_near_misses_share_with_a_picture_what_they_should(small):
    scene = small.pairs[0].scene
    background, things, anew = near_misses(scene, small, np.random.default_rng(0))
    assert background.things == scene.things and background.background != scene.background
    assert things.background == scene.background
    assert not {t.concept for t in things.things} & {t.concept for t in scene.things}
    assert anew.rendering != scene.rendering and anew.background == scene.background
    assert [(t.concept, t.place) for t in anew.things] == [(t.concept, t.place) for t in scene.things]


def test_augmented_copies_keep_shape_and_follow_the_generator(small):
    pictures = np.stack([small.picture(p.scene) for p in small.pairs[:6]])
    one, two = (augmented(pictures, np.random.default_rng(5)) for _ in range(2))
    assert one.dtype == np.uint8 and one.shape == pictures.shape
    assert (one == two).all() and (one != pictures).any()


def test_pooling_takes_the_first_eot():
    ids = torch.tensor([[49406, 5, 49407, 49407], [49406, 49407, 0, 0]])
    states = torch.arange(8.0).reshape(2, 4, 1)
    assert pool_at_eot(states, ids).flatten().tolist() == [2.0, 5.0]


class Line:
    """A part small enough to train in milliseconds: fits y = Wx from noise of its own."""

    def __init__(self):
        torch.manual_seed(0)
        self.module = nn.Linear(4, 3)

    def loss(self, step):
        x = torch.randn(8, 4, generator=generator(1, step))
        return (self.module(x) - x[:, :3]).pow(2).mean(), {}


def weights(trainer):
    return {k: v.clone() for k, v in trainer.averaged_state().items()}


def test_a_resumed_training_ends_in_the_same_weights(tmp_path):
    schedule = Schedule(steps=40, lr=1e-2, warmup=5, ema=0.9)
    whole = Trainer(Line(), schedule, tmp_path / "whole", torch.device("cpu"))
    whole.run(progress=False)
    for until in (13, 14, None):
        parts = Trainer(Line(), schedule, tmp_path / "parts", torch.device("cpu"))
        parts.run(until, progress=False)
    assert parts.step == 40
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=0, atol=0)
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert steps == [0, 20]


def test_training_fits_and_refuses_a_loss_that_is_not_finite(tmp_path):
    trainer = Trainer(Line(), Schedule(steps=400, lr=3e-2, warmup=5), tmp_path / "fit", torch.device("cpu"))
    trainer.run(progress=False)
    torch.testing.assert_close(trainer.part.module.weight, torch.eye(3, 4), rtol=0, atol=0.02)

    class Broken(Line):
        def loss(self, step):
            return super().loss(step)[0] * float("nan"), {}

    with pytest.raises(InputError, match="not finite at step 0"):
        Trainer(Broken(), Schedule(steps=3, lr=1e-2), tmp_path / "broken", torch.device("cpu")).run(progress=False)


KILLED = """
import sys, time, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_minisd import Line, Schedule, Trainer
class Slow(Line):
    def loss(self, step):
        time.sleep(0.005)
        return super().loss(step)
torch.set_num_threads(1)
Trainer(Slow(), Schedule(steps=100000, lr=1e-2), Path({folder!r}), torch.device("cpu"), checkpoint_every=0.02).run(progress=False)
"""


def test_a_kill_leaves_a_checkpoint_that_loads(tmp_path):
    folder = tmp_path / "killed"
    code = KILLED.format(tests=str(ROOT / "tests"), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = Trainer(Line(), Schedule(steps=100000, lr=1e-2), folder, torch.device("cpu"))
    assert resumed.step > 0
    resumed.run(until=resumed.step + 3, progress=False)


def test_command_line_answers_in_one_sentence(capsys, monkeypatch, tmp_path):
    from memlib.companion.commands import main

    monkeypatch.setenv("MEMLIB_RUNS", str(tmp_path / "none"))
    monkeypatch.setenv("MEMLIB_DATA", str(tmp_path))
    (tmp_path / "minisd").mkdir()
    (tmp_path / "minisd" / "training.yml").write_text((ROOT / "data" / "minisd" / "training.yml").read_text())
    assert main(["minisd", "train", "minisd-v1", "--device", "cpu", "--quiet"]) == 1
    assert "train vae" in capsys.readouterr().err
    assert main(["minisd", "train", "vae", "--device", "cpu", "--until", "1", "--quiet"]) == 1
    assert "memlib minisd data" in capsys.readouterr().err


def test_finding_gives_up_on_a_prompt_once_two_seeds_failed(monkeypatch):
    from memlib.probes import reproduced

    prompts = load_prompts("minisd-duplicated").first(3)
    failing = {prompts.prompts[0]: set(), prompts.prompts[1]: {4}, prompts.prompts[2]: {1, 3}}
    asked = Counter()

    def similarity(store, substrate, metric, some, seeds):
        asked.update(some.prompts)
        return np.array([[0.1 if seeds[0] in failing[p] else 0.9] for p in some.prompts])

    monkeypatch.setattr(reproduced, "similarity_to_training", similarity)
    rows = reproduced.find_memorized(None, None, type("Metric", (), {"threshold": 0.8}), prompts)
    assert [r["memorized"] for r in rows] == [1, 1, 0]
    assert [r["seeds_above"] for r in rows] == [10, 9, 2]
    assert list(asked.values()) == [10, 10, 4]
