"""What pages stand on: rows of a reference run, checked or measured anew, and what is computed from them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from memlib.base.errors import InputError
from memlib.judging.bounded import bounded_mean, student_change, student_contrast
from memlib.prompts.sets import PromptSet
from memlib.results import evidence as module
from memlib.results.comparison import compare
from memlib.results.evidence import DESCRIPTIONS, MEMORIZED, SEEN_ONCE, Evidence, fitting, gather
from memlib.results.table import join, read, rows_of

SETS = {MEMORIZED: "memorized", SEEN_ONCE: "auto", DESCRIPTIONS: "not memorized"}
ORIGINAL = "similarity to original"


class Group:
    """A group of prompts as measurements see it, without a model."""

    def __init__(self, experiment, prompts, label, seeds=2):
        self.experiment = SimpleNamespace(**{**vars(experiment), "seeds": tuple(range(seeds))})
        self.prompts, self.label = prompts, label

    def __len__(self):
        return len(self.prompts)

    def part(self, n_prompts, n_seeds):
        return Group(self.experiment, self.prompts.first(n_prompts), self.label, n_seeds)


class Run(SimpleNamespace):
    """An experiment without a model: prompt sets by role, each text a number."""

    def control(self, prompts, count=None, label=""):
        sizes = {"memorized": range(20), "auto": range(20, 40), "not memorized": range(40, 60)}
        return None if prompts == "none" else self.group(as_set([str(i) for i in sizes[prompts]]), count, label)

    def group(self, prompts, count=None, label=""):
        return Group(self, prompts.first(count), label)


def as_set(texts):
    return PromptSet("some", tuple(texts), pd.DataFrame({"prompt": texts}), "a test", "none")


def run(**changed):
    facts = {"commit": "abc", "hardware": "a pencil"}
    given = {"substrate": SimpleNamespace(name="toy", weights_hash="f" * 64), "steps": 50, "guidance": 7.5, "scheduler": "ddim", "metrics": {},
             "thresholds": {"copy_threshold": 0.75}, "provenance": lambda: SimpleNamespace(facts=facts)}  # fmt: skip
    return Run(**{**given, **changed})


def measurement(moved=0.0, methods=("none", "h")):
    """Scores that hang on prompt, seed and method alone; `moved` is added to one method's."""

    def measure(group):
        numbers = np.array([[int(text) / 100 + 0.01 * seed for seed in group.experiment.seeds] for text in group.prompts.prompts])
        return join(rows_of(group, method, ORIGINAL, numbers + (0.1 + moved) * (method == "h")) for method in methods)

    return measure


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "path_of", lambda page, substrate: tmp_path / f"{page}-{substrate}.parquet")
    return tmp_path


def test_a_reference_is_kept_checked_and_taken(folder):
    whole = gather("page", run(), SETS, measurement(), "reference")
    assert len(read(folder / "page-toy.parquet")) == 3 * 20 * 2 * 2 and whole.words == "Everything on this page was measured now."
    found = gather("page", run(), SETS, measurement())
    assert {label: len(group) for label, group in found.groups.items()} == {MEMORIZED: 4, SEEN_ONCE: 2}
    assert found.count() == found.count(DESCRIPTIONS) == "20 × 2" and np.array_equal(found.values(ORIGINAL, "h"), whole.values(ORIGINAL, "h"))
    for words in ("12 values of 4 memorized, 2 titles seen once with one seed", "all the same", "commit abc; a pencil", "20 memorized × 2 seeds"):
        assert words in found.words
    # A new run stands for the old one, whatever its number of prompts; what it does not measure stays.
    gather("page", run(), SETS, measurement(methods=("none",)), "reference", n_prompts=5)
    kept = read(folder / "page-toy.parquet")
    assert kept.groupby("method")["prompt"].nunique().to_dict() == {"none": 15, "h": 60}


