"""The notebooks on a checkpoint of Stable Diffusion's classes, and with bad input, through plain papermill."""

import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from jupyter_client.manager import KernelManager
from papermill.exceptions import PapermillExecutionError

from memlib.base.errors import InputError
from memlib.base.paths import data_folder
from memlib.experiment.run import Experiment
from memlib.judging.verdicts import read_verdicts
from memlib.prompts.lengths import read_statistics

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


SETTINGS = ("MEMLIB_OFFLINE", "MEMLIB_METRICS", "MEMLIB_STORE", "MEMLIB_MODELS", "MEMLIB_DATA", "HF_HUB_CACHE")
# What a kernel begins a run with: an empty namespace, and the settings that the test made.
BEGIN = """import os
for name, value in {settings!r}.items():
    os.environ.pop(name, None) if value is None else os.environ.update({{name: value}})
get_ipython().reset(new_session=True)"""


@pytest.fixture(scope="module")
def kernel():
    """One kernel for all of these runs: imports are half of a short run."""
    manager = KernelManager(kernel_name="python3")
    yield manager
    if manager.has_kernel:
        manager.shutdown_kernel(now=True)


@pytest.fixture
def offline(monkeypatch, tmp_path, kernel):
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    monkeypatch.setenv("MEMLIB_METRICS", str(tmp_path / "metrics"))
    monkeypatch.setenv("MEMLIB_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(sys.modules[__name__], "running", kernel)
    return tmp_path


running = None


def execute(name, folder, **parameters):
    """Run a notebook through papermill in the kernel of these tests, and return the executed copy."""
    begin, out = folder / "begin.ipynb", folder / f"{name}.ipynb"
    if not running.has_kernel:
        running.start_kernel(env=os.environ | {"OMP_NUM_THREADS": "1"}, extra_arguments=["--log-level=ERROR"])
    cell = nbformat.v4.new_code_cell(BEGIN.format(settings={key: os.environ.get(key) for key in SETTINGS}))
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).metadata), begin)
    for source, target, given in ((begin, begin, {}), (NOTEBOOKS / out.name, out, parameters)):
        papermill.execute_notebook(str(source), str(target), given, kernel_name="python3", cwd=str(NOTEBOOKS), progress_bar=False, km=running)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "claims"),
    [
        ("01_prompt_embeddings", ["C1a", "C1b"]),
        ("02_pad_embeddings", ["C2a", "C2b", "C2c"]),
        ("05_padding_or_duplication", ["C4a", "C4b"]),
        ("07_swapping", ["C7"]),
        ("08_mitigations", ["C5a", "C5b", "C5c", "C5e"]),
        ("11_switch_on", ["B2"]),
        ("12_basin", ["B10"]),
        ("20_adversarial_finetuning", ["D5"]),
    ],
)
def test_a_stable_diffusion_folder_runs_and_says_what_is_not_measured(name, claims, sd1_tiny, offline):
    prompts = offline / "prompts.csv"
    prompts.write_text('prompt\n"<i>Game</i> of ""Throws"", $5"\nщука & кот\n', encoding="utf-8")
    out = execute(name, offline, substrate=str(sd1_tiny), memorized=str(prompts), not_memorized=str(prompts), n_prompts=2, n_seeds=1, steps=1)
    verdicts = read_verdicts(out)
    assert [v["claim"] for v in verdicts] == claims
    assert {v["verdict"] for v in verdicts} == {"not testable here"}
    page = "".join(str(cell.get("outputs", "")) for cell in nbformat.read(out, 4).cells)
    assert "not measured" in page and "<i>Game" not in page


@pytest.mark.slow
def test_attacks_without_a_judge_are_not_measured(sd1_tiny, offline):
    prompts = offline / "prompts.csv"
    prompts.write_text("prompt\na cat\na dog\n", encoding="utf-8")
    out = execute("19_attack", offline, substrate=str(sd1_tiny), memorized=str(prompts), n_prompts=2, check_steps=1)
    assert [(v["claim"], v["verdict"]) for v in read_verdicts(out)] == [("D2", "not testable here"), ("D3", "not testable here")]
    assert "attacks: not measured" in "".join(str(cell.get("outputs", "")) for cell in nbformat.read(out, 4).cells)


