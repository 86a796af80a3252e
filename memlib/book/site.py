"""The site: a source folder staged from prose and notebooks, rendered by Jupyter Book with warnings as errors."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat

from memlib.book.layout import Layout
from memlib.book.outputs import problem_of
from memlib.errors import InputError

# Read by the ledger beside the notebooks of the site itself.
OTHER_VERDICTS = "other_verdicts.json"

# Jupyter Book is no runnable module, and its script need not be on the PATH.
_JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"


def stage(layout: Layout, notebooks: list[Path], others: list[Path] | None = None) -> Path:
    """Copy prose, claims and `notebooks` into one folder and return it.

    `others` are notebooks executed on other substrates: only their verdicts enter, for the ledger.
    Raises InputError for a notebook whose run failed.
    """
    target = layout.site_source
    shutil.rmtree(target, ignore_errors=True)
    (target / "notebooks").mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy2(layout.root / name, target / name)
    shutil.copytree(layout.root / "book", target / "book", ignore=shutil.ignore_patterns("_generated", ".ipynb_*"))
    (target / "data").mkdir()
    shutil.copy2(layout.root / "data" / "claims.yml", target / "data" / "claims.yml")
    for path in notebooks:
        problem = problem_of(nbformat.read(path, as_version=4))
        if problem:
            raise InputError(f"Notebook {path.stem} is not shown: {problem}.")
        shutil.copy2(path, target / "notebooks" / path.name)
    if others:
        from memlib.verdicts import read_verdicts

        found = [verdict for path in others for verdict in read_verdicts(path)]
        (target / OTHER_VERDICTS).write_text(json.dumps(found), encoding="utf-8")
    return target


def build(layout: Layout, committed: bool = False, say: Callable[[str], None] = print) -> Path:
    """Render the site of a substrate and return its folder.

    With `committed` the notebooks are those in the repository, with their committed outputs, and nothing else enters;
    without, they are the executed copies, and verdicts from other substrates run here stand in the ledger as well.
    Raises InputError when Jupyter Book warns of anything.
    """
    if committed:
        notebooks, others = layout.notebooks(), []
    else:
        notebooks = sorted(layout.executed.glob("*.ipynb"))
        missing = {p.name for p in layout.notebooks()} - {p.name for p in notebooks}
        if missing:
            raise InputError(f"Not executed on {layout.substrate} yet: {', '.join(sorted(missing))}; run 'make book'.")
        elsewhere = layout.everything.glob("*/notebooks/*.ipynb")
        others = layout.notebooks() + sorted(p for p in elsewhere if p.parent != layout.executed)
    source = stage(layout, notebooks, others)
    output = layout.build / "book"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-c", _JUPYTER_BOOK, "build", str(source), "--path-output", str(output)]
    command += ["--all", "-W", "-n", "--keep-going", "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = (result.stdout + result.stderr).replace(f"{source}/", "").splitlines()
        told = [line for line in lines if re.search(r"WARNING|ERROR|Error: ", line)]
        say("\n".join(dict.fromkeys(told)) or "\n".join(lines[-20:]))
        raise InputError("The site was not made: what Jupyter Book complained of stands above.")
    shutil.rmtree(layout.html, ignore_errors=True)
    layout.html.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(output / "_build" / "html", layout.html)
    shutil.rmtree(output)
    return layout.html


def expected_pages(layout: Layout) -> list[str]:
    """The pages that a finished site must have, as paths in it: those of the table of contents and each notebook."""
    import yaml

    toc = yaml.safe_load((layout.root / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    files = [toc["root"]] + [chapter["file"] for chapter in chapters if "file" in chapter]
    files += [f"notebooks/{path.stem}" for path in layout.notebooks()]
    return ["index.html"] + [f"{name}.html" for name in files]
