"""Rows measured anew beside those of a reference run: single pictures may turn into others, and a method that works otherwise is seen."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from memlib.base.errors import InputError
from memlib.results.comparison import compare, require_agreement
from memlib.results.table import join


def rows(method, values, metric="quality"):
    """Rows as the table of scores has them, of values [P, S]."""
    places = [{"prompt": str(p), "seed": s, "value": value} for p, line in enumerate(values) for s, value in enumerate(line)]
    columns = {"substrate": "m", "training": "t", "prompt_set": "memorized", "steps": 50, "guidance": 7.5, "scheduler": "ddim", "n": 1, "params": "{}"}
    return pd.DataFrame(places).assign(method=method, metric=metric, **columns)


SPREAD = np.array([[0.0, 1.0], [0.2, 0.8], [0.4, 0.6]] * 2)
DEVIATION = float(SPREAD.std(ddof=1))


def test_the_same_rows_are_not_apart_and_a_shift_of_all_is_told_in_standard_deviations():
    before = join([rows("none", SPREAD), rows("e", SPREAD, "similarity")])
    assert compare(before, before).apart == 0 and compare(before, before).rows == 24
    found = compare(rows("none", SPREAD[:2] + 0.1), before)
    assert found.rows == 4 and found.apart == pytest.approx(0.1 / DEVIATION) and found.where == "quality under none"


def test_a_quarter_of_the_values_may_turn_and_not_more():
    turned = SPREAD.copy()
    turned[:3, 0] += 5.0
    assert compare(rows("none", turned), rows("none", SPREAD)).apart == pytest.approx(0, abs=1e-9)
    turned[3, 0] += 5.0
    assert compare(rows("none", turned), rows("none", SPREAD)).apart == pytest.approx(5.0 / 9 / DEVIATION)


def test_of_two_values_one_may_turn_in_one_method_and_not_in_every_method():
    methods = [f"m{k}" for k in range(4)]
    kept = join([rows(method, SPREAD) for method in methods])
    one = [rows(method, SPREAD[:1] + np.array([0, 0.5 * (method == "m0")])) for method in methods]
    assert compare(join(one), kept).apart == 0
    every = [rows(method, SPREAD[:1] + np.array([0, 0.5])) for method in methods]
    assert compare(join(every), kept).where == "quality over all methods" and compare(join(every), kept).apart > 0.1
    both = [rows(method, SPREAD[:1] + 0.5 * (method == "m0")) for method in methods]
    assert compare(join(both), kept).where == "quality under m0"
    with pytest.raises(InputError, match=r"^quality under m0: .* differs from the reference run x\.parquet by [0-9.]+ standard deviations, more than 0\.1"):
        require_agreement(join(both), kept, Path("x.parquet"))


def test_a_single_value_must_agree_and_what_is_not_a_number_is_left_out():
    kept = rows("none", SPREAD)
    assert compare(rows("none", SPREAD[:1, :1] + 0.5), kept).apart == pytest.approx(0.5 / DEVIATION)
    assert compare(rows("none", SPREAD * np.nan), kept).rows == 0
    with pytest.raises(InputError, match="The reference run lacks quality under other: measure it again"):
        compare(rows("other", SPREAD), kept)
