"""What all pages share: parameters of a kind, claims and verdicts, words for numbers, and figures whatever the shell says."""

import ast
from pathlib import Path
from typing import ClassVar

import matplotlib as mpl
import nbformat
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbformat.v4 import new_code_cell, new_notebook

from memlib.base.errors import InputError
from memlib.experiment import page, parameters
from memlib.experiment.page import Page, told
from memlib.judging.estimates import Estimate

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}


def around(value, half=0.02):
    return Estimate(value, value - half, value + half, n_prompts=24, n_seeds=10)


def of(notebook):
    """Parameters of a notebook with their defaults, read without papermill."""
    (cell,) = [cell for cell in nbformat.read(notebook, 4).cells if "parameters" in cell.metadata.get("tags", [])]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_parameter_has_a_kind_that_its_default_is_of(notebook):
    for name, value in of(notebook).items():
        assert name in parameters.KINDS, f"give {name} a kind in memlib.experiment.parameters"
        kept = parameters.checked(name, value)
        assert kept == value and type(kept) is type(value)


def test_every_kind_is_some_parameter_s():
    assert set(parameters.KINDS) == set().union(*map(of, NOTEBOOKS))


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("n_prompts", "6", 6), ("n_prompts", "None", None), ("batch_size", "null", None), ("guidance", "7.5", 7.5), ("opposite", "-2", -2.0),
        ("methods", "pad-swap", ["pad-swap"]), ("methods", "pad-swap, ren", ["pad-swap", "ren"]), ("methods", "['pad-swap', \"ren\"]", ["pad-swap", "ren"]),
        ("methods", "None", None), ("radii_noise", "0.5,1", [0.5, 1.0]), ("radii_mixed", "[0.5, 1]", [0.5, 1.0]), ("refetch", "true", True),
        ("measure", "false", False), ("measure", "auto", "auto"), ("guidance", 7, 7.0), ("opposite", 3, 3.0), ("somebody_s_own", {"a": 1}, {"a": 1}),
    ],
)  # fmt: skip
def test_text_from_a_command_line_becomes_what_it_stands_for(name, given, value):
    kept = parameters.checked(name, given)
    assert kept == value and type(kept) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "allowed"),
    [
        ("n_prompts", "six", "a whole number from 1 on, or None"), ("n_seeds", 0, "a whole number from 1 on"), ("n_seeds", True, "a whole number"),
        ("n_seeds", 1.5, "a whole number"), ("n_seeds", None, "a whole number"), ("batch_size", 0, "a whole number from 1 on, or None"),
        ("guidance", float("nan"), "a finite number"), ("guidance", "nan", "a finite number"), ("guidance", False, "a finite number"),
        ("seed", -1, "a whole number from 0 on"),
        ("radii_mixed", [0.5, 2], "a list of numbers above 0 and at most 1"), ("radii_noise", [], "a list of numbers above 0"),
        ("methods", 3, "a list of names, or one name, or None"), ("substrate", 3, "a name, or the path"), ("refetch", "x", "True or False"),
        ("measure", "x", "True or False, or one of auto"), ("profile", "x", "one of live, reference, check"), ("attack_lr", 0, "a number above 0"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_ends_in_one_sentence(name, given, allowed):
    with pytest.raises(InputError) as refused:
        parameters.checked(name, given)
    assert str(refused.value).startswith(f"The parameter {name} is {given!r}: use {allowed}") and "\n" not in str(refused.value)


def test_values_are_checked_before_any_notebook_is_executed():
    assert parameters.share_out({"n_prompts": "6"}, NOTEBOOKS[1:2]) == {NOTEBOOKS[1]: {"n_prompts": 6}}
    with pytest.raises(InputError, match="The parameter n_prompts is 'six'"):
        parameters.share_out({"n_prompts": "six"}, NOTEBOOKS)


def test_the_names_that_imports_bring_are_no_parameters(monkeypatch):
    class Shell:
        user_ns: ClassVar = {"In": ["from somewhere import measure", "n_seeds = 2", "# Parameters\nn_seeds = '3'\n"]}

    monkeypatch.setattr(parameters, "shell", Shell)
    namespace = {"measure": test_every_kind_is_some_parameter_s, "n_seeds": "3"}
    parameters.check_namespace(namespace)
    assert namespace["n_seeds"] == 3 and callable(namespace["measure"])


def test_a_page_judges_its_claims_and_glues_what_it_found(monkeypatch, capsys):
    found = Page("C1a", "C1b")
    shown, glued = [], {}
    monkeypatch.setattr("IPython.display.display", lambda *verdicts: shown.extend(verdicts))
    monkeypatch.setattr("myst_nb.glue", lambda name, value, display: glued.update({name: value}))
    found.conclude({"C1a": [around(0.9)] * 4}, "a model", because={"C1b": "There is no copy metric."})
    assert shown == list(found.verdicts.values()) and found.verdicts["C1b"].reason == "There is no copy metric."
    found.print_verdicts()
    assert capsys.readouterr().out == f"C1a {shown[0].verdict}\nC1b not testable here\n"
    found.glue({"one": around(0.5), "two": None, "three": 3})
    found.glue({"four": around(0.5)}, digits=3)
    assert glued == {"verdict_C1a": shown[0].verdict, "verdict_C1b": "not testable here", "one": "0.50 [0.48, 0.52]", "two": "not measured",
                     "three": 3, "four": "0.500 [0.480, 0.520]"}  # fmt: skip


def test_reported_rows_stand_once_with_dashes_for_what_the_text_leaves_out():
    both = Page("C2a", "C2b").reported()
    alone = Page("C2b").reported()
    assert list(both.columns) == list(page.REPORTED_COLUMNS) and set(both["source"]) == {"reported"}
    assert len(alone) <= len(both) and not both.duplicated().any() and not both.isna().any().any()


def test_settings_are_the_notebook_s_own_parameters():
    found = Page()
    found._namespace = {"substrate": "minisd-v1", "steps": 3, "n_prompts": 5}
    assert found.settings == {"substrate": "minisd-v1", "steps": 3}


def test_the_command_names_parameters_that_the_page_has(capsys):
    lists = Page("C3b")
    lists._namespace = {"In": ["", "refetch = False  # True: fetch\nlabels = None  # a file", "x = 1  # no parameter"], "refetch": True}
    shown = lists.run_it().frame
    assert list(shown.index) == ["refetch", "labels"] and shown.loc["refetch", ["here", "default", "meaning"]].tolist() == ["True", "False", "True: fetch"]
    assert capsys.readouterr().out == ".venv/bin/papermill notebooks/04_token_lengths.ipynb out.ipynb\n"
    model = Page("C7")
    model._namespace = {"In": ["", 'substrate = "minisd-v1"  # a model\nn_prompts = 3  # prompts'], "n_prompts": 3}
    model.run_it()
    assert capsys.readouterr().out.endswith(".ipynb -p substrate sd14 -p n_prompts 4\n")


def test_words_for_numbers():
    assert told(Estimate(0.0, 0.0, 0.0, 3398, 0)) == "0.00" and told(Estimate(1.0, 1.0, 1.0, 30, 2)) == "1.00 [1.00, 1.00]"
    assert told(None) == "not measured" and told(around(0.5), 3) == "0.500 [0.480, 0.520]"


def test_outside_a_kernel_the_backend_is_left_alone():
    before = mpl.get_backend()
    page.show_figures()
    assert mpl.get_backend() == before
    assert InteractiveShell.initialized() is False or not hasattr(InteractiveShell.instance(), "kernel")


@pytest.mark.slow
def test_a_page_has_its_figures_and_its_types_whatever_the_shell_says(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    cells = [
        new_code_cell("from matplotlib import pyplot as plt\nfrom memlib.experiment.page import Page"),
        new_code_cell("n_prompts = 2\nmethods = None", metadata={"tags": ["parameters"]}),
        new_code_cell("page = Page()\nprint(repr(n_prompts), methods)"),
        new_code_cell("figure, axis = plt.subplots()\naxis.plot([1, 2]);"),
    ]
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), tmp_path / "in.ipynb")
    given = {"n_prompts": "6", "methods": "pad-swap"}
    done = papermill.execute_notebook(str(tmp_path / "in.ipynb"), str(tmp_path / "out.ipynb"), given, progress_bar=False)
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert "6 ['pad-swap']" in "".join(output.get("text", "") for output in outputs)