@pytest.mark.slow
def test_attention_is_measured_on_a_stable_diffusion_folder(sd1_tiny, offline):
    prompts = offline / "prompts.csv"
    prompts.write_text('prompt\n"<i>Game</i> of ""Throws"", $5"\nщука & кот\n', encoding="utf-8")
    sets = {"memorized": str(prompts), "control": str(prompts)}
    verdicts = read_verdicts(execute("06_cross_attention", offline, substrate=str(sd1_tiny), **sets, n_prompts=2, n_seeds=1, steps=2))
    assert [v["claim"] for v in verdicts] == ["C6a", "C6b"] and all(v["n_prompts"] for v in verdicts)


@pytest.mark.slow
def test_training_time_is_not_testable_on_a_stable_diffusion_folder(sd1_tiny, offline):
    out = execute("17_training_time", offline, substrate=str(sd1_tiny))
    assert [(v["claim"], v["verdict"], v["substrate"]) for v in read_verdicts(out)] == [("A4", "not testable here", sd1_tiny.name)]
    assert "not measured" in "".join(str(cell.get("outputs", "")) for cell in nbformat.read(out, 4).cells)


@pytest.mark.slow
def test_opposite_guidance_needs_no_metric(sd1_tiny, offline):
    prompts = offline / "prompts.csv"
    prompts.write_text('prompt\n"<i>Game</i> of ""Throws"", $5"\nщука & кот\n', encoding="utf-8")
    sets = {"memorized": str(prompts), "not_memorized": str(prompts)}
    out = execute("13_opposite_guidance", offline, substrate=str(sd1_tiny), **sets, n_prompts=2, n_seeds=1, n_pictures=1, n_timed=2, steps=4)
    transition, cost = read_verdicts(out)
    assert (transition["claim"], cost["claim"]) == ("B5", "B8")
    # Two turns and two prompts decide nothing; what they show is there all the same.
    assert cost["quantities"]["no further evaluations"]["value"] == 1 and cost["verdict"] == "undecided"
    assert transition["verdict"] == ("undecided" if transition["quantities"] else "not testable here")
    page = "".join(str(cell.get("outputs", "")) for cell in nbformat.read(out, 4).cells)
    shown = "".join(str(o["data"].get("text/html", "")) for cell in nbformat.read(out, 4).cells for o in cell.get("outputs", []) if "data" in o)
    assert "not measured" in page and "&lt;i&gt;Game" in shown and "<i>Game" not in shown


@pytest.mark.slow
def test_detectors_run_on_a_stable_diffusion_folder_with_one_seed(sd1_tiny, offline):
    prompts = offline / "prompts.csv"
    prompts.write_text('prompt\n"<i>Game</i> of ""Throws"", $5"\nщука & кот\n', encoding="utf-8")
    sets = {"memorized": str(prompts), "not_memorized": str(prompts)}
    out = execute("15_detectors", offline, substrate=str(sd1_tiny), **sets, n_prompts=2, n_seeds=1, n_shown=1, steps=1)
    verdicts = {v["claim"]: v for v in read_verdicts(out)}
    assert list(verdicts) == ["A1", "A2"] and {v["verdict"] for v in verdicts.values()} == {"undecided"}  # two prompts decide nothing
    # The two sets are the same one, so nothing tells them apart.
    assert [round(q["value"], 6) for q in verdicts["A1"]["quantities"].values()] == [0, 0, 0]
    assert [q["value"] for q in verdicts["A2"]["quantities"].values()] == [0.5, 0.5]
    page = "".join(str(cell.get("outputs", "")) for cell in nbformat.read(out, 4).cells)
    assert "tile-agreement: not measured." in page and "titles seen once (" not in page and "<i>Game" not in page


