"""Verdicts of another substrate's run, kept for every later book."""

from __future__ import annotations

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from memlib.base.errors import InputError
from memlib.base.paths import ROOT
from memlib.companion.book.dependencies import fingerprint
from memlib.companion.book.kept import folder, keep, kept
from memlib.companion.book.layout import Layout
from memlib.companion.book.ledger import collect
from memlib.companion.commands import main
from memlib.judging.estimates import Estimate
from memlib.judging.verdicts import Verdict


def executed(layout: Layout, stem: str, claim: str, prompts: int, value: float = 0.8, failed: bool = False) -> None:
    verdict = Verdict(claim, "t", "s", "sd14", "holds", "r", prompts, 10, {"q": Estimate(value, float("nan"), 0.9, prompts, 10)})
    outputs = [new_output("display_data", verdict._repr_mimebundle_())]
    record = {"exception": True if failed else None, "parameters": {"n_prompts": prompts}, "start_time": "then", "environment_variables": {"HOME": "x"}}
    layout.executed.mkdir(parents=True, exist_ok=True)
    cells = [new_code_cell("v", execution_count=1, outputs=outputs)]
    nbformat.write(new_notebook(cells=cells, metadata={"papermill": record}), layout.executed / f"{stem}.ipynb")


@pytest.fixture
def layout(tmp_path):
    return Layout(root=tmp_path, substrate="sd14")


def test_what_is_kept_comes_back_and_a_smaller_run_takes_nothing_away(layout):
    executed(layout, "01_a", "C1a", 458)
    executed(layout, "02_b", "C2a", 458, failed=True)
    path, anew = keep(layout)
    assert path == layout.root / "data" / "measured" / "verdicts-sd14.json" and anew == ["01_a"]
    executed(layout, "01_a", "C1a", 5, value=0.1)
    executed(layout, "02_b", "C2a", 20)
    assert keep(layout)[1] == ["02_b"]
    found = [Verdict.from_json(fields) for fields in kept(layout.root)]
    assert [(verdict.claim, verdict.n_prompts, verdict.quantities["q"].value) for verdict in found] == [("C1a", 458, 0.8), ("C2a", 20, 0.8)]
    # As much again replaces, since it is newer; and nothing of the machine is kept.
    executed(layout, "01_a", "C1a", 458, value=0.7)
    assert "01_a" in keep(layout)[1] and kept(layout.root)[0]["quantities"]["q"]["value"] == 0.7
    assert "environment_variables" not in path.read_text() and json.loads(path.read_text())["01_a"]["run"]["parameters"] == {"n_prompts": 458}
    assert {entry.claim.id: set(entry.verdicts) for entry in collect(ROOT / "data" / "claims.yml", [], found)}["C1a"] == {"sd14"}


def test_nothing_to_keep_and_damaged_files_end_in_one_sentence(layout, monkeypatch, capsys):
    with pytest.raises(InputError, match="run 'make book' first"):
        keep(layout)
    with pytest.raises(InputError, match="committed notebooks"):
        keep(Layout(root=layout.root))
    executed(layout, "01_a", "C1a", 4)
    keep(layout)
    for text in ("{", "[]", '{"01_a": {"verdicts": [{"claim": "C1a"}]}}', '{"01_a": 3}'):
        (folder(layout.root) / "verdicts-sd14.json").write_text(text)
        with pytest.raises(InputError, match="verdicts-sd14.json cannot be read"):
            kept(layout.root)
        with pytest.raises(InputError, match="cannot be read"):
            keep(layout)
    assert main(["book", "keep"]) == 1 and len(capsys.readouterr().err.strip().splitlines()) == 1


def test_kept_results_make_no_notebook_run_again_but_those_that_show_them(layout):
    (layout.root / "memlib").symlink_to(ROOT / "memlib")

    def marks(source: str, **parameters) -> str:
        path = layout.root / "01_a.ipynb"
        nbformat.write(new_notebook(cells=[new_code_cell(source)]), path)
        return fingerprint(path, parameters, layout)

    plain, showing = "x = 1", "from memlib.results import table\ntable.append(path, rows)"
    before = marks(plain), marks(showing)
    scores = layout.root / "data" / "scores"
    scores.mkdir(parents=True)
    # A run's own table, written while it runs, is not its input.
    (scores / "published_lists-sd14.parquet").write_text("{}")
    assert (marks(plain), marks(showing)) == before
    (scores / "published_lists-sd21.parquet").write_text("{}")
    assert marks(plain) == before[0] and marks(showing) != before[1]
