"""The notebooks on a checkpoint of Stable Diffusion's classes, and with bad input, through plain papermill."""

import re
from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from memlib.errors import InputError
from memlib.experiment import Experiment
from memlib.verdicts import read_verdicts

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    monkeypatch.setenv("MEMLIB_METRICS", str(tmp_path / "metrics"))
    monkeypatch.setenv("MEMLIB_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def execute(name, folder, **parameters):
    out = folder / f"{name}.ipynb"
    papermill.execute_notebook(
        str(NOTEBOOKS / f"{name}.ipynb"), str(out), parameters, kernel_name="python3", cwd=str(NOTEBOOKS), progress_bar=False
    )
    return out


@pytest.mark.parametrize(("name", "claims"), [("01_prompt_embeddings", ["C1a", "C1b"]), ("02_pad_embeddings", ["C2a", "C2b", "C2c"])])
def test_a_stable_diffusion_folder_runs_and_says_what_is_not_measured(name, claims, sd1_tiny, offline):
    prompts = offline / "prompts.csv"
    prompts.write_text('prompt\n"<i>Game</i> of ""Throws"", $5"\nщука & кот\n', encoding="utf-8")
    out = execute(name, offline, substrate=str(sd1_tiny), memorized=str(prompts), not_memorized=str(prompts), n_prompts=2, n_seeds=1, steps=1)
    verdicts = read_verdicts(out)
    assert [v["claim"] for v in verdicts] == claims
    assert {v["verdict"] for v in verdicts} == {"not testable here"}
    page = "".join(str(cell.get("outputs", "")) for cell in nbformat.read(out, 4).cells)
    assert "not measured" in page and "<i>Game" not in page


def test_an_unknown_parameter_ends_in_one_sentence(offline):
    with pytest.raises(PapermillExecutionError) as failed:
        execute("01_prompt_embeddings", offline, substrat="sd14")
    assert failed.value.ename == "InputError"
    assert re.fullmatch(r"This notebook has no parameter substrat; it has [^.]*\.", failed.value.evalue)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"n_seeds": 0}, "n_seeds is 0"),
        ({"steps": 0}, "0 sampling steps are not possible"),
        ({"scheduler": "heun"}, "Unknown scheduler 'heun'"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_sampled(settings, sentence, sd1_tiny, offline):
    with pytest.raises(InputError, match=sentence):
        Experiment(str(sd1_tiny), **settings)


def test_bad_prompt_sets_and_counts_are_refused(sd1_tiny, offline):
    run = Experiment(str(sd1_tiny), n_seeds=1, steps=1)
    with pytest.raises(InputError, match="0 prompts were asked for"):
        run.group("figures", 0)
    with pytest.raises(InputError, match="webster"):
        run.group("webster")
    with pytest.raises(InputError, match="Unknown intervention 'z'"):
        run.group("figures", 1).pictures("z")
    with pytest.raises(InputError, match="Unknown score 'beauty'"):
        run.group("figures", 1).score("beauty")


def test_a_group_reuses_what_the_store_holds(sd1_tiny, offline):
    first = Experiment(str(sd1_tiny), n_seeds=2, steps=1)
    pictures = first.group("figures", 2).pictures("h")
    again = Experiment(str(sd1_tiny), n_seeds=2, steps=1)
    assert (again.group("figures", 2).pictures("h") == pictures).all()
    assert (first.cost.pictures, again.cost.pictures) == (4, 0)