@pytest.mark.slow
@pytest.mark.parametrize("n_prompts", [1, 2])
def test_scenarios_without_a_model_are_not_measured(n_prompts, sd1_tiny, offline):
    prompts = offline / "prompts.csv"
    prompts.write_text('prompt\n"<i>Game</i> of ""Throws"", $5"\nщука & кот\n', encoding="utf-8")
    tuned = offline / "tuned"
    tuned.mkdir()
    for part in sd1_tiny.iterdir():
        (tuned / part.name).symlink_to(part)
    (tuned / "prompts.csv").write_text(prompts.read_text(encoding="utf-8"), encoding="utf-8")
    shared = {"substrate": str(sd1_tiny), "memorized": str(prompts), "not_memorized": str(prompts), "small_model": str(tuned)}
    out = execute("14_scenarios", offline, **shared, methods=["static-transition", "pad-mask"], n_prompts=n_prompts, n_seeds=1, n_timed=1, steps=4)
    verdicts = read_verdicts(out)
    assert [v["claim"] for v in verdicts] == ["B3", "B6"] and {v["verdict"] for v in verdicts} == {"not testable here"}
    page = "".join(str(cell.get("outputs", "")) for cell in nbformat.read(out, 4).cells)
    assert "There is no model fine-tuned from" in page and "tuned" in page and "<i>Game" not in page


@pytest.mark.slow
def test_all_mitigations_run_where_there_are_no_metrics_and_no_fine_tuned_models(sd1_tiny, offline):
    prompts = offline / "prompts.csv"
    prompts.write_text('prompt\n"<i>Game</i> of ""Throws"", $5"\nщука & кот\n', encoding="utf-8")
    shared = {"substrate": str(sd1_tiny), "memorized": str(prompts), "not_memorized": str(prompts), "n_prompts": 2, "n_seeds": 1, "n_timed": 2}
    methods = ["pad-swap", "pad-swap-eot-mask", "pad-mask", "ren", "random-token", "static-transition", "wen-1", "amg", "han-batch"]
    out = execute("16_all_mitigations", offline, **shared, methods=methods, n_shown=1, steps=3)
    verdicts = {v["claim"]: v for v in read_verdicts(out)}
    assert list(verdicts) == ["A3", "B7", "C5d"] and verdicts["B7"]["verdict"] == "not testable here"
    assert verdicts["A3"]["verdict"] == "undecided" and list(verdicts["A3"]["quantities"]) == ["time as without"]  # nothing else needs no metric
    assert verdicts["C5d"]["quantities"]["no further evaluations"]["value"] == 1 and verdicts["C5d"]["verdict"] != "not testable here"
    page = "".join(str(cell.get("outputs", "")) for cell in nbformat.read(out, 4).cells)
    assert "There is no model fine-tuned from" in page and "not measured: amg needs" in page and "<i>Game" not in page


@pytest.mark.slow
def test_structure_runs_on_a_stable_diffusion_folder(sd1_tiny, offline, monkeypatch):
    monkeypatch.setenv("MEMLIB_MODELS", str(offline / "models"))
    monkeypatch.setenv("HF_HUB_CACHE", str(offline / "hub"))
    prompts = offline / "prompts.csv"
    prompts.write_text('prompt\n"<i>Game</i> of ""Throws"", $5"\nщука & кот\n', encoding="utf-8")
    sets = {"memorized": str(prompts), "not_memorized": str(prompts)}
    out = execute("03_embedding_structure", offline, substrate=str(sd1_tiny), **sets, n_prompts=2, n_shown=2, behind=2, towers=["sd14"])
    (verdict,) = read_verdicts(out)
    assert verdict["claim"] == "C3a" and verdict["verdict"] != "not testable here" and verdict["n_prompts"] == 2
    page = "".join(str(cell.get("outputs", "")) for cell in nbformat.read(out, 4).cells)
    assert "sd14: not measured. The weights of sd14 are missing." in page and "<i>Game" not in page


