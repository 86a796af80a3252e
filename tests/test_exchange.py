"""Scores that travel: what was measured on one machine stands on another, marked, and nothing that conflicts or is unlabelled does."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from memlib.base.errors import InputError
from memlib.companion.book import pages
from memlib.companion.book import scores as scores_page
from memlib.companion.commands import main
from memlib.mitigations import get
from memlib.results.exchange import export, imported, take_in
from memlib.results.table import name_of, path_of, read, rows_of, typed, write

RUN = {
    "substrate": "big (weights aaaa)", "sampler": "ddim, 25 steps, guidance 7.5, float16", "commit": "abc1234", "versions": "torch 2", "hardware": "a GPU",
    "date": "2026-11-30", "sampler version": 1, "metrics": {"copy": "c"},
}  # fmt: skip


def scores(method="none", values=((0.9, 0.8), (0.7, 0.6)), run=None, metric="similarity to training", **columns):
    """Rows of two prompts and two seeds on the substrate "big"."""
    index = pd.MultiIndex.from_product([["a", "b"], [0, 1]], names=["prompt", "seed"]).to_frame(index=False)
    name, params = name_of(get(method))
    given = {"substrate": "big", "training": "aaaa", "prompt_set": "memorized", "steps": 25, "guidance": 7.5, "scheduler": "ddim"} | columns
    return typed(index.assign(method=name, params=params, metric=metric, value=np.ravel(values), run=json.dumps(RUN | (run or {})), **given))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes one machine's data folder the present one."""

    def use(name):
        monkeypatch.setenv("MEMLIB_DATA", str(tmp_path / name))
        return tmp_path / name / "scores"

    return use


@pytest.fixture
def sent(machine, tmp_path):
    """The file that one machine exports, with another machine in use."""
    machine("theirs")
    write(path_of("all_mitigations", "big"), pd.concat([scores(), scores("pad-mask", 0.1 * np.ones(4))]))
    write(path_of("report", "big"), scores(prompt_set="screened"))
    write(path_of("all_mitigations", "not-big"), scores(substrate="not-big", run={"substrate": "not-big (weights aaaa)"}))
    assert export("/somewhere/big", tmp_path / "big.parquet") == {"all_mitigations-big": 8, "report-big": 4}
    machine("ours")
    return tmp_path / "big.parquet"


def test_rows_arrive_as_they_were_and_say_that_they_were_imported(sent, machine):
    taken = take_in(sent)
    assert taken.new == {"all_mitigations-big": 8, "report-big": 4} and taken.there == 0
    ours = read(path_of("all_mitigations", "big"))
    machine("theirs")
    theirs = read(path_of("all_mitigations", "big"))
    assert ours.drop(columns="run").equals(theirs.drop(columns="run"))
    assert {imported(run) for run in ours["run"]} == {f"{time.strftime('%Y-%m-%d')} from big.parquet"} and {imported(run) for run in theirs["run"]} == {""}
    facts = json.loads(ours["run"].iloc[0])
    assert {name: facts[name] for name in RUN} == RUN and set(facts) == {*RUN, "imported"}


def test_importing_twice_changes_nothing_and_own_rows_stay_own(sent):
    write(path_of("all_mitigations", "big"), scores())
    assert take_in(sent).new == {"all_mitigations-big": 4, "report-big": 4}
    before = path_of("all_mitigations", "big").read_bytes()
    again = take_in(sent)
    assert sum(again.new.values()) == 0 and again.there == 12 and path_of("all_mitigations", "big").read_bytes() == before
    rows = read(path_of("all_mitigations", "big"))
    assert [imported(run) == "" for run in rows["run"]] == [True] * 4 + [False] * 4


def test_imported_rows_are_not_exported_again(sent, tmp_path):
    take_in(sent)
    with pytest.raises(InputError, match="Nothing was measured on big here"):
        export("big", tmp_path / "again.parquet")


def test_rows_of_a_group_say_all_that_an_import_asks_for(machine, tiny_group, tmp_path):
    group = tiny_group(2, 2)
    machine("theirs")
    rows = rows_of(group, get("none"), "similarity to training", np.zeros((2, 2)))
    write(path_of("report", group.experiment.substrate.name), rows)
    out = tmp_path / "tiny.parquet"
    assert export(group.experiment.substrate.name, out) == {f"report-{group.experiment.substrate.name}": 4}
    machine("ours")
    [run] = take_in(out).runs
    assert run["date"] == time.strftime("%Y-%m-%d") and run["commit"] and "torch" in run["versions"] and run["hardware"]


