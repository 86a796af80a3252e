"""The benchmark's ways make the same pictures, count their work, and say so."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from toys import count_rows

from memlib.companion.bench.sampling import LEVERS, PLAIN, Job, as_text, diffusers_pipeline, measure, ours, peak_rate, row_operations, swept
from memlib.companion.commands import main
from memlib.models.speed import Speed


@pytest.fixture(scope="module")
def tiny(sd1_tiny):
    from memlib.models.substrate import load

    return lambda speed: load(str(sd1_tiny), "cpu", "float32", speed)


def test_the_three_ways_make_the_same_pictures(tiny):
    substrate, job = tiny(PLAIN), Job(6, 2, 3)
    published, batched, own = diffusers_pipeline(substrate, job), diffusers_pipeline(substrate, job, 3), ours(substrate, job)
    assert published.shape == batched.shape == own.shape == (6, 64, 64, 3)
    assert np.abs(published.astype(int) - own).max() <= 1 and np.abs(batched.astype(int) - own).max() <= 1
    assert len({picture.tobytes() for picture in own}) == 6  # other seeds, other pictures


@pytest.mark.slow
def test_the_table_has_a_row_for_each_way_and_lever(tiny):
    said = []
    job = Job(2, 2, 2)
    table = measure(tiny, job, ["plain", "default"], repeats=1, say=said.append)
    assert list(table["way"]) == ["diffusers, prompt by prompt", "diffusers, in batches", "memlib, plain", "memlib, default",
                                  "memlib, guidance from the middle on", "memlib, guidance from three steps on",
                                  "memlib, the same, prefixes shared"] and len(said) == 7  # fmt: skip
    assert (table["pictures_per_second"] > 0).all() and table["difference"].notna().tolist() == [True] * 4 + [False, False, True]
    assert (table["difference"].dropna() >= 0).all() and (table["difference"].dropna() < 1e-3).all()
    assert "to published" in as_text(table, job)


def test_a_sweep_with_shared_prefixes_does_the_rows_that_its_share_is_reckoned_with(tiny, monkeypatch):
    job, substrate, made, rows = Job(8, 4, 8), tiny(PLAIN), [], []
    assert job.switches == [1, 2, 3] and job.crossed() == [(row, seed) for seed in (0, 1) for row in range(4)]
    count_rows(monkeypatch, substrate, rows)
    for shared in (False, True):
        done = sum(rows)
        made.append(swept(dataclasses.replace(substrate, speed=Speed(skip_unused=True, shared_prefix=shared)), job, latents_only=True))
        assert sum(rows) - done == (2 * 3 if shared else 8 * (1 + 2 + 3)) + 2 * 8 * (3 + 2 + 1)
    np.testing.assert_allclose(made[1], made[0], atol=2e-4, rtol=1e-4)


def test_operations_are_those_of_the_layers(tiny):
    """A convolution of k x k from c to d channels on h x w pixels takes 2 c d k k h w; one pass must take more than its first one alone."""
    substrate = tiny(PLAIN)
    conv = substrate.unet.conv_in
    first = 2 * conv.in_channels * conv.out_channels * 9 * 64
    assert row_operations(substrate) > 10 * first
    doubled = dataclasses.replace(substrate)
    assert row_operations(doubled) == row_operations(substrate)
    assert peak_rate(torch.device("cpu"), torch.float32, side=64, repeats=2) > 0


def test_bad_numbers_end_in_one_sentence(capsys):
    assert main(["bench", "sampling", "--pictures", "0"]) == 2
    assert "'--pictures': Input should be greater than or equal to 1" in capsys.readouterr().err
    assert main(["bench", "sampling", "--lever", "more"]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert LEVERS["plain"] == PLAIN
