"""Effects of the 2 x 2 against hand-made tables, and the crossed bootstrap against closed forms."""

import numpy as np
import pandas as pd
import pytest

from memlib.base.errors import InputError
from memlib.judging.estimates import crossed_interval
from memlib.results import trainings
from memlib.results.trainings import CELLS, Reproduced


def square(**shares):
    """Eight pairs, two trainings: in each cell so many pairs reproduced in both trainings, the first ones."""
    values = {name: np.zeros((8, 2)) for name in CELLS.values()}
    for cell, count in shares.items():
        padding, data = cell.split("_")
        values[CELLS[padding, data == "dup"]][:count] = 1
    return Reproduced(values, np.full(8, 64), np.array(["duplicated"] * 8), (11, 12))


def test_effects_of_hand_made_cells():
    found = square(v1_dup=8, v2_dup=4, v1_dedup=2, v2_dedup=0).effects()
    expected = {
        "effect_of_padding": (4 / 8 + 2 / 8) / 2,
        "effect_of_duplication": (6 / 8 + 4 / 8) / 2,
        "padding_minus_duplication": (6 - 10) / 16,
        "interaction": 4 / 8 - 2 / 8,
        "padding_alone": 4 / 8,
        "duplication_alone": 6 / 8,
    }
    assert {name: e.value for name, e in found.items()} == pytest.approx(expected)
    # Both trainings are the same, so that nothing differs between them; `n_prompts` counts trainings.
    assert all(e.low == e.value == e.high and (e.n_prompts, e.n_seeds) == (2, 1) for e in found.values())


def test_effects_of_several_trainings_have_their_own_interval():
    found = square(v1_dup=8)
    found.values[CELLS["v1", True]][:4, 1] = 0  # 8 of 8 in one training, 4 of 8 in the other: 1 and 0.5
    half = 12.706204736 * 0.25  # t of one degree of freedom; the standard error of two values 0.5 apart is 0.25
    alone = found.effects()["padding_alone"]
    assert (alone.value, alone.low, alone.high) == pytest.approx((0.75, 0.75 - half, 0.75 + half))
    once = Reproduced({name: values[:, :1] for name, values in found.values.items()}, found.copies, found.group, (11,)).effects()["padding_alone"]
    assert (once.value, once.n_prompts, once.n_seeds) == (1, 8, 1), "of one training: over its pairs"


def test_the_interval_has_the_width_of_both_samples():
    rng = np.random.default_rng(1)
    by_row, by_column = rng.normal(size=200), rng.normal(size=6)
    rows = crossed_interval(np.repeat(by_row[:, None], 3, 1))
    assert rows.high - rows.low == pytest.approx(2 * 1.96 * by_row.std() / np.sqrt(200), rel=0.05)
    columns = crossed_interval(np.repeat(by_column[None], 200, 0))
    spread = rng.choice(by_column, (20_000, 6)).mean(1)
    assert (columns.low, columns.high) == pytest.approx(tuple(np.quantile(spread, [0.025, 0.975])), abs=0.06)


def test_pairs_are_drawn_within_their_level():
    # All of one level and none of the other: the share is one half whatever pairs are drawn, so long as levels stay whole.
    values, copies = np.repeat([1.0, 0.0], 10)[:, None], np.repeat([128, 1], 10)
    within = crossed_interval(values, copies)
    assert (within.value, within.low, within.high) == (0.5, 0.5, 0.5)
    assert crossed_interval(values).low < 0.4


def test_none_and_all_keep_a_width():
    none = crossed_interval(np.zeros((24, 3)))
    assert none.value == 0 and none.low == pytest.approx(0) and 0.1 < none.high < 0.2 and none.n_seeds == 3
    nothing, less = crossed_interval(np.zeros((24, 3)), signed=True), crossed_interval(-np.ones((24, 3)), signed=True)
    assert (nothing.low, nothing.high) == (-none.high, none.high) and (less.value, less.low) == (-1, -1) and -0.9 < less.high < -0.8
    for broken in (np.zeros(4), np.zeros((0, 2)), np.full((2, 2), np.nan)):
        with pytest.raises(InputError, match=r"\[pairs, trainings\]"):
            crossed_interval(broken)


def table(cells=CELLS, seeds=(11, 12)):
    rows = [
        {"training_seed": seed, "padding": p, "duplicated": int(d), "group": group, "copies": copies, "training_picture": name,
         "prompt": name, "memorized": int(d and copies > 16 and p == "v1")}
        for seed in seeds for p, d in cells
        for name, group, copies in (("dup128-00", "duplicated", 128), ("dup001-00", "duplicated", 1), ("tpl00", "template", 48))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_replicates_are_read_by_whole_seeds(monkeypatch, tmp_path):
    monkeypatch.setattr(trainings, "minisd_folder", lambda: tmp_path)
    with pytest.raises(InputError, match="run memlib minisd replicates"):
        trainings.replicates()
    part = table(list(CELLS)[:3], (13,))
    part.to_csv(tmp_path / "replicates.csv", index=False)
    with pytest.raises(InputError, match="No training seed"):
        trainings.replicates()
    pd.concat([table(), part]).to_csv(tmp_path / "replicates.csv", index=False)
    read = trainings.replicates()
    assert list(read.values) == list(CELLS.values()) and {v.shape for v in read.values.values()} == {(3, 2)} and read.seeds == (11, 12)
    exact, templates = read.exact(), read.templates()
    assert exact.copies.tolist() == [128] and templates.copies.tolist() == [48]
    assert exact.share("minisd-v1").value == 1 and exact.share("minisd-v2").value == exact.share("minisd-v1-dedup").value == 0
    assert list(read.pairs().by_level("minisd-v1")) == [1, 128]
    uneven = pd.concat([table(), table()[lambda t: t["padding"] == "v1"].assign(prompt="x", training_picture="x")])
    uneven.to_csv(tmp_path / "replicates.csv", index=False)
    with pytest.raises(InputError, match="do not list the same prompts"):
        trainings.replicates()


def test_the_shipped_models_are_read_where_found(monkeypatch, tmp_path):
    (tmp_path / "prompts").mkdir()
    monkeypatch.setattr(trainings, "minisd_folder", lambda: tmp_path)
    with pytest.raises(InputError, match="find minisd-v1."):
        trainings.main_models()
    whole = table(seeds=(0,))
    for (padding, duplicated), name in CELLS.items():
        cell = whole[(whole["padding"] == padding) & (whole["duplicated"] == duplicated)]
        cell.drop(columns=["training_seed", "padding", "duplicated"]).to_csv(tmp_path / "prompts" / f"found-{name}.csv", index=False)
    assert trainings.main_models().exact().effects()["padding_alone"].value == 1