@pytest.mark.slow
def test_traces_are_judged_without_metrics_or_training_pictures(sd1_tiny, offline):
    prompts = offline / "prompts.csv"
    prompts.write_text('prompt\n"<i>Game</i> of ""Throws"", $5"\nщука & кот\n', encoding="utf-8")
    sets = {"memorized": str(prompts), "control": str(prompts), "not_memorized": "none"}
    out = execute("10_traces", offline, substrate=str(sd1_tiny), **sets, n_prompts=2, n_seeds=2, steps=4)
    verdicts = {v["claim"]: v for v in read_verdicts(out)}
    assert list(verdicts) == ["B1", "B4", "B9"]
    # The two sets are the same prompts, so nothing can tell them apart; and from two prompts nothing is decided.
    assert verdicts["B1"]["quantities"]["drops more"]["value"] == 0 and verdicts["B1"]["verdict"] == "undecided"
    assert verdicts["B9"]["quantities"]["the first step tells"]["value"] == 0.5 and verdicts["B9"]["verdict"] != "holds"
    page = "".join(str(cell.get("outputs", "")) for cell in nbformat.read(out, 4).cells)
    assert "titles seen once (2 × 2)" in page and "descriptions (2" not in page and "<i>Game" not in page


@pytest.mark.slow
def test_traces_without_a_matched_contrast_say_so(sd1_tiny, offline):
    prompts = offline / "prompts.csv"
    prompts.write_text("prompt\na cat\na dog\n", encoding="utf-8")
    out = execute("10_traces", offline, substrate=str(sd1_tiny), memorized=str(prompts), not_memorized=str(prompts), n_prompts=2, n_seeds=1, steps=4)
    verdicts = {v["claim"]: v for v in read_verdicts(out)}
    assert verdicts["B9"]["verdict"] == "not testable here" and "seen once" in verdicts["B9"]["reason"]
    assert list(verdicts["B1"]["quantities"]) == ["steep"], "what needs the contrast was not measured"


@pytest.mark.slow
def test_token_lengths_are_judged_on_the_published_lists_and_on_nothing_less(offline):
    (verdict,) = read_verdicts(execute("04_token_lengths", offline))
    assert (verdict["claim"], verdict["substrate"]) == ("C3b", "published lists") and verdict["n_prompts"] > 3000
    part = read_statistics()
    part[part["list"].isin(["webster345", "nonmem-coco"])].to_csv(offline / "part.csv", index=False)
    (verdict,) = read_verdicts(execute("04_token_lengths", offline, statistics_file=str(offline / "part.csv")))
    assert verdict["verdict"] == "not testable here" and "sd2-webster219, membench are not at hand" in verdict["reason"]


@pytest.mark.slow
def test_the_published_lists_are_measured_by_a_run_and_not_before(sd1_tiny, offline, monkeypatch):
    data = offline / "data"  # the project's, but for the scores, which a run adds to
    data.mkdir()
    for entry in data_folder().iterdir():
        shutil.copytree(entry, data / entry.name) if entry.name == "scores" else (data / entry.name).symlink_to(entry)
    monkeypatch.setenv("MEMLIB_DATA", str(data))
    prompts = offline / "prompts.csv"
    prompts.write_text("prompt\na cat\na dog\n", encoding="utf-8")
    shared = {"substrate": str(sd1_tiny), "webster": str(prompts), "membench": str(prompts), "n_seeds": 1, "steps": 1, "at_once": 1}
    for measure, words in ((False, "not measured here"), (True, "not measured")):
        out = execute("09_published_lists", offline, **shared, measure=measure)
        [verdict] = [v for v in read_verdicts(out) if v["substrate"] == sd1_tiny.name]
        assert verdict["verdict"] == "not testable here"
        assert words in "".join(str(cell.get("outputs", "")) for cell in nbformat.read(out, 4).cells)


@pytest.mark.slow
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