def test_a_check_fails_where_what_is_measured_anew_is_another_thing(folder):
    gather("page", run(), SETS, measurement(), "reference")
    spread = read(folder / "page-toy.parquet")["value"].std()
    near = gather("page", run(), SETS, measurement(0.09 * spread))
    assert "at most 0.09 standard deviations apart (similarity to original under h); 0.1 is allowed" in near.words
    with pytest.raises(InputError, match=r"similarity to original under h: .* page-toy\.parquet by 0\.11 standard deviations, more than 0\.1"):
        gather("page", run(), SETS, measurement(0.11 * spread))
    with pytest.raises(InputError, match="The reference run lacks similarity to original under c"):
        gather("page", run(), SETS, measurement(methods=("none", "h", "c")))
    assert "h" in set(gather("page", run(), SETS, measurement(), anew=measurement(methods=("none",))).rows[MEMORIZED]["method"])


def test_single_pictures_may_come_out_as_others():
    group = run().control("memorized", 8, MEMORIZED).part(8, 1)
    kept = measurement()(group)
    now = kept.assign(value=kept["value"].where(~kept["prompt"].isin(["0", "1"]), 0.9))
    assert compare(now, kept).apart == 0.0
    assert compare(kept.assign(value=kept["value"].where(~kept["prompt"].isin(["0", "1", "2"]), 0.9)), kept).apart > 0.5


def test_other_weights_settings_and_prompts_are_measured_now(folder):
    gather("page", run(), SETS, measurement(), "reference")
    other = run(steps=25)
    found = gather("page", other, SETS, measurement(), n_prompts=3)
    assert found.count() == "3 × 2" and found.words.endswith("The reference run was made with other weights, settings or metrics.")
    assert gather("other", run(), SETS, measurement(), n_prompts=3).words == "Everything on this page was measured now."
    assert gather("page", run(), SETS, measurement(), "live", n_prompts=3).count() == "3 × 2"
    assert SEEN_ONCE not in gather("page", run(), SETS | {SEEN_ONCE: "none"}, measurement(), n_prompts=3).rows
    rows, group = read(folder / "page-toy.parquet"), run().control("memorized", None, MEMORIZED)
    assert len(fitting(rows, group)) == 80 and fitting(rows.assign(training="x"), group).empty
    with pytest.raises(InputError, match="Unknown profile 'fast'"):
        gather("page", run(), SETS, measurement(), "fast")


def test_intervals_are_those_of_the_registration(folder):
    found = gather("page", run(), SETS, measurement(), "live")
    h, none, once = found.values(ORIGINAL, "h"), found.values(ORIGINAL), found.values(ORIGINAL, "h", SEEN_ONCE)
    assert found.mean(ORIGINAL, "h") == bounded_mean(h) and found.change(ORIGINAL, "h") == student_change(h, none, (0, 1))
    assert found.contrast(ORIGINAL, "h") == student_contrast(h, once, (0, 1)) and found.contrast(ORIGINAL, "h").value == pytest.approx(-0.2)
    assert found.bounds["lax"] == pytest.approx(0.5) and found.above(ORIGINAL, "h", of=DESCRIPTIONS).value == pytest.approx(
        (h + 0.4 >= 0.5).mean(1).mean(), abs=0.06
    )
    assert found.share(ORIGINAL, "h").value == pytest.approx(h.mean() / none.mean())
    assert found.mean(ORIGINAL, "c") is None and found.mean(ORIGINAL, of="nobody") is None
    assert found.summary(["none"], [ORIGINAL], copies=ORIGINAL).shape == (3, 3) and len(found.by_prompt(ORIGINAL, ["none", "h"])) == 120


def test_agreement_of_orders_is_spearmans():
    draw = np.random.default_rng(0)
    x = run()
    group = Group(x, as_set([str(i) for i in range(30)]), MEMORIZED, 1)
    means = {"a": 0.2, "b": 0.5, "c": 0.4, "d": 0.9}
    rows = join(rows_of(group, edit, ORIGINAL, draw.normal(mean, 0.02, (30, 1))) for edit, mean in means.items())
    found = Evidence({MEMORIZED: group}, {MEMORIZED: rows}, "")
    reported = {"a": 0.1, "b": 0.3, "c": 0.6, "d": 0.8}
    agreement = found.agreement(ORIGINAL, reported)
    assert agreement.value == pytest.approx(spearmanr(list(means.values()), list(reported.values())).statistic)
    assert agreement.low == pytest.approx(agreement.high)  # orders this far apart are the same in every draw
    assert found.agreement(ORIGINAL, {"a": 0.1, "b": 0.3}) is None and found.agreement(ORIGINAL, reported | {"h": 0.2}) is None
