"""The table of scores: rows as they were measured, kept and read back, summarised, completed from a reference run and compared with it."""

import json

import numpy as np
import pandas as pd
import pytest

from memlib.base.errors import InputError
from memlib.experiment.run import Experiment
from memlib.judging.estimates import mean_interval, paired_difference
from memlib.mitigations import REGISTRY, get
from memlib.models.substrate import load
from memlib.results.evaluations import BY_CHANCE, EVALUATIONS, WITH_CHANGED, alignment_by_chance, alignment_with_changed, counted
from memlib.results.measure import scored
from memlib.results.scenarios import SCENARIOS, place
from memlib.results.table import (
    COLUMNS,
    KEYS,
    append,
    change,
    empty,
    estimate,
    join,
    kept,
    matrix,
    name_of,
    path_of,
    read,
    rows_of,
    sources,
    summarise,
    title_of,
    typed,
    write,
)
from memlib.sampling.batches import SAMPLER_VERSION

METHODS = [get("none"), get("pad-mask"), get("ren")]
ALIGNMENT = "alignment with prompt"


class Brightness:
    """Stands in for an alignment metric: how close a picture's mean is to the length of a text."""

    available, fingerprint = True, "brightness"

    def __call__(self, pictures, texts):
        return pictures.reshape(*pictures.shape[:2], -1).mean(2) / 255 - np.array([len(text) for text in texts])[:, None]


class Judges:
    """The metrics of an experiment with `Brightness` for alignment."""

    def __init__(self, metrics):
        self.metrics, self.alignment = metrics, Brightness()

    def __getitem__(self, role):
        return self.alignment if role == "alignment" else self.metrics[role]

    def __iter__(self):
        return iter(self.metrics)

    def items(self):
        return [(role, self[role]) for role in self.metrics]


@pytest.fixture
def group(tiny_group):
    return tiny_group(2, 2)


@pytest.fixture
def judged(group):
    group.experiment.metrics = Judges(group.experiment.metrics)
    return group


def rows(method, metric, values, **columns):
    """Made-up rows of prompts a, b, ... and seeds 0, 1, ..."""
    index = pd.MultiIndex.from_product([[chr(97 + p) for p in range(len(values))], range(np.shape(values)[1])], names=["prompt", "seed"])
    name, params = name_of(method)
    made = index.to_frame(index=False).assign(method=name, params=params, metric=metric, value=np.ravel(values), run="{}")
    return typed(made.assign(**{"substrate": "m", "training": "w", "prompt_set": "some", "steps": 2, "guidance": 7.5, "scheduler": "ddim"} | columns))


def test_rows_come_back_from_a_file_as_they_were(tmp_path, group):
    path = tmp_path / "scores" / "page-m.parquet"
    assert read(path).equals(empty()) and list(empty().columns) == list(COLUMNS)
    found = join([rows_of(group, "none", "made up", [[0.1, 1 / 3], [np.pi, -1]]), rows_of(group, get("ren"), "over seeds", [1, 2]),
                  rows_of(group, get("amg"), "", np.nan, note="It has no training pictures.")])  # fmt: skip
    write(path, found)
    pd.testing.assert_frame_equal(read(path), found)
    assert found["n"].tolist()[:4] == [pd.NA] * 4 and found["n"].tolist()[4:] == [2, 2, 2]
    [source] = sources(found)
    assert "commit: " in source and "hardware: " in source and "torch" in source
    write(path, found.assign(run=json.dumps({"commit": "abc"})))
    assert sources(read(path)) == ["commit: abc"]


def test_appended_rows_replace_those_with_the_same_keys_and_keep_their_place(tmp_path):
    path = tmp_path / "page-m.parquet"
    first = join([rows("none", "quality", [[0.1], [0.2]]), rows("e", "quality", [[0.3], [0.4]])])
    append(path, first)
    append(path, rows("none", "quality", [[0.5], [0.6]], run='{"commit": "b"}'))
    append(path, rows("none", "quality", [[0.7], [0.8]], steps=3))
    found = read(path)
    assert found["value"].tolist() == [0.5, 0.6, 0.3, 0.4, 0.7, 0.8] and not found.duplicated(list(KEYS)).any()
    assert sources(found) == ["commit: b", ""]


