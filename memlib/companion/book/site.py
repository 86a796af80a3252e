"""The site: a source folder staged from prose and notebooks, rendered by Jupyter Book with warnings as errors."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell

from memlib.base.errors import InputError
from memlib.companion.book import api, explorer, facts, finish, pages, papers
from memlib.companion.book.kept import kept
from memlib.companion.book.layout import DEFAULT_SUBSTRATE, Layout
from memlib.companion.book.local_paths import without_local_paths
from memlib.companion.book.outputs import problem_of
from memlib.judging.verdicts import Verdict, read_verdicts
from memlib.models.catalogue import source_of

# First in every notebook of the site and shown on no page: a copy that was downloaded says by it what it needs.
FIRST_CELL = """import importlib.util

if importlib.util.find_spec("memlib") is None:  # not in a clone that was set up
    {get}"""
CLONE = """import sys

    !git clone --quiet --depth 1 {url} memlib-companion
    %pip install --quiet -e "./memlib-companion[book,metrics]"
    sys.path.insert(0, "memlib-companion")"""
NO_ADDRESS = (
    'raise ModuleNotFoundError("This notebook needs the package memlib with its data: '
    "run it in a clone of the repository, after pip install -e '.[book,metrics]' there.\")"
)

# Jupyter Book is no runnable module, and its script need not be on the PATH.
_JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"


def stage(layout: Layout, notebooks: list[Path], others: list[Path] | None = None, fresh: bool = False) -> Path:
    """Copy prose, claims and `notebooks` into one folder, fill the pages that are made of data, and return the folder.

    `others` are notebooks executed on other substrates: only their verdicts enter, and after them those that are kept
    (`memlib.companion.book.kept`). Every notebook with claims gets a table of them, on all substrates. With `fresh` the pictures of the front page
    are made anew from the store. Raises InputError for a notebook whose run failed.
    """
    target = layout.site_source
    shutil.rmtree(target, ignore_errors=True)
    (target / "notebooks").mkdir(parents=True)
    shutil.copytree(layout.root / "book", target / "book", ignore=shutil.ignore_patterns("_parts", "*.j2", ".ipynb_*"))
    if fresh and source_of(layout.substrate).data().free:
        explorer.write(target / "book" / "_static", layout.substrate)
    (target / "data").mkdir()
    for table in (layout.root / "data").glob("*.csv"):  # that prose shows as it stands
        shutil.copy2(table, target / "data" / table.name)
    if (layout.root / "memlib").is_dir():
        api.write_pages(layout.root, target)
    repository = papers.repository(layout.root / "CITATION.cff")
    found = [Verdict.from_json(fields) for fields in [verdict for path in others or () for verdict in read_verdicts(path)] + kept(layout.root)]
    book = pages.Evidence(layout.root, layout.substrate, notebooks, found, target / "book" / "_static", repository)
    pages.render(layout.root / "book", target / "book", book)
    templates, runs, titles = pages.templates(layout.root / "book", book), facts.read(layout.root), {}
    for path in notebooks:
        last = templates.get_template("_parts/beside.md.j2").render(book=book, stem=path.stem) if book.judged_in(path.stem) else ""
        titles[path.stem] = stage_notebook(path, target / "notebooks" / path.name, runs.get(path.stem, {}), repository, last)
    contents, config = (yaml.safe_load((layout.root / name).read_text(encoding="utf-8")) for name in ("_toc.yml", "_config.yml"))
    _write(target / "_toc.yml", pages.signed_contents(contents, titles, book.entries, layout.substrate))
    _write(target / "_config.yml", with_repository(config, repository))
    return target


def stage_notebook(path: Path, target: Path, run: dict[str, Any], repository: str = "", last: str = "") -> str:
    """Write a notebook as the site shows it, with the facts of its `run` put back and `last` as its last cell, and return its title.

    Raises InputError for one whose run failed.
    """
    content = without_local_paths(nbformat.read(path, as_version=4))
    facts.put_back(content, run)
    problem = problem_of(content)
    if problem:
        raise InputError(f"Notebook {path.stem} is not shown: {problem}.")
    added = [new_code_cell(FIRST_CELL.format(get=CLONE.format(url=repository) if repository else NO_ADDRESS), metadata={"tags": ["remove-cell"]})]
    if last:
        added.append(new_markdown_cell(last))
    if (content.nbformat, content.nbformat_minor) < (4, 5):
        for cell in added:
            del cell["id"]
    content.cells = [added[0], *content.cells, *added[1:]]
    nbformat.write(content, target)
    heading = next((re.search(r"^# (.+)$", cell.source, re.MULTILINE) for cell in content.cells if cell.cell_type == "markdown"), None)
    return heading.group(1) if heading else path.stem


def with_repository(config: dict[str, Any], repository: str) -> dict[str, Any]:
    """The configuration with links to the repository, and where it is on GitHub to Colab and Binder; as it is where no address is known."""
    if not repository:
        return config
    made = {**config, "repository": {"url": repository, "branch": "main", "path_to_book": ""}}
    made["html"] = {**config.get("html", {}), "use_repository_button": True, "use_issues_button": True}
    if urlsplit(repository).netloc == "github.com":
        made["launch_buttons"] = {"colab_url": "https://colab.research.google.com", "binderhub_url": "https://mybinder.org"}
    return made


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")


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
    source = stage(layout, notebooks, others, fresh=not committed and layout.substrate == DEFAULT_SUBSTRATE)
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
    finish.finish(output / "_build" / "html")
    shutil.rmtree(layout.html, ignore_errors=True)
    layout.html.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(output / "_build" / "html", layout.html)
    shutil.rmtree(output)
    return layout.html


def expected_pages(layout: Layout) -> list[str]:
    """The pages that a finished site must have, as paths in it: those of the table of contents and each notebook."""
    toc = yaml.safe_load((layout.root / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    chapters += [section for chapter in chapters for section in chapter.get("sections", [])]
    there = {f"notebooks/{path.stem}" for path in layout.notebooks()}
    files = [toc["root"]] + [chapter["file"] for chapter in chapters if chapter["file"] in there or not chapter["file"].startswith("notebooks/")]
    return ["index.html"] + [f"{name}.html" for name in files]
