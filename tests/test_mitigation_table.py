"""The table of mitigations on a tiny checkpoint of Stable Diffusion's classes, without metrics and with one made by hand."""

import numpy as np
import pytest

from memlib.experiment.run import Experiment
from memlib.mitigations import get
from memlib.results.mitigation_table import alignment_by_chance, alignment_with_changed, change, counted, measure, table


class Brightness:
    """Stands in for an alignment metric: how close a picture's mean is to the length of a text."""

    available, fingerprint = True, "brightness"

    def __call__(self, pictures, texts):
        return pictures.reshape(*pictures.shape[:2], -1).mean(2) / 255 - np.array([len(text) for text in texts])[:, None]


@pytest.fixture
def group(tiny_group):
    return tiny_group(2, 2)


def test_rows_are_counted_once_and_kept(group, sd1_tiny, tmp_path):
    # Two steps of two rows; batch-wise noise adjustment takes eight more, a whole run for the mask of bright ending as many as a picture.
    assert counted(group, get("none"))[1] == 4 and counted(group, get("han-batch"))[1] == 12
    made = group.experiment.store.made
    again = Experiment(str(sd1_tiny), n_seeds=2, steps=2, dtype="float32", device="cpu", store=tmp_path / "store")
    other = again.group(str(tmp_path / "prompts.csv"))
    pictures, rows = counted(other, get("han-batch"))
    assert rows == 12 and again.cost.pictures == 0 and made and np.array_equal(pictures, group.pictures(get("han-batch")))


def test_rows_of_pictures_made_elsewhere_are_counted_on_one_prompt(group, sd1_tiny, tmp_path):
    group.pictures(get("han-batch"))
    group.pictures(get("pad-mask"))
    again = Experiment(str(sd1_tiny), n_seeds=2, steps=2, dtype="float32", device="cpu", store=tmp_path / "store")
    other = again.group(str(tmp_path / "prompts.csv"))
    assert counted(other, get("han-batch"))[1] == 12 and counted(other, get("pad-mask"))[1] == 4


def test_what_cannot_be_used_or_measured_says_so(group):
    rows = measure(group, [get("amg"), get("none"), get("pad-swap")], shown=1)
    assert [row.title for row in rows] == ["none", "amg", "pad-swap"]
    assert rows[1].reason and rows[1].pictures is None and rows[2].pictures.shape[0] == 1
    assert all(value is None for value in rows[0].scores.values()) and change(rows, "pad-swap", "quality") is None
    shown = table(rows, None)
    assert shown.loc["amg", "note"].startswith("not measured: ") and shown.loc["pad-swap", "similarity to training"] == "not measured"
    assert shown.loc["pad-swap", "U-Net evaluations"] == "4" and shown.loc["none", "acts on"] == ""
    assert alignment_by_chance(group) is None and alignment_with_changed(group, get("random-token")) is None


def test_scores_are_those_of_the_metrics(group):
    judge, others = Brightness(), group.experiment.metrics
    group.experiment.metrics = type("Metrics", (), {"__getitem__": lambda self, role: judge if role == "alignment" else others[role]})()
    rows = measure(group, [get("pad-swap")], scores=("alignment with prompt",))
    means = [group.pictures(edit).reshape(2, 2, -1).mean(2) / 255 for edit in (get("pad-swap"), get("none"))]
    assert np.allclose(rows[0].score("alignment with prompt"), means[1] - np.array([[5], [11]]))
    assert change(rows, "pad-swap", "alignment with prompt").value == pytest.approx((means[0] - means[1]).mean())
    assert "[" in table(rows, 0.5).loc["pad-swap", "alignment with prompt"]
    # Two prompts: each picture against the other's text.
    assert alignment_by_chance(group) == pytest.approx((means[1] - np.array([[11], [5]])).mean())
    longer = alignment_with_changed(group, get("random-number"))
    plain = group.score("alignment with prompt", get("random-number"))
    assert (longer < plain).all()