@pytest.mark.parametrize(
    "theirs, here, sentence",
    [
        (scores(run={"date": None}), None, "4 rows of .* do not say their date"),
        (scores(run={"commit": "not in a repository"}), None, "do not say their commit"),
        (scores(run={"hardware": ""}), None, "do not say their hardware"),
        (scores(run={"substrate": "other (weights aaaa)"}), None, "of big with the weights aaaa, and their run is of other"),
        (scores(run={"substrate": "big (weights bbbb)"}), None, "their run is of big .weights bbbb"),
        (scores(training=""), None, "the weights unknown"),
        (scores(values=np.full(4, np.nan)), None, "neither a number nor a reason"),
        (scores(values=[1, 2, 3, np.inf]), None, "1 rows of .* neither a number"),
        (scores("pad-mask").assign(params='{"fraction": 7, "version": 1}'), None, "of 'pad-mask' with parameters that it cannot have"),
        (scores("pad-mask").assign(params="[]"), None, "of 'pad-mask' with parameters that it cannot have"),
        (pd.concat([scores(), scores(values=np.zeros(4))]), None, "several rows of one prompt"),
        (scores(run={"table": "../evil"}), None, "of no table that is known"),
        (scores(run={"table": None}), None, "of no table that is known"),
        (scores(), scores(values=[0.9, 0.8, 0.7, 0.5]), "1 rows of .* have another value here, the first .* of none on 'b' .0.600 there, 0.500"),
        (scores(), scores("pad-mask", training="cccc"), "big has the weights cccc here and aaaa in"),
    ],
)  # fmt: skip
def test_what_conflicts_or_is_unlabelled_is_refused_whole(machine, tmp_path, theirs, here, sentence):
    folder = machine("ours")
    if here is not None:
        write(path_of("all_mitigations", "big"), here)
    kept = {path: path.read_bytes() for path in folder.glob("*")}
    runs = {run: json.dumps({"table": "all_mitigations-big"} | json.loads(run)) for run in theirs["run"]}
    # A sound table comes first: nothing of it may stay either.
    sound = scores(prompt_set="screened", run={"table": "aa_first-big"})
    write(tmp_path / "sent.parquet", pd.concat([sound, theirs.assign(run=theirs["run"].map(runs))]))
    with pytest.raises(InputError, match=sentence) as error:
        take_in(tmp_path / "sent.parquet")
    assert str(error.value).endswith(".") and "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in folder.glob("*")} == kept


def test_rows_of_before_runs_had_a_date_have_that_of_their_commit(machine, tmp_path):
    """The first commit of all, whose day git itself says here by another format."""
    root = Path(__file__).parents[1]
    first = subprocess.run(["git", "rev-list", "--max-parents=0", "HEAD"], cwd=root, capture_output=True, text=True).stdout.split()[0]
    seconds = subprocess.run(["git", "show", "-s", "--format=%ct", first], cwd=root, capture_output=True, text=True).stdout
    machine("theirs")
    write(path_of("report", "big"), scores(run={"date": None, "commit": f"{first[:10]}-dirty"}))
    export("big", tmp_path / "big.parquet")
    day = json.loads(read(tmp_path / "big.parquet")["run"].iloc[0])["date"]
    assert day.endswith(" (of the commit)") and abs(pd.Timestamp(day[:10]) - pd.Timestamp(int(seconds), unit="s")) < pd.Timedelta(days=2)


def test_unlabelled_rows_are_not_exported_either(machine, tmp_path):
    machine("theirs")
    write(path_of("report", "big"), scores(run={"date": ""}))
    with pytest.raises(InputError, match="report-big.parquet do not say their date"):
        export("big", tmp_path / "big.parquet")
    assert not (tmp_path / "big.parquet").exists()


@pytest.mark.parametrize("content", [None, b"no parquet", "another table"])
def test_other_files_are_one_sentence(machine, tmp_path, content, capsys):
    machine("ours")
    path = tmp_path / "file.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        pq.write_table(pq.read_table(_plain(tmp_path)), path)
    assert main(["results", "import", str(path)]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "file.parquet" in told


def _plain(folder):
    pd.DataFrame({"a": [1]}).to_parquet(folder / "plain.parquet")
    return folder / "plain.parquet"


def test_the_commands_say_what_they_did(sent, capsys, tmp_path):
    assert main(["results", "import", str(sent)]) == 0
    told = capsys.readouterr().out
    assert "8 new rows in all_mitigations-big, 4 new rows in report-big; 0 were here already." in told
    assert "big (weights aaaa): ddim, 25 steps, guidance 7.5, float16; a GPU; 2026-11-30; commit abc1234; torch 2" in told
    write(path_of("report", "mine"), scores(substrate="mine", run={"substrate": "mine (weights aaaa)"}))
    assert main(["results", "export", "mine", "--out", str(tmp_path / "mine.parquet")]) == 0
    assert "4 rows of report-mine. It holds prompts and numbers, no pictures." in capsys.readouterr().out


def test_a_book_marks_each_cell(sent, machine):
    """Beside each other: own rows of one model, imported ones of another, what texts report, and what nobody measured."""
    take_in(sent)
    root = Path(__file__).parents[1]
    shutil.copytree(root / "data" / "reported", machine("ours").parent / "reported")
    write(path_of("all_mitigations", "mine"), scores("ren", substrate="mine", run={"substrate": "mine (weights aaaa)"}))
    found = scores_page.beside("similarity to training", ["memorized"])
    assert found.columns == [f"{name}, memorized, 25 steps of ddim, guidance 7.5" for name in ("big", "mine")]
    cells = {line.method: line.cells for line in found.lines}
    assert list(cells) == ["none", "pad-mask", "ren"] and cells["none"][1] is cells["pad-mask"][1] is cells["ren"][0] is None
    theirs, ours = cells["none"][0], cells["ren"][1]
    assert theirs.estimate.value == pytest.approx(0.75) and (theirs.prompts, theirs.seeds) == (2, 2)
    assert theirs.where == f"imported {time.strftime('%Y-%m-%d')} from big.parquet" and ours.where == "measured here"
    assert (0.31, "clip Table 4") in scores_page.told("alignment with prompt", "pad-mask") and scores_page.told("similarity to training", "sail") == []
    # As the page has it: names of files that people send are shown, and are no markup.
    line = scores_page.Line("none", [(0.55, "basin Table 3")], [replace(theirs, where="imported from <script>.parquet"), None])
    shown = pages.templates(root / "book", pages.Evidence(root, "minisd-v1", [])).get_template("_parts/scores.html.j2")
    made = shown.render(found=scores_page.Beside("similarity to training", ["big", "mine"], [line]))
    assert "imported from &lt;script&gt;.parquet; 2 prompts, 2 seeds" in made and "<em>not measured</em>" in made and "<strong>0.55</strong>" in made
