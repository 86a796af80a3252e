"""Scores of a group are kept prompt by prompt, under their pictures' keys: a run that is resumed reads and judges nothing twice."""

from __future__ import annotations

import numpy as np
import pytest

from memlib.base.errors import InputError
from memlib.experiment.group import Group
from memlib.experiment.run import Experiment
from memlib.mitigations import get
from memlib.prompts.sets import load_prompts
from memlib.sampling.stored import PictureStore


class Brightness:
    """A copy metric that says how near two mean brightnesses are; `seen` counts the prompts that it judged."""

    available, fingerprint, threshold = True, "brightness", 0.5

    def __init__(self):
        self.seen = 0

    def similarity(self, first, second):
        self.seen += len(first)
        return 1 - np.abs(first.mean((2, 3, 4)) - second.mean((2, 3, 4))) / 255


@pytest.fixture
def start(tmp_path, sd1_tiny, monkeypatch):
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    monkeypatch.setenv("MEMLIB_METRICS", str(tmp_path))
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\ntwo dogs & a bird\na red house\n")
    prompts, loaded = load_prompts(path), None

    def group(count=3, n_seeds=2):
        nonlocal loaded
        run = Experiment(str(sd1_tiny), n_seeds=n_seeds, steps=2, device="cpu", dtype="float32", store=tmp_path / "store", loaded=loaded)
        loaded = run.substrate
        run.metrics = {"copy": Brightness()}
        made = Group(run, prompts.first(count), "known")
        if count < 3:  # rows of one embedding, as `Group.part` takes them
            made.embedding = group(3).embedding.select(range(count))
        return made

    return group


def test_scores_are_those_of_all_pictures_together(start):
    group = start()
    values = group.score("similarity to original", "h")
    expected = 1 - np.abs(group.pictures("h").mean((2, 3, 4)) - group.pictures().mean((2, 3, 4))) / 255
    np.testing.assert_allclose(values, expected)
    assert values.shape == (3, 2) and group.score("similarity to training", "h") is None
    np.testing.assert_allclose(group.score_of("similarity to original", group.pictures("h")), values)
    assert group.score("similarity to original").min() == 1.0


def test_what_was_judged_is_not_read_or_judged_again(start, monkeypatch):
    first = start(count=2)
    first.score("similarity to original", "h")
    assert first.experiment.metrics["copy"].seen == 2
    more = start(count=3)
    values = more.score("similarity to original", "h")
    assert more.experiment.metrics["copy"].seen == 1, "only the third prompt is new"
    again = start(count=3)
    monkeypatch.setattr(type(again.experiment.store), "read_picture", lambda *_: pytest.fail("a picture was read"))
    np.testing.assert_array_equal(again.score("similarity to original", "h"), values)
    assert again.experiment.metrics["copy"].seen == 0 and again.experiment.store.made == 0


def test_some_pictures_are_the_same_ones_and_no_others_are_made(start):
    group = start()
    some = group.some_pictures("h", [2, 0], 1)
    assert group.experiment.store.made == 2
    assert np.array_equal(group.pictures("h")[[2, 0], :1], some) and group.experiment.store.made == 6
    assert np.array_equal(group.some_pictures("h", [1]), group.pictures("h")[[1]])


def test_edits_that_are_guided_alike_are_made_in_one_batch(start, monkeypatch, tmp_path):
    alike = ["none", "f", "h", get("random-token", count=2)]
    alone = start()
    expected = [alone.pictures(edit) for edit in alike]
    group, batches = start(), []
    group.experiment.store = PictureStore(tmp_path / "another")
    sample = group.experiment.store.sampler
    monkeypatch.setattr(group.experiment.store, "sampler", lambda *a, **k: batches.append(len(k["pairs"])) or sample(*a, **k))
    rows = group.make([*alike, get("static-transition"), get("ren"), "no edit"])
    assert rows == dict.fromkeys(alike, 4.0), "two guided steps"
    assert batches == [4 * 3 * 2], "what is guided otherwise, acts while sampling or is unknown is left out"
    for edit, pictures in zip(alike, expected, strict=True):
        assert np.abs(group.pictures(edit).astype(int) - pictures).max() <= 1 and group.keys(edit) == alone.keys(edit)
    assert group.make(alike) == {} and len(batches) == 1
    with pytest.raises(InputError):
        group.pictures("no edit")


def test_pictures_beyond_the_limit_are_read_from_the_store_again(start, monkeypatch):
    group = start()
    one = group.pictures().nbytes
    monkeypatch.setattr("memlib.experiment.group.HELD_BYTES", 2 * one)
    kept = {edit: group.pictures(edit) for edit in ("none", "f", "h")}
    assert len(group._pictures) == 2
    made = group.experiment.store.made
    assert all(np.array_equal(group.pictures(edit), pictures) for edit, pictures in kept.items()) and group.experiment.store.made == made
