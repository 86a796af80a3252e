"""``memlib report``: the whole command on a small checkpoint whose training pictures are known, and the report read back."""

from __future__ import annotations

import base64
import csv
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from memlib.base.errors import InputError
from memlib.companion.commands import main
from memlib.companion.report import findings as findings_module
from memlib.companion.report.advice import advise, ranking
from memlib.companion.report.findings import AGREEMENT, CHANGED, SIMILARITY, Findings
from memlib.companion.report.own import Judged, captions_of
from memlib.companion.report.pace import Pace
from memlib.companion.report.page import picture_uri
from memlib.experiment.run import Experiment
from memlib.metrics.similarity import by_pixels
from memlib.mitigations import get
from memlib.models.substrate import load
from memlib.results import table as table_module
from memlib.results.evaluations import BY_CHANCE
from memlib.results.table import name_of, typed
from memlib.sampling.loop import Cost
from memlib.training.finetune.examples import Example, TrainingSet, read_training_set

PLANTED = ["a red boat", "Eight Rules of Sandrovar", "a small dog"]
OTHERS = ["a house in the snow", "two trees", "a bottle of ink", "an old map"]


@pytest.fixture(scope="module")
def world(sd1_tiny, tmp_path_factory):
    """A folder of training pictures: of the planted captions those that the checkpoint makes with the seeds in use, of the others noise."""
    folder = tmp_path_factory.mktemp("own")
    prompts = folder / "planted.csv"
    prompts.write_text("prompt\n" + "\n".join(PLANTED) + "\n")
    run = Experiment(
        str(sd1_tiny), n_seeds=3, steps=2, dtype="float32", device="cpu", store=folder / "store", pictures="full", loaded=_without_metrics(sd1_tiny)
    )
    made = run.group(str(prompts)).pictures()
    draw, rows = np.random.default_rng(0), []
    for place, caption in enumerate([*PLANTED, *OTHERS]):
        for seed in range(3):
            # Coarse noise: fine one would be averaged to grey.
            picture = made[place, seed] if place < 3 else np.kron(draw.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            Image.fromarray(picture).save(folder / f"{place}-{seed}.png")
            rows.append((f"{place}-{seed}.png", caption, 9 if place == 1 else 1))
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text", "copies"), *rows])
    return folder, made


def _without_metrics(folder):
    model = load(folder, "cpu", "float32")
    model.data = type(model.data)(metrics=(), free=True)
    return model


@pytest.fixture
def command(sd1_tiny, world, tmp_path, monkeypatch):
    """Runs the command with a store of its own and returns status and the report's path."""
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    monkeypatch.setenv("MEMLIB_METRICS", str(tmp_path / "metrics"))

    def run(*more):
        out = tmp_path / "report.html"
        settings = ["--metric", "pixels", "--seeds", "1", "--tried", "3", "--tried-seeds", "2", "--steps", "2", "--device", "cpu", "--dtype", "float32"]
        only = ["--method", "pad-mask", "--method", "annealed-guidance", "--detector", "magnitude", "--detector", "prompt-length"]
        places = ["--pictures", str(world[0]), "--out", str(out), "--store", str(tmp_path / "store")]
        return main(["report", str(sd1_tiny), *places, *settings, *only, *more]), out

    return run


def correlation(first, second):
    """Of two pictures at 32 x 32, by NumPy and Pillow alone."""
    small = [np.asarray(Image.fromarray(p).resize((32, 32), Image.Resampling.BOX), float).ravel() for p in (first, second)]
    return np.corrcoef(*small)[0, 1]


def read(path):
    text = path.read_text(encoding="utf-8")
    return text, BeautifulSoup(text, "html.parser")


def cells(row):
    return [" ".join(cell.get_text(" ").split()) for cell in row.find_all("td")]


@pytest.mark.slow
def test_the_whole_command_finds_what_was_planted(command, world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table_module, "data_folder", lambda: tmp_path)
    status, out = command("--keep")
    told = capsys.readouterr()
    assert status == 0, told.err
    text, page = read(out)
    # Nothing is fetched, and pictures are small.
    assert not re.search(r"(src|href)=[\"'](?!data:)|url\(|@import|<script", text) and len(text) < 500_000
    pictures = [Image.open(io.BytesIO(base64.b64decode(img["src"].split(",")[1]))) for img in page.find_all("img")]
    assert pictures and all(max(picture.size) <= 112 for picture in pictures)
    # Which prompts: those planted, the most alike first, each with what an independent formula gives.
    tables = page.find_all("table")
    listed = [cells(row) for row in tables[0].tbody.find_all("tr")]
    assert {row[0] for row in listed[:3]} == set(PLANTED) and {row[0] for row in listed[3:]} == set(OTHERS)
    assert [row[2][:6] for row in listed] == ["1 of 1"] * 3 + ["0 of 1"] * 4
    assert {row[0]: row[1] for row in listed}["Eight Rules of Sandrovar"] == "27 ×"
    folder = world[0]
    for row in listed[:3]:
        assert row[3].startswith("1.00,")
    other = next(row for row in listed if row[0] == "two trees")
    assert "3 of 7" in page.find("section").get_text()
    # The threshold is half-way to 1 from the 99th percentile of the pairs of first training pictures.
    firsts = [np.asarray(Image.open(folder / f"{place}-0.png")) for place in range(7)]
    pairs = [correlation(a, b) for i, a in enumerate(firsts) for b in firsts[i + 1 :]]
    said = re.search(r"similarity of (\S+) on, by pixel correlation \(half-way from (\S+), below which 99% of 21 pairs", " ".join(page.p.get_text().split()))
    assert float(said[2]) == pytest.approx(np.quantile(pairs, 0.99), abs=0.006) and float(said[1]) == pytest.approx((1 + float(said[2])) / 2, abs=0.01)
    assert float(other[3].split(",")[0]) < float(said[1])
    # Mitigations: no mitigation on the fresh seeds, planted too, is a copy every time; all that were asked for have a line with its cost.
    lines = {row.code.get_text(): cells(row) for row in tables[1].tbody.find_all("tr")}
    assert set(lines) == {"none", "pad-mask", "annealed-guidance"} and lines["none"][1].startswith("100%") and lines["none"][2].startswith("1.00")
    rows = table_module.read(tmp_path / "scores" / "report-sd1-tiny.parquet")
    for name in ("pad-mask", "annealed-guidance"):
        own = rows[(rows["method"] == name) & (rows["metric"] == SIMILARITY)]
        assert len(own) == 6 and set(own["seed"]) == {1, 2} and lines[name][2].startswith(f"{own['value'].mean():.2f}")
        assert re.fullmatch(r"\d\.\d\d ×", lines[name][4])
    assert len(rows[rows["prompt_set"] == "screened"]) == 7 and json.loads(rows["run"].iloc[0])["metrics"]["copy"] == "pixels-32"
    detectors = {row.code.get_text(): cells(row) for row in tables[2].tbody.find_all("tr")}
    assert set(detectors) == {"magnitude", "prompt-length"} and all(re.match(r"\d\.\d\d \[", row[1]) for row in detectors.values())
    facts = dict(zip((dt.get_text() for dt in page.find_all("dt")), (dd.get_text() for dd in page.find_all("dd")), strict=True))
    assert {"substrate", "copy metric", "prompts", "sampler", "commit", "versions", "hardware", "run"} <= set(facts)
    assert facts["prompts"].startswith("7 of 7 captions of own") and "weights" in facts["substrate"]
    assert re.search(r"Screening, 7 of 7 prompts: .* left", told.out) and "Report:" in told.out and "Detector 2 of 2" in told.out


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_where_it_was(command, monkeypatch, capsys):
    whole, calls = findings_module.scored, []

    def stopped(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    monkeypatch.setattr(findings_module, "scored", stopped)
    status, out = command()
    assert status == 130 and not out.exists() and "goes on from there" in capsys.readouterr().err
    monkeypatch.setattr(findings_module, "scored", whole)
    assert command()[0] == 0
    lines = capsys.readouterr().out.splitlines()
    stored = [line.split(",")[0].split(":")[0] for line in lines if "from the store" in line]
    assert "Screening" in stored and "Mitigation 1 of 3" in stored and "Mitigation 3 of 3" not in stored
    first = read(out)[0]
    assert command()[0] == 0
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("Screening", "Mitigation"))]
    assert all("from the store" in line for line in again)
    varying = r"<dt>(run|pictures)</dt><dd>[^<]*</dd>"
    assert re.sub(varying, "", first) == re.sub(varying, "", read(out)[0])