def test_a_file_that_stops_while_it_is_written_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "page-m.parquet"
    append(path, rows("none", "quality", [[0.1]]))

    def full(found, file, **options):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("memlib.results.table.pq.write_table", full)
    with pytest.raises(OSError, match="no space"):
        append(path, rows("e", "quality", [[0.1]]))
    monkeypatch.undo()
    assert len(read(path)) == 1 and [p.name for p in tmp_path.iterdir()] == [path.name]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"page-m\.parquet cannot be read: restore it"):
        read(path)


def test_the_rows_of_a_page_are_kept_by_substrate(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_DATA", str(tmp_path))
    assert kept("lists") == {}
    for name in ("sd14", "folder/my-model"):
        append(path_of("lists", name), rows("none", "quality", [[0.5]], substrate=name))
    append(path_of("others", "sd14"), rows("none", "quality", [[0.5]]))
    found = kept("lists")
    assert list(found) == ["my-model", "sd14"] and found["sd14"]["substrate"].tolist() == ["sd14"]


def test_a_column_or_a_shape_that_the_table_does_not_have_is_refused(group):
    with pytest.raises(InputError, match="has no column colour"):
        typed(pd.DataFrame({"colour": ["red"]}))
    with pytest.raises(InputError, match=r"shape \(3,\): give \[2, 2\], \[2\] or one number"):
        rows_of(group, "none", "quality", np.zeros(3))


def test_arrays_and_means_are_those_of_the_rows():
    values, other = np.random.default_rng(0).uniform(size=(2, 5, 3))
    found = join([rows("none", "quality", values), rows("e", "quality", other), rows("none", "similarity to training", other)])
    assert np.array_equal(matrix(found, "quality", "none"), values) and matrix(found, "diversity", "none") is None
    assert np.array_equal(matrix(found.iloc[::-1], "quality", "e"), other[::-1, ::-1])
    assert estimate(found, "quality", "e") == mean_interval(other) and change(found, "quality", "e", "none") == paired_difference(other, values)
    assert change(found, "similarity to training", "e", "none") is None
    shown = summarise(found, {"q": ("quality", mean_interval), "s": ("similarity to training", mean_interval)})
    assert shown.loc["e"].to_dict() == {"q": mean_interval(other).text(2), "s": "not measured"} and list(shown.index) == ["none", "e"]
    with pytest.raises(InputError, match="not one for each"):
        matrix(found, "quality")
    with pytest.raises(InputError, match="not one for each"):
        matrix(found.iloc[1:], "quality", "none")


def test_methods_are_named_by_parameters_and_version():
    assert name_of("e") == ("e", "{}") and title_of("e", "{}") == "e"
    moved = get("pad-mask", fraction=0.3)
    assert json.loads(name_of(moved)[1]) == {"version": moved.version, **moved.params} and title_of(*name_of(moved)) == moved.title
    for method in [setting for m in REGISTRY.values() for setting in (m, *m.sweep())]:
        assert title_of(*name_of(method)) == method.title


def test_unet_rows_are_counted_once_and_kept(group, sd1_tiny, tmp_path):
    # Two steps of two rows; batch-wise noise adjustment takes eight more, a whole run for the mask of bright ending as many as a picture.
    assert counted(group, get("none")) == 4 and counted(group, get("han-batch")) == 12
    made = group.experiment.store.made
    again = Experiment(str(sd1_tiny), n_seeds=2, steps=2, dtype="float32", device="cpu", store=tmp_path / "store")
    other = again.group(str(tmp_path / "prompts.csv"))
    assert counted(other, get("han-batch")) == 12 and again.cost.pictures == 0 and made
    assert np.array_equal(other.pictures(get("han-batch")), group.pictures(get("han-batch")))


def test_unet_rows_of_pictures_made_elsewhere_are_counted_on_one_prompt(group, sd1_tiny, tmp_path):
    group.pictures(get("han-batch"))
    group.pictures(get("pad-mask"))
    again = Experiment(str(sd1_tiny), n_seeds=2, steps=2, dtype="float32", device="cpu", store=tmp_path / "store")
    other = again.group(str(tmp_path / "prompts.csv"))
    assert counted(other, get("han-batch")) == 12 and counted(other, get("pad-mask")) == 4


def test_what_cannot_be_used_or_measured_says_so(group):
    found = scored(group, [get("none"), get("amg"), get("pad-swap")], evaluations=True)
    assert list(dict.fromkeys(found["method"])) == ["none", "amg", "pad-swap"]
    assert set(found["metric"]) == {EVALUATIONS, ""} and change(found, "quality", get("pad-swap")) is None
    shown = summarise(found, ["similarity to training"])
    assert shown.loc["amg", "note"].startswith("not measured: ") and shown.loc["pad-swap", "similarity to training"] == "not measured"
    assert matrix(found, EVALUATIONS, get("pad-swap")) == [4] and alignment_by_chance(group) is None
    assert alignment_with_changed(group, get("random-token")) is None


def test_scores_are_those_of_the_metrics(judged):
    changed = get("random-number")
    found = scored(judged, [get("none"), get("pad-swap"), changed], [ALIGNMENT, BY_CHANCE, WITH_CHANGED])
    means = [judged.pictures(edit).reshape(2, 2, -1).mean(2) / 255 for edit in (get("pad-swap"), get("none"))]
    assert np.allclose(matrix(found, ALIGNMENT, get("none")), means[1] - np.array([[5], [11]]))
    assert change(found, ALIGNMENT, get("pad-swap")).value == pytest.approx((means[0] - means[1]).mean())
    assert "[" in summarise(found, [ALIGNMENT]).loc["pad-swap", ALIGNMENT]
    # Two prompts: each picture against the other's text.
    assert matrix(found, BY_CHANCE) == pytest.approx((means[1] - np.array([[11], [5]])).mean())
    longer, plain = matrix(found, WITH_CHANGED, changed), matrix(found, ALIGNMENT, changed)
    assert (longer < plain).all() and set(found.loc[found["metric"] == WITH_CHANGED, "method"]) == {"random-number"}


@pytest.mark.parametrize("key", list(SCENARIOS))
def test_what_the_project_keeps_has_every_mitigation_as_it_is_now_on_the_model_as_it_is_now(key):
    name, _ = place(key, "minisd-v1")
    found = read(path_of("16_all_mitigations", name))
    assert set(found["training"]) == {load(name, "cpu").weights_hash[:12]}
    assert all(json.loads(run)["sampler version"] == SAMPLER_VERSION and "dirty" not in run for run in set(found["run"]))
    # Where a static transition is put hangs on the scenario, so that its rows have other parameters than the registered one.
    # On the pre-trained model also the prompt's states alone (a), by which a loss of quality is measured.
    assert set(found["method"]) == set(REGISTRY) | ({"a"} if key == "pretrained" else set())
    there = {*zip(found["method"], found["params"], strict=True)}
    assert all(m.name.startswith("static") for m in REGISTRY.values() if name_of(m) not in there)


@pytest.mark.parametrize(
    ("substrate", "prompt_set", "method", "metric", "mean", "count"),
    [
        ("minisd-v1-small", "small set overfitted", "none", "similarity to training", 0.7424916666666669, 12),
        ("minisd-v1-small", "small set overfitted", "pad-mask", "similarity to training", 0.6574583333333334, 12),
        ("minisd-v1", "memorized", "wen-3", "similarity to training", 0.7035583333333334, 12),
        ("minisd-v1", "not memorized", "sail", ALIGNMENT, 0.70345, 6),
    ],
)
def test_rows_of_the_first_reference_run_are_those_of_the_files_that_it_was_kept_in_before(substrate, prompt_set, method, metric, mean, count):
    found = read(path_of("16_all_mitigations", substrate))
    found = found[(found["substrate"] == substrate) & (found["prompt_set"] == prompt_set)]
    values = matrix(found, metric, get(method))
    assert values.size == count and values.mean() == pytest.approx(mean, abs=1e-12)
