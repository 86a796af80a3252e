"""The benchmark's ways make the same pictures, count their work, and say so; a run that was stopped goes on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from toys import count_rows

from memlib.base.errors import InputError
from memlib.companion.bench import rounds
from memlib.companion.bench.sampling import PLAIN, Job, Model, Way, chosen, diffusers_pipeline, ours, products, row_operations, usual_ways, ways
from memlib.companion.bench.table import BATCHED, DEFAULT, PUBLISHED, RATE, SHARED, SWEEP, UNDER, summary
from memlib.companion.commands import main
from memlib.models import architectures
from memlib.models.speed import Speed

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def tiny(sd1_tiny):
    return Model(str(sd1_tiny), "cpu", "float32")


def test_the_three_ways_make_the_same_pictures(tiny):
    substrate, job = tiny.substrate(Way(PLAIN)), Job(6, 2, 3)
    published, batched, own = diffusers_pipeline(substrate, job), diffusers_pipeline(substrate, job, 3), ours(substrate, job)
    assert published.shape == batched.shape == own.shape == (6, 64, 64, 3)
    assert np.abs(published.astype(int) - own).max() <= 1 and np.abs(batched.astype(int) - own).max() <= 1
    assert len({picture.tobytes() for picture in own}) == 6  # other seeds, other pictures


def test_default_is_what_is_used_on_the_device():
    for device in (CPU, GPU):
        assert ways(device)[DEFAULT].speed == Speed.on(device)
    assert not ways(CPU)[DEFAULT].speed.channels_last and ways(GPU)[DEFAULT].speed.channels_last
    assert f"{DEFAULT}, compiled" in usual_ways(GPU, True) and f"{DEFAULT}, compiled" not in usual_ways(CPU, False)
    assert list(chosen(["memlib, plain"], CPU, True)) == [PUBLISHED, BATCHED, "memlib, plain"]
    with pytest.raises(InputError, match="There is no way 'more' on cpu"):
        chosen(["more"], CPU, False)


def test_a_way_does_the_rows_that_its_share_is_reckoned_with(tiny, monkeypatch):
    job, rows, made = Job(8, 4, 8, decoded=False), [], {}
    assert job.switches == [1, 2, 3] and job.crossed() == [(row, seed) for seed in (0, 1) for row in range(4)]
    there = ways(CPU)
    calls = {name: tiny.call(name, there[name], job) for name in (DEFAULT, SWEEP, SHARED)}
    count_rows(monkeypatch, tiny.substrate(Way()), rows)
    for name, call in calls.items():
        done = sum(rows)
        made[name] = call()
        assert sum(rows) - done == job.rows(name, there[name])
    assert job.rows(SHARED, there[SHARED]) < job.rows(SWEEP, there[SWEEP])
    np.testing.assert_allclose(made[SHARED], made[SWEEP], atol=2e-4, rtol=1e-4)


def test_operations_are_those_of_the_layers(tiny):
    """A convolution of k x k from c to d channels on h x w pixels takes 2 c d k k h w; one pass must take more than its first one alone."""
    substrate = tiny.substrate(Way())
    conv = substrate.unet.conv_in
    assert row_operations(substrate) > 10 * 2 * conv.in_channels * conv.out_channels * 9 * 64
    multiply, operations = products(CPU, torch.float32, side=64, repeats=3)
    assert len(multiply()) == 3 and operations == 3 * 2 * 64**3


@pytest.fixture
def small_architecture(monkeypatch, sd1_tiny):
    """An architecture that builds in no time, in the place of Stable Diffusion's."""
    from memlib.models.substrate import load

    pipe = load(str(sd1_tiny), "cpu", "float32").pipe

    def parts():
        return {"unet": pipe.unet, "vae": pipe.vae, "text_encoder": pipe.text_encoder}

    monkeypatch.setitem(architectures.ARCHITECTURES, "small", parts)
    monkeypatch.setattr(rounds, "MITIGATIONS", {"pad-swap": 1.01, "ren": 1.05})
    monkeypatch.setattr(rounds, "products", lambda device, dtype: products(device, dtype, side=64))


