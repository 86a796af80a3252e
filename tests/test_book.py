"""Running notebooks, their parameters, their committed copies and twins, and the ledger."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from docutils import nodes
from docutils.core import publish_doctree
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from memlib.base.errors import InputError
from memlib.companion.book import dependencies, facts, jobs, ledger, outputs, progress
from memlib.companion.book import execute as running
from memlib.companion.book.api import escaped
from memlib.companion.book.layout import ROOT, Layout
from memlib.companion.commands import main
from memlib.experiment import parameters
from memlib.judging.claims import load_claims
from memlib.judging.estimates import Estimate
from memlib.judging.verdicts import Verdict

NOTEBOOKS = Layout().notebooks()


def write_notebook(path: Path, *sources: str, verdict: Verdict | None = None, **metadata) -> Path:
    cells = [new_markdown_cell("# A page")]
    cells.append(new_code_cell('substrate = "minisd-v1"\nseeds = 2', metadata={"tags": ["parameters"]}))
    cells += [new_code_cell(source) for source in sources]
    if verdict:
        data = verdict._repr_mimebundle_()
        cells.append(new_code_cell("verdict", execution_count=1, outputs=[new_output("display_data", data)]))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel} | metadata), path)
    return path


def verdict_on(claim: str, substrate: str = "minisd-v1", verdict: str = "holds") -> Verdict:
    quantities = {"similarity_b": Estimate(0.91, 0.88, 0.94, 20, 4)}
    return Verdict(claim, "title", "clip, Section 3.1", substrate, verdict, "reason", 20, 4, quantities)


@pytest.fixture
def layout(tmp_path):
    (tmp_path / "notebooks").mkdir()
    return Layout(root=tmp_path)


# parameters


@pytest.mark.parametrize(
    "text, expected",
    [("seeds=4", ("seeds", 4)), ("guidance=7.5", ("guidance", 7.5)), ("s=[1, 2]", ("s", [1, 2])), ("f=a=b", ("f", "a=b"))],
)
def test_assignments_have_types(text, expected):
    assert parameters.parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["seeds", "2seeds=1", "=3", "s=[1"])
def test_bad_assignments_are_refused(text):
    with pytest.raises(InputError):
        parameters.parse_assignment(text)


def test_parameters_go_to_the_notebooks_that_have_them(tmp_path):
    one = write_notebook(tmp_path / "one.ipynb")
    two = tmp_path / "two.ipynb"
    steps = new_code_cell("steps = 3", metadata={"tags": ["parameters"]})
    kernel = nbformat.read(one, as_version=4).metadata
    nbformat.write(new_notebook(cells=[steps], metadata=kernel), two)
    assert parameters.share_out({"seeds": 1, "steps": 2}, [one, two]) == {one: {"seeds": 1}, two: {"steps": 2}}
    with pytest.raises(InputError, match="'seedz'; there are seeds, steps, substrate"):
        parameters.share_out({"seedz": 1}, [one, two])


def test_an_injected_parameter_must_be_declared_before():
    cells = ["%matplotlib inline", "seeds: int = 2\nsteps = 3", "# Parameters\nseeds = 4\n"]
    parameters.check_cells(cells)
    parameters.check_cells(cells[:2])
    with pytest.raises(InputError, match="no parameter stepz; it has seeds, steps"):
        parameters.check_cells([*cells[:2], "# Parameters\nstepz = 4\n"])
    parameters.check_namespace({})  # outside IPython there is nothing to refuse


# execution


@pytest.mark.slow
def test_an_unchanged_notebook_is_not_run_again(layout):
    write_notebook(layout.sources / "00_a.ipynb", "print(substrate, seeds)")
    said: list[str] = []
    (done,) = running.execute(layout, {"seeds": 5}, say=said.append)
    cells = nbformat.read(done, as_version=4).cells
    assert [o.text for c in cells if c.cell_type == "code" for o in c.outputs] == ["minisd-v1 5\n"]
    before = done.stat().st_mtime_ns
    running.execute(layout, {"seeds": 5}, say=said.append)
    assert done.stat().st_mtime_ns == before and said[-1].endswith("unchanged")
    assert str(layout.root) not in done.read_text()


def test_a_notebook_depends_on_the_code_and_data_that_it_reaches(layout):
    """Code is a package of three modules in a line; a comment or docstring changes nothing, a figure's look its own page alone."""
    package = layout.root / "memlib"
    (package / "figures").mkdir(parents=True)
    for name, text in {
        "__init__": "", "figures/__init__": "from memlib.figures.style import INK\n", "figures/style": '"""Look."""\nINK, PAGE = "black", "page.html"\n',
        "low": 'FILE = "prompts"\n', "high": "def judge():\n    from memlib import low\n    return low\n",
    }.items():  # fmt: skip
        (package / f"{name}.py").write_text(text)
    data = layout.root / "data"
    (data / "prompts").mkdir(parents=True)
    (data / "prompts" / "a.csv").write_text("1")
    (data / "claims.yml").write_text('[{"id": "C1", "notebook": "00_a"}, {"id": "C2", "notebook": "01_b"}]')
    pages = [
        write_notebook(layout.sources / "00_a.ipynb", "from memlib.high import judge"),
        write_notebook(layout.sources / "01_b.ipynb", "import memlib.figures", "claim = 'claims.yml'"),
    ]

    def changed(act):
        before = [dependencies.fingerprint(page, {}, layout) for page in pages]
        act()
        return [dependencies.fingerprint(page, {}, layout) != old for page, old in zip(pages, before, strict=True)]

    assert changed(lambda: None) == [False, False]
    assert changed(lambda: (package / "figures" / "page.html").write_text("<p>")) == [False, True]
    assert changed(lambda: (package / "figures" / "style.py").write_text('INK = "blue"\n')) == [False, True]
    assert changed(lambda: (package / "figures" / "style.py").write_text('"""Another look."""\n\n# why\nINK = (\n    "blue"\n)\n')) == [False, False]
    assert changed(lambda: (package / "low.py").write_text('FILE = "prompts"\nMORE = 1\n')) == [True, False]
    assert changed(lambda: (data / "prompts" / "a.csv").write_text("2")) == [True, False]
    assert changed(lambda: (data / "claims.yml").write_text('[{"id": "C1", "notebook": "00_a"}, {"id": "C2", "notebook": "01_b", "title": "x"}]')) == [
        False,
        True,
    ]
    assert changed(lambda: (data / "runs.json").write_text("{}")) == [False, False]
    assert dependencies.fingerprint(pages[0], {"seeds": 6}, layout) != dependencies.fingerprint(pages[0], {"seeds": 5}, layout)


