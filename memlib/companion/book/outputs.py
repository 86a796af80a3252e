"""From executed copies to committed notebooks, and committed notebooks against their text twins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat

from memlib.base.errors import InputError
from memlib.base.writing import replacing
from memlib.companion.book import facts
from memlib.companion.book.layout import Layout
from memlib.companion.book.pictures import shrink_outputs

# What papermill records of a run and a reader of the committed notebook can use.
_RECORD = ("parameters", "exception")
_CELL_METADATA = ("tags", "mystnb")


def cleaned(notebook: nbformat.NotebookNode) -> tuple[nbformat.NotebookNode, dict[str, Any]]:
    """An executed notebook as it is committed, and the facts of its run: no injected cell, no times, counts from 1, pictures small and without stamps.

    Two runs that give the same results give the same notebook, to the byte.
    """
    run = facts.take_out(notebook)
    shrink_outputs(notebook)
    kept = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    count = 0
    for cell in kept:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in _CELL_METADATA and v}
        if cell.cell_type == "code" and cell.execution_count is not None:
            count += 1
            cell.execution_count = count
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
    record = notebook.metadata.get("papermill", {})
    notebook.cells = kept
    notebook.metadata = {k: v for k, v in notebook.metadata.items() if k in ("kernelspec", "jupytext", "language_info")}
    notebook.metadata["papermill"] = {k: record[k] for k in _RECORD if k in record}
    return nbformat.from_dict(notebook), run


def problem_of(notebook: nbformat.NotebookNode) -> str | None:
    """Why a notebook must not be shown as a result: its run failed, a cell shows an error, or it never ran."""
    if notebook.metadata.get("papermill", {}).get("exception"):
        return "its last run ended in an exception"
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for cell in code:
        expected = "raises-exception" in cell.metadata.get("tags", [])
        if not expected and any(output.output_type == "error" for output in cell.outputs):
            return "a cell shows an error"
    if code and not any(cell.outputs for cell in code):
        return "it has no outputs: run 'make book' and then 'make outputs'"
    return None


def copy_outputs(layout: Layout) -> list[Path]:
    """Put the executed notebooks in the place of the committed ones; InputError if one is missing or failed."""
    ready: dict[Path, nbformat.NotebookNode] = {}
    runs = {path.stem: run for path in layout.notebooks() if (run := facts.read(layout.root).get(path.stem))}
    for path in layout.notebooks():
        executed = layout.executed / path.name
        if not executed.exists():
            raise InputError(f"{path.stem} has not been executed on {layout.substrate}: run 'make book' first.")
        notebook, runs[path.stem] = cleaned(nbformat.read(executed, as_version=4))
        problem = problem_of(notebook)
        if problem:
            raise InputError(f"{path.stem} is not copied: {problem}.")
        source = nbformat.read(path, as_version=4)
        if [cell.source for cell in source.cells] != [cell.source for cell in notebook.cells]:
            raise InputError(f"{path.stem} has changed since it was executed: run 'make book' first.")
        ready[path] = notebook
    for path, notebook in ready.items():
        with replacing(path) as temporary:
            nbformat.write(notebook, temporary)
    facts.write(layout.root, runs)
    return list(ready)


def twin_differences(notebook: Path) -> list[str]:
    """Where a notebook and its .py twin differ in cell type, source or tags, one sentence each; none if in step."""
    import jupytext

    twin = notebook.with_suffix(".py")
    if not twin.exists():
        return [f"{notebook.name} has no twin {twin.name}: run 'jupytext --sync {notebook.name}'."]
    left, right = (_content(jupytext.read(path)) for path in (notebook, twin))
    if len(left) != len(right):
        return [f"{notebook.name} has {len(left)} cells and {twin.name} {len(right)}: run 'jupytext --sync'."]
    return [
        f"cell {number} of {notebook.name} and {twin.name} differ in {', '.join(parts)}: run 'jupytext --sync'."
        for number, (a, b) in enumerate(zip(left, right), 1)
        if (parts := [name for name in a if a[name] != b[name]])
    ]


def _content(notebook: nbformat.NotebookNode) -> list[dict]:
    return [
        {
            "type": cell.cell_type,
            "source": cell.source.strip(),
            "tags": cell.metadata.get("tags", []),
            "figure": cell.metadata.get("mystnb", {}),
        }
        for cell in notebook.cells
    ]