@pytest.mark.slow
def test_the_command_times_an_architecture_as_on_a_gpu_and_goes_on_where_it_was_stopped(small_architecture, tmp_path, capsys, monkeypatch):
    out = tmp_path / "times.csv"
    names = [PUBLISHED, BATCHED, "memlib, channels-last", DEFAULT, SWEEP, SHARED]
    assert set(names) <= set(usual_ways(GPU, True))
    asked = ["bench", "sampling", "--model", "small", "--device", "cpu", "--dtype", "float32", "--pictures", "2", "--steps", "2", "--mitigations"]
    asked += [part for name in names for part in ("--way", name)] + ["--out", str(out)]
    taken, clocked = [], rounds.clocked

    def stops(call, device):
        taken.append(call)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return clocked(call, device)

    monkeypatch.setattr(rounds, "clocked", stops)
    assert main([*asked, "--rounds", "2"]) == 130
    assert len(pd.read_csv(out)) == 3
    assert main([*asked, "--rounds", "2"]) == 0
    assert len(taken) == 4 + 2 * (1 + len(names)) - 3
    frame = pd.read_csv(out)
    timed = frame[~frame["way"].str.startswith(UNDER)]
    assert timed.groupby("way")["round"].apply(sorted).map(lambda turns: turns == [0, 1]).all() and set(timed["way"]) == {RATE, *names}
    assert set(frame["way"]) - set(timed["way"]) == {f"{UNDER}{name}" for name in ("none", *rounds.MITIGATIONS)}
    assert frame[["hardware", "versions", "commit", "seconds"]].notna().all(axis=None)
    differences = timed["difference"].dropna()
    assert (differences >= 0).all() and (differences < 1e-3).all()
    said = capsys.readouterr().out
    assert "1 left" not in said and "wanted at most 1.05" in said and f"[1/{2 * (1 + len(names)) - 3}]" in said
    main([*asked, "--rounds", "2"])
    assert "0 times to take" in capsys.readouterr().out and len(taken) == 4 + 2 * (1 + len(names)) - 3


def made_up(**changes) -> pd.DataFrame:
    """Times of two rounds of which the second is twice as slow: 1 s of diffusers' best batch for 4 pictures, and 2 s prompt by prompt."""
    rows = []
    for turn, slow in enumerate((1.0, 2.0)):
        for way, seconds, operations in ((RATE, 1.0, 1e12), (PUBLISHED, 2.0, 1e11), (BATCHED, 1.0, 1e11), (DEFAULT, 0.5, 1e11)):
            made = np.nan if way == RATE else 4
            rows.append({"way": way, "round": turn, "seconds": slow * seconds, "cpu_seconds": slow * seconds, "made": made, "operations": operations,
                         "difference": 0.0, "rounding": 1e-2, "hardware": "some CPU", **changes})  # fmt: skip
    return pd.DataFrame(rows)


def test_ratios_are_those_of_times_in_one_round():
    row = summary(made_up()).loc[DEFAULT]
    assert tuple(row["rate"]) == pytest.approx((6, 4, 8))  # pictures a second hang on the round
    assert tuple(row["published"]) == (4, 4, 4) and tuple(row["batched"]) == tuple(row["cpu_batched"]) == (2, 2, 2)
    assert tuple(row["share"]) == pytest.approx((0.2, 0.2, 0.2))
    assert summary(made_up(hardware="a card")).loc[DEFAULT, ("share", "middle")] == pytest.approx(0.2)


def test_rows_of_another_commit_give_way_and_those_of_another_model_stay(tmp_path):
    path, facts = tmp_path / "times.csv", {"model": "a", "commit": "1"}
    rounds.Kept(path, facts).add(DEFAULT, 0, seconds=1.0)
    rounds.Kept(path, {**facts, "model": "b"}).add(DEFAULT, 0, seconds=2.0)
    assert [row["seconds"] for row in rounds.Kept(path, facts).of(DEFAULT)] == [1.0]
    newer = rounds.Kept(path, {**facts, "commit": "2"})
    assert not newer.rows
    newer.add(DEFAULT, 0, seconds=3.0)
    assert sorted(pd.read_csv(path)["seconds"]) == [2.0, 3.0]


def test_bad_numbers_end_in_one_sentence(capsys, sd1_tiny):
    assert main(["bench", "sampling", "--pictures", "0"]) == 1
    assert "option --pictures is 0: give a whole number from 1 on" in capsys.readouterr().err
    assert main(["bench", "sampling", "--model", str(sd1_tiny), "--device", "cpu", "--way", "more"]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
