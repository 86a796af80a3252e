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
from nbformat.v4 import new_markdown_cell

from memlib.base.errors import InputError
from memlib.companion.book import api, facts
from memlib.companion.book.kept import kept
from memlib.companion.book.layout import Layout
from memlib.companion.book.local_paths import without_local_paths
from memlib.companion.book.outputs import problem_of
from memlib.judging.claims import load_claims
from memlib.judging.verdicts import read_verdicts

# Read by the ledger beside the notebooks of the site itself.
OTHER_VERDICTS = "other_verdicts.json"

# Added to each notebook that has claims: what all substrates gave, beside what is reported.
BESIDE = """## Measured and reported

```{{claims-beside}}
:notebook: {stem}
```"""

# Jupyter Book is no runnable module, and its script need not be on the PATH.
_JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"


def stage(layout: Layout, notebooks: list[Path], others: list[Path] | None = None) -> Path:
    """Copy prose, claims and `notebooks` into one folder and return it.

    `others` are notebooks executed on other substrates: only their verdicts enter, and after them those that are kept
    (`memlib.companion.book.kept`). Every notebook with claims gets a table of them, on all substrates.
    Raises InputError for a notebook whose run failed.
    """
    target = layout.site_source
    shutil.rmtree(target, ignore_errors=True)
    (target / "notebooks").mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy2(layout.root / name, target / name)
    shutil.copytree(layout.root / "book", target / "book", ignore=shutil.ignore_patterns("_generated", ".ipynb_*"))
    if (layout.root / "memlib").is_dir():
        api.write_pages(layout.root, target)
    (target / "data").mkdir()
    shutil.copy2(layout.root / "data" / "claims.yml", target / "data" / "claims.yml")
    judging = {claim.notebook for claim in load_claims(target / "data" / "claims.yml").values()}
    runs = facts.read(layout.root)
    for path in notebooks:
        content = without_local_paths(nbformat.read(path, as_version=4))
        facts.put_back(content, runs.get(path.stem, {}))
        problem = problem_of(content)
        if problem:
            raise InputError(f"Notebook {path.stem} is not shown: {problem}.")
        if path.stem in judging:
            cell = new_markdown_cell(BESIDE.format(stem=path.stem))
            if (content.nbformat, content.nbformat_minor) < (4, 5):
                del cell["id"]
            content.cells.append(cell)
        nbformat.write(content, target / "notebooks" / path.name)
    found = [verdict for path in others or () for verdict in read_verdicts(path)] + kept(layout.root)
    if found:
        (target / OTHER_VERDICTS).write_text(json.dumps(found), encoding="utf-8")
    return target


def build(layout: Layout, committed: bool = False, say: Callable[[str], None] = print) -> Path:
    """Render the site of a substrate and return its folder.

    With `committed` the notebooks are those in the repository, with their committed outputs, and beside them only what is kept there;
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
    chapters += [section for chapter in chapters for section in chapter.get("sections", [])]
    files = [toc["root"]] + [chapter["file"] for chapter in chapters if "file" in chapter]
    files += [f"notebooks/{path.stem}" for path in layout.notebooks()]
    return ["index.html"] + [f"{name}.html" for name in files]