@pytest.mark.slow
def test_a_failing_cell_ends_in_one_sentence(layout):
    write_notebook(layout.sources / "00_a.ipynb", 'raise ValueError("no such thing")')
    with pytest.raises(InputError, match=r"00_a stopped in cell \d+ with ValueError: no such thing"):
        running.execute(layout, say=lambda line: None)
    assert (layout.build / "failed-00_a.ipynb").exists() and not list(layout.executed.glob("*.ipynb"))


@pytest.mark.slow
def test_notebooks_run_beside_each_other(layout):
    """Each waits for the file that the other writes, so that one after the other would never end; each has half of the cores."""
    meet = """
import os, pathlib, time
pathlib.Path("{mine}").touch()
for _ in range(600):
    if pathlib.Path("{other}").exists():
        break
    time.sleep(0.1)
else:
    raise TimeoutError
print(os.environ["OMP_NUM_THREADS"])
"""
    write_notebook(layout.sources / "00_a.ipynb", meet.format(mine="a", other="b"))
    write_notebook(layout.sources / "01_b.ipynb", meet.format(mine="b", other="a"))
    said: list[str] = []
    done = running.execute(layout, say=said.append, jobs=2)
    assert [path.stem for path in done] == ["00_a", "01_b"] and [line.split(": ")[1][:4] for line in said] == ["begi", "begi", "ran ", "ran "]
    expected = os.environ.get("OMP_NUM_THREADS", str(max(1, jobs.cores() // 2)))
    for path in done:
        assert [o.text for c in nbformat.read(path, 4).cells if c.cell_type == "code" for o in c.outputs] == [f"{expected}\n"]


@pytest.mark.slow
def test_after_a_failure_those_under_way_are_finished_and_no_other_begins(layout):
    """The two that took longest when they were committed begin first."""
    write_notebook(layout.sources / "00_a.ipynb", 'raise ValueError("no such thing")')
    write_notebook(layout.sources / "01_b.ipynb", "1")
    write_notebook(layout.sources / "02_c.ipynb", "import time", "time.sleep(3)")
    facts.write(layout.root, {name: {"duration": seconds} for name, seconds in (("00_a", 20.0), ("01_b", 5.0), ("02_c", 10.0))})
    with pytest.raises(InputError, match="00_a stopped"):
        running.execute(layout, say=lambda line: None, jobs=2)
    assert [path.stem for path in layout.executed.glob("*.ipynb")] == ["02_c"]


@pytest.mark.slow
@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGKILL"])
def test_whoever_stops_the_command_stops_its_notebooks(layout, signal_name):
    write_notebook(layout.sources / "00_a.ipynb", 'import os, pathlib, time\npathlib.Path("pid").write_text(str(os.getpid()))\ntime.sleep(300)')
    imports = "import signal; from pathlib import Path; from memlib.companion.book.execute import execute; from memlib.companion.book.layout import Layout"
    # A shell lets what it runs in the background ignore SIGINT, these tests too.
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{imports}; {heard}; execute(Layout(Path({str(layout.root)!r})))"
    command = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    written = layout.sources / "pid"
    assert soon(lambda: written.exists() and written.read_text())
    command.send_signal(getattr(signal, signal_name))
    command.wait(60)
    assert soon(lambda: not psutil.pid_exists(int(written.read_text())))


def soon(condition, seconds=60):
    for _ in range(10 * seconds):
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_a_kernel_that_dies_is_named_with_the_likely_cause(layout):
    write_notebook(layout.sources / "00_a.ipynb", "1", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(InputError, match=r"kernel of notebook 00_a was killed, most likely for want of memory.*failed-00_a"):
        running.execute(layout, say=lambda line: None)
    kept = nbformat.read(layout.build / "failed-00_a.ipynb", as_version=4)
    assert any(cell.get("execution_count") for cell in kept.cells)


@pytest.mark.slow
def test_figures_appear_whatever_the_shell_says_of_the_backend(layout, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    write_notebook(layout.sources / "00_a.ipynb", "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")
    (done,) = running.execute(layout, say=lambda line: None)
    assert sum("image/png" in output.get("data", {}) for cell in nbformat.read(done, 4).cells for output in cell.get("outputs", [])) == 1
    assert os.environ["MPLBACKEND"] == "Agg"


def test_time_left_follows_from_last_time_and_the_speed_of_this_run(layout, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    said: list[str] = []
    run = progress.Progress(["a", "b", "c", "d"], {"a": 100.0, "b": 200.0, "c": 300.0}, 1, said.append, layout)
    assert run.left() == 100 + 200 + 300 + 200  # of the unknown one, the mean of the others
    run.unchanged("c")
    run.began("a")
    clock[0] = 50.0
    assert run.left() == 50 + 200 + 200
    clock[0] = 200.0
    run.ended("a")  # twice as slow as last time
    assert run.left() == 2 * (200 + 200) and said[-1] == "[1/4] a: ran on minisd-v1 in 3 min; 13 min left"


def test_progress_is_told_while_notebooks_run(layout, monkeypatch, capsys):
    """Into a pipe or a log as well: each line at once, also those of the minutes in which nothing begins or ends."""
    for name in ("00_a", "01_b"):
        write_notebook(layout.sources / f"{name}.ipynb")
    told = []

    def run(source, target, parameters, layout):
        time.sleep(0.3)
        told.append(capsys.readouterr().out)
        target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")

    monkeypatch.setattr(running, "_run", run)
    monkeypatch.setattr(progress, "EVERY", 0.1)
    running.execute(layout, jobs=1)
    assert "[1/2] 00_a: begins" in told[0] and "00_a; 0 of 2 done" in told[0]
    assert "[1/2] 00_a: ran on minisd-v1 in" in told[1] and "01_b; 1 of 2 done" in told[1]


def test_how_many_run_at_once(monkeypatch):
    monkeypatch.setattr(jobs.shutil, "which", lambda name: None)
    monkeypatch.setattr(jobs, "cores", lambda: 16)
    memory = {"available": 64 * 2**30}
    monkeypatch.setattr(jobs.psutil, "virtual_memory", lambda: SimpleNamespace(**memory))
    assert jobs.jobs_for("minisd-v2") == jobs.MOST and jobs.jobs_for("sd14") == 1
    memory["available"] = 3 * 2**30
    assert jobs.jobs_for("minisd-v2") == 1
    memory["available"] = 64 * 2**30
    monkeypatch.setattr(jobs.shutil, "which", lambda name: "nvidia-smi")
    assert jobs.jobs_for("minisd-v2") == 1


def test_no_notebooks_is_said(layout):
    with pytest.raises(InputError, match="at least 1"):
        running.execute(layout, jobs=0)

    with pytest.raises(InputError, match="no notebooks in notebooks"):
        running.execute(layout)


def test_a_checkpoint_folder_has_a_folder_name_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "my model").mkdir()
    monkeypatch.chdir(tmp_path)
    layout = Layout(root=tmp_path, substrate="./my model")
    assert layout.parameter == str(tmp_path / "my model")
    assert layout.folder_name.startswith("my-model-") and layout.html.parent == tmp_path / "_build" / layout.folder_name
    assert Layout(root=tmp_path, substrate="sd14").html == tmp_path / "_build" / "sd14" / "html"


def test_the_command_ends_in_one_sentence(capsys):
    assert main(["book", "execute", "-p", "no_such_parameter=1"]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


# committed copies


def executed_notebook():
    injected = new_code_cell("# Parameters\nseeds = 2", metadata={"tags": ["injected-parameters"]}, execution_count=2)
    result = new_output("execute_result", {"text/plain": "1"}, execution_count=3)
    cell = new_code_cell("1", metadata={"papermill": {"duration": 1.0}, "tags": []}, execution_count=3, outputs=[result])
    first = new_code_cell("seeds = 2", metadata={"tags": ["parameters"]}, execution_count=1)
    record = {"exception": None, "parameters": {"seeds": 2}, "output_path": "x", "duration": 2.0}
    return new_notebook(cells=[first, injected, cell], metadata={"papermill": record})


def test_committed_copies_hold_results_and_nothing_of_the_run():
    notebook = outputs.cleaned(executed_notebook())[0]
    assert [cell.source for cell in notebook.cells] == ["seeds = 2", "1"]
    assert notebook.cells[1].execution_count == notebook.cells[1].outputs[0].execution_count == 2
    assert "papermill" not in notebook.cells[1].metadata
    assert notebook.metadata.papermill == {"parameters": {"seeds": 2}, "exception": None}
    nbformat.validate(notebook)


@pytest.mark.slow
def test_two_runs_with_the_same_results_give_the_same_bytes(layout):
    """Times, commits and the stamps of programs in pictures are apart: in one file, and on the page when it is built."""
    source = """
import time
import matplotlib.pyplot as plt
from IPython.display import HTML
plt.plot([1, 2])
# then
HTML(f"<p class='memlib-provenance'><small>3 sampled or scored here, 4 from the store · 50 steps · {time.time()}</small></p>")"""
    path = write_notebook(layout.sources / "00_a.ipynb", *source.split("# then"))
    found, runs = [], []
    for _ in range(2):
        running.execute(layout, force=True, say=lambda line: None)
        outputs.copy_outputs(layout)
        found.append(path.read_bytes())
        runs.append(facts.read(layout.root)["00_a"])
    assert found[0] == found[1] and b"Software" not in found[0]
    assert runs[0] != runs[1] and (runs[0]["pictures"], runs[0]["evaluations"]) == (7, 700)
    shown = nbformat.read(path, as_version=4)
    facts.put_back(shown, runs[1])
    (line,) = [o.data["text/html"] for c in shown.cells for o in c.get("outputs", []) if "memlib-provenance" in o.get("data", {}).get("text/html", "")]
    assert "4 from the store" in line


def test_failed_and_empty_runs_are_recognised():
    good = executed_notebook()
    assert outputs.problem_of(good) is None
    empty = executed_notebook()
    empty.cells[2].outputs = []
    assert "no outputs" in outputs.problem_of(empty)
    failed = executed_notebook()
    failed.metadata.papermill.exception = True
    assert "exception" in outputs.problem_of(failed)
    shown = executed_notebook()
    shown.cells[2].outputs.append(new_output("error", ename="E", evalue="", traceback=[]))
    assert "error" in outputs.problem_of(shown)


def test_twins_are_compared_cell_by_cell(tmp_path):
    import jupytext

    path = write_notebook(tmp_path / "a.ipynb", "x = 1")
    assert "no twin" in outputs.twin_differences(path)[0]
    jupytext.write(jupytext.read(path), path.with_suffix(".py"), fmt="py:percent")
    assert outputs.twin_differences(path) == []
    twin = path.with_suffix(".py")
    twin.write_text(twin.read_text().replace("x = 1", "x = 2"))
    assert outputs.twin_differences(path) == ["cell 3 of a.ipynb and a.py differ in source: run 'jupytext --sync'."]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_are_in_order(path):
    notebook = nbformat.read(path, as_version=4)
    assert outputs.twin_differences(path) == []
    assert outputs.problem_of(notebook) is None
    assert path.stat().st_size < 3_000_000, "fewer or smaller figures"
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    assert tags.count("parameters") == 1 and "injected-parameters" not in tags
    streams = {output.get("name") for cell in notebook.cells for output in cell.get("outputs", [])}
    assert "stderr" not in streams, "a warning stands on the page"
    assert str(ROOT) not in path.read_text(encoding="utf-8") and str(Path.home()) + "/" not in path.read_text(encoding="utf-8")


# ledger


def test_the_ledger_joins_claims_and_verdicts(tmp_path):
    path = write_notebook(tmp_path / "01_prompt_embeddings.ipynb", verdict=verdict_on("C1a"))
    elsewhere = [verdict_on("C1a", "sd14", "holds in part"), verdict_on("C1a", verdict="does not hold")]
    entries = {entry.claim.id: entry for entry in ledger.collect(ROOT / "data" / "claims.yml", [path], elsewhere)}
    assert list(entries) == list(load_claims())
    entry = entries["C1a"]
    # A notebook's own verdict is not replaced by one from elsewhere on the same substrate.
    assert {name: v.verdict for name, v in entry.verdicts.items()} == {"minisd-v1": "holds", "sd14": "holds in part"}
    assert entry.notebook == "01_prompt_embeddings"
    assert ("SSCD to the unedited picture, (b) (Table 2)", "0.55 ± 0.14") in entry.reported()
    assert entries["B1"].verdicts == {} and entries["B1"].notebook is None
    assert ledger.counts(entries.values()) == {"minisd-v1": {"holds": 1}, "sd14": {"holds in part": 1}}
    lines = ledger.as_text(entries.values()).splitlines()
    assert len(lines) == len(entries) and "minisd-v1: holds; sd14: holds in part" in lines[0]


def test_a_verdict_on_an_unknown_claim_is_refused(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", verdict=verdict_on("C99"))
    with pytest.raises(InputError, match="a is on the claim C99"):
        ledger.collect(ROOT / "data" / "claims.yml", [path])


def test_every_discrepancy_found_in_code_is_on_the_page():
    page = (ROOT / "book" / "discrepancies.md").read_text(encoding="utf-8")
    numbers = [row.split()[1] for row in page.splitlines() if row.startswith("| ") and row.split()[1].isdigit()]
    assert sorted(map(int, numbers)) == list(range(1, 31))


def test_what_is_declared_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]

    def names(lines):
        return {re.match(r"[\w.-]+", line).group().lower().replace("-", "_") for line in lines}

    pinned = names(line for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line)
    assert names(declared) == pinned - {"setuptools", "wheel"}


def test_the_lock_agrees_with_the_requirements():
    def pins(name):
        lines = (ROOT / name).read_text().splitlines()
        return dict(line.partition(" ")[0].lower().replace("-", "_").split("==") for line in lines if "==" in line and line[0].isalpha())

    locked = pins("requirements.lock.txt")
    assert {name: locked.get(name) for name in pins("requirements.txt")} == pins("requirements.txt")
    lock = (ROOT / "requirements.lock.txt").read_text()
    assert "file:" not in lock
    # Every pin is followed by the hashes that its file must have one of.
    entries = re.split(r"^(?=[a-z])", lock.partition("\naccelerate")[2], flags=re.MULTILINE)
    assert len(entries) == len(locked) and all(re.fullmatch(r"[^\n]*( \\\n    --hash=sha256:[0-9a-f]{64})+\n", entry) for entry in entries)


def test_lists_in_docstrings_are_lists_on_the_pages_of_the_package():
    lines = ["Two ways:", "", "- `one`, which", "  goes on here;", "- another.", "Text again.", "", "- 3 is no item without an end", "", "    code"]
    tree = publish_doctree("\n".join(escaped(lines)))
    assert [[item.astext().split() for item in part.findall(nodes.list_item)] for part in tree.findall(nodes.bullet_list)] == [
        [["one,", "which", "goes", "on", "here;"], ["another."]], [["3", "is", "no", "item", "without", "an", "end"]],
    ]  # fmt: skip
    assert [part.astext() for part in tree.findall(nodes.line_block)] == ["code"]