def test_nothing_reproduced_is_said_with_its_bound(command, world, tmp_path, capsys):
    listed = tmp_path / "noise.csv"
    noise = {"3-0": OTHERS[0], "4-0": OTHERS[1], "5-0": OTHERS[2], "6-0": OTHERS[3], "5-1": "a fifth", "6-1": "a sixth"}
    listed.write_text("picture,caption\n" + "".join(f"{world[0]}/{name}.png,{caption}\n" for name, caption in noise.items()))
    status, out = command("--pictures", str(listed))
    assert status == 0, capsys.readouterr().err
    _, page = read(out)
    assert "No prompt is reproduced" in page.section.get_text() and "up to 39% of prompts like these" in page.section.get_text()  # Wilson, 0 of 6
    assert len(page.find_all("table")) == 1 and not page.find_all("img")


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["--metric", "auto"], "No copy metric is at hand .*: give --metric pixels or --metric clip"),
        (["--metric", "taste"], "Unknown copy metric 'taste': use one of auto, minisd-copy, .*sscd, pixels, clip"),
        (["--metric", "clip"], "Pictures cannot be compared by CLIP here"),
        (["--pictures", "nowhere"], "There is no training set at nowhere"),
        (["--out", "nowhere/report.html"], "There is no folder 'nowhere'"),
        (["--prompts", "4"], "comes from pairs of different training pictures, and there are 6"),
        (["--method", "wishing"], "Unknown mitigation 'wishing'"),
        (["--show", "some"], "Pictures cannot be shown 'some'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(command, capsys, more, sentence):
    status, out = command(*more)
    told = capsys.readouterr().err.strip().splitlines()
    assert status == 1 and not out.exists() and re.search(sentence, told[-1])


def rows(method, metric, values, prompts="ab"):
    index = pd.MultiIndex.from_product([list(prompts), range(np.shape(values)[1])], names=["prompt", "seed"]).to_frame(index=False)
    name, params = name_of(get(method))
    return typed(index.assign(method=name, params=params, metric=metric, value=np.ravel(values)))


def test_a_method_that_spoils_everything_is_not_the_first():
    """Of two that leave nothing of the training picture, the one that keeps other prompts' alignment; without alignment, their pictures."""
    full, none = np.full((2, 2), 0.9), np.zeros((2, 2))
    left = pd.concat([rows("none", SIMILARITY, full), rows("pad-mask", SIMILARITY, none), rows("embedding-noise", SIMILARITY, none)])
    kept = [rows(m, AGREEMENT, np.full((2, 2), v)) for m, v in (("none", 0.3), ("pad-mask", 0.29), ("embedding-noise", 0.1))]
    kept += [rows(m, CHANGED, np.full((2, 2), v)) for m, v in (("none", 1.0), ("pad-mask", 0.4), ("embedding-noise", 0.8))]
    chance = rows("none", BY_CHANCE, [[0.1]], "a").assign(prompt="", seed=None)
    methods = [get("none"), get("embedding-noise"), get("pad-mask")]
    by_alignment, kept_by = ranking(left, pd.concat([*kept, chance]), methods, 0.2)
    assert kept_by == AGREEMENT and next(iter(by_alignment)) == "pad-mask" and by_alignment["pad-mask"].area.value == pytest.approx(0.19 / 0.2)
    assert by_alignment["embedding-noise"].area.value == 0
    by_pictures, kept_by = ranking(left, pd.concat(kept[3:]), methods, 0.2)
    assert kept_by == CHANGED and next(iter(by_pictures)) == "embedding-noise"
    assert by_pictures["embedding-noise"].area.value == pytest.approx(0.75) and by_pictures["pad-mask"].area.value == pytest.approx(0.25)
    assert ranking(left, pd.DataFrame(), methods, 0.2) == ({}, "")
    # Without other prompts, agreement of the reproduced ones themselves.
    same, kept_by = ranking(pd.concat([left, *kept[:3], chance]), pd.DataFrame(), methods, 0.2)
    assert kept_by == AGREEMENT and same["pad-mask"].area.value == pytest.approx(0.19 / 0.2)


def test_captions_come_by_how_often_they_were_seen():
    examples = TrainingSet("set", (Example("1.png", "a"), Example("2.png", "b", 5), Example("3.png", "a"), Example("4.png", "c")), lambda e: None)
    found = captions_of(examples, 3, "here")
    assert found.prompts == ("b", "a", "c") and list(found.table["copies"]) == [5, 2, 1] and found.table["training_picture"][1] == "1.png | 3.png"
    assert captions_of(examples, 2, "here").prompts == ("b", "a")
    many = TrainingSet("many", tuple(Example(f"{i}.png", "same") for i in range(4001)), lambda e: None)
    with pytest.raises(InputError, match="have 4001 training pictures, and 4000 are held"):
        captions_of(many, 1, "here")


def test_tables_of_hubs_are_read(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "x.png", "text": "a cat, sitting"}\n')
    [example] = read_training_set(tmp_path).examples
    assert (example.caption, example.copies) == ("a cat, sitting", 1) and example.picture == str((tmp_path / "x.png").resolve())


def test_time_left_counts_what_is_computed_alone():
    cost, said = Cost(), []
    pace = Pace(cost, said.append)
    pace.plan(100)
    pace.step("stored", 50, lambda: None)
    assert said == ["stored: from the store"] and pace.left() is None

    def work():
        cost.evaluations += 10

    pace.step("computed", 10, work)
    assert pace.left() == pytest.approx(4 * pace._seconds) and "left" in said[1]
    pace.plan(-40)
    pace.step("last", 0, lambda: None)
    assert pace.left() == 0 and said[2] == "last: 0 s"


def test_pictures_in_a_report_are_small_and_alike():
    draw = np.random.default_rng(0)
    smooth = np.clip(np.add.outer(np.arange(300), np.arange(200))[..., None] / 2 + draw.normal(0, 2, (300, 200, 3)), 0, 255).astype(np.uint8)
    kind, content = picture_uri(smooth).split(";base64,")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"), float)
    expected = np.asarray(Image.fromarray(smooth).resize((75, 112), Image.Resampling.LANCZOS), float)
    assert shown.shape == (112, 75, 3) and np.abs(shown - expected).mean() < 4 and len(content) < 8000 and kind in ("data:image/png", "data:image/jpeg")


def test_advice_needs_two_reproduced_prompts(sd1_tiny, tmp_path):
    run = Experiment(str(sd1_tiny), n_seeds=2, steps=2, dtype="float32", device="cpu", store=tmp_path, pictures="full", loaded=_without_metrics(sd1_tiny))
    (tmp_path / "p.csv").write_text("prompt\na\nb\n")
    judged = Judged(by_pixels(0.5), "given", 0.0)
    found = Findings(run, judged, run.group(str(tmp_path / "p.csv")), np.array([[0.9, 0.4], [0.4, 0.4]]))
    advice = advise(found)
    assert list(found.reproduced) == [0] and list(found.never) == [1] and advice.method is None and advice.lines == []
    assert (advice.share.value, advice.share.n_prompts) == (0.5, 2)
