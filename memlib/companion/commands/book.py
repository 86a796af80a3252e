"""``memlib book``: runs the notebooks and makes the book."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from memlib.base.declared import Count
from memlib.base.errors import InputError
from memlib.companion.book.layout import DEFAULT_SUBSTRATE, Layout
from memlib.companion.commands.options import Substrate, option

app = typer.Typer(help="Run the notebooks and make the book.", no_args_is_help=True)
Committed = Annotated[bool, typer.Option("--committed", help="Use the outputs in the repository.")]


@app.command()
def execute(
    substrate: Substrate = DEFAULT_SUBSTRATE,
    parameters: Annotated[list[str] | None, typer.Option("-p", metavar="name=value", help="A notebook parameter; may be given several times.")] = None,
    profile: Annotated[str | None, typer.Option(help="Parameters by notebook: a name in data/profiles, such as paper, or a YAML file.")] = None,
    pictures: Annotated[str | None, typer.Option(help="How pages show pictures (default: blurred on other models than MiniSD).")] = None,
    jobs: Annotated[int | None, option(Count, "Notebooks at a time (default: by cores and memory; 1 on a GPU).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run all, changed or not.")] = False,
) -> None:
    """Run the notebooks whose inputs changed."""
    from memlib.companion.book import execute as execution
    from memlib.experiment.parameters import parse_assignment
    from memlib.experiment.picture_policy import CHOICES

    if pictures is not None:
        if pictures not in CHOICES:
            raise InputError(f"Pictures cannot be shown {pictures!r}: use {', '.join(CHOICES)}.")
        os.environ["MEMLIB_PICTURES"] = pictures  # read where the notebooks run
    execution.execute(Layout(substrate=substrate), dict(map(parse_assignment, parameters or ())), force=force, jobs=jobs, profile=profile)


@app.command()
def build(substrate: Substrate = DEFAULT_SUBSTRATE, committed: Committed = False) -> None:
    """Render the site."""
    from memlib.companion.book import site as making

    layout = Layout(substrate=substrate)
    site = making.build(layout, committed=committed)
    print(f"The book is in {site.relative_to(layout.root)}: open {(site / 'index.html').relative_to(layout.root)}.")


@app.command()
def pdf(substrate: Substrate = DEFAULT_SUBSTRATE) -> None:
    """Print the finished site, a PDF for each page."""
    from memlib.companion.book.pdf import print_pages
    from memlib.companion.book.site import expected_pages

    layout = Layout(substrate=substrate)
    folder = layout.html.parent / "pdf"
    pages = [page for page in expected_pages(layout)[1:] if not page.startswith("book/api")]
    print(f"{len(print_pages(layout.html, pages, folder))} pages printed to {folder.relative_to(layout.root)}.")


@app.command()
def check(substrate: Substrate = DEFAULT_SUBSTRATE, site: Annotated[Path | None, typer.Option(help="Another folder than the substrate's.")] = None) -> int:
    """Look for missing pages, broken links and pictures without a description; status 1 if there are any."""
    from memlib.companion.book.check import check_site
    from memlib.companion.book.site import expected_pages

    layout = Layout(substrate=substrate)
    folder = site or layout.html
    if not folder.is_dir():
        raise InputError(f"There is no site in {folder}: run 'make book' or 'make site' first.")
    expected = expected_pages(layout)
    found = check_site(folder, expected)
    print("\n".join(found) or f"{len(expected)} pages, nothing wrong.")
    return int(bool(found))


@app.command()
def ledger(substrate: Substrate = DEFAULT_SUBSTRATE, committed: Committed = False) -> None:
    """Print the claims and their verdicts."""
    from memlib.companion.book.ledger import as_text, collect

    layout = Layout(substrate=substrate)
    notebooks = layout.notebooks() if committed else sorted(layout.executed.glob("*.ipynb"))
    print(as_text(collect(layout.root / "data" / "claims.yml", notebooks)))


@app.command()
def outputs(substrate: Substrate = DEFAULT_SUBSTRATE) -> None:
    """Put the executed notebooks in the place of the committed ones, and with them the pictures of the front page."""
    from memlib.companion.book import explorer
    from memlib.companion.book.outputs import copy_outputs

    layout = Layout(substrate=substrate)
    print(f"{len(copy_outputs(layout))} notebooks copied.")
    if substrate == DEFAULT_SUBSTRATE:
        print(f"{len(explorer.write(layout.root / 'book' / '_static', substrate))} files of pictures made.")


@app.command()
def keep(substrate: Substrate = DEFAULT_SUBSTRATE) -> None:
    """Keep the verdicts of another substrate's run, for every later book."""
    from memlib.companion.book import kept

    layout = Layout(substrate=substrate)
    path, anew = kept.keep(layout)
    print(f"{path.relative_to(layout.root)} holds the verdicts of {len(anew)} notebooks anew ({', '.join(anew)}): commit it.")
