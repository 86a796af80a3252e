"""The commands: python -m memlib.companion.book execute | ledger | build | check | outputs | keep."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from memlib.base.errors import InputError, exit_status
from memlib.companion.book.layout import DEFAULT_SUBSTRATE, Layout
from memlib.experiment.picture_policy import CHOICES


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(prog="python -m memlib.companion.book", description="Runs the notebooks and makes the book.")
    commands = main.add_subparsers(dest="command", required=True)
    texts = {
        "execute": "run the notebooks whose inputs changed",
        "ledger": "print the claims and their verdicts",
        "build": "render the site",
        "check": "look for broken links and pictures, and at every page in Chromium",
        "outputs": "put the executed notebooks in the place of the committed ones",
        "keep": "keep the verdicts of another substrate's run, for every later book",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--substrate", default=DEFAULT_SUBSTRATE, help="a substrate's name or a checkpoint's folder")
        if name == "execute":
            command.add_argument("-p", dest="parameters", action="append", default=[], metavar="name=value")
            command.add_argument("--force", action="store_true", help="run all, changed or not")
            command.add_argument("--profile", help="parameters by notebook: a name in data/profiles, such as paper, or a YAML file")
            command.add_argument("--plan", action=argparse.BooleanOptionalAction, help="plan the run first (default: on other models than MiniSD)")
            command.add_argument("--pictures", choices=CHOICES, help="how pages show pictures (default: blurred on other models than MiniSD)")
            command.add_argument("--jobs", type=int, help="notebooks at a time (default: by cores and memory; 1 on a GPU)")
        if name in {"build", "ledger"}:
            command.add_argument("--committed", action="store_true", help="use the outputs in the repository")
        if name == "check":
            command.add_argument("--site", type=Path, help="another folder than the substrate's")
            command.add_argument("--screenshots", type=Path, help="folder for a picture of each page")
    return main


def run(arguments: argparse.Namespace) -> int:
    """Carry out one command; the exit status is 0, or 1 where `check` finds something."""
    layout = Layout(substrate=arguments.substrate)
    if arguments.command == "execute":
        from memlib.companion.book.execute import execute
        from memlib.experiment.parameters import parse_assignment

        large = bool(arguments.profile) or not arguments.substrate.startswith("minisd-")
        plan = large if arguments.plan is None else arguments.plan
        parameters = dict(map(parse_assignment, arguments.parameters))
        if arguments.pictures:
            os.environ["MEMLIB_PICTURES"] = arguments.pictures  # read where the notebooks run
        execute(layout, parameters, force=arguments.force, jobs=arguments.jobs, profile=arguments.profile, plan=plan)
    elif arguments.command == "ledger":
        from memlib.companion.book.ledger import as_text, collect

        notebooks = layout.notebooks() if arguments.committed else sorted(layout.executed.glob("*.ipynb"))
        print(as_text(collect(layout.root / "data" / "claims.yml", notebooks)))
    elif arguments.command == "build":
        from memlib.companion.book.site import build

        site = build(layout, committed=arguments.committed)
        print(f"The book is in {site.relative_to(layout.root)}: open {(site / 'index.html').relative_to(layout.root)}.")
    elif arguments.command == "outputs":
        from memlib.companion.book.outputs import copy_outputs

        print(f"{len(copy_outputs(layout))} notebooks copied.")
    elif arguments.command == "keep":
        from memlib.companion.book.kept import keep

        path, anew = keep(layout)
        print(f"{path.relative_to(layout.root)} holds the verdicts of {len(anew)} notebooks anew ({', '.join(anew)}): commit it.")
    else:
        return check(layout, arguments.site or layout.html, arguments.screenshots)
    return 0


def check(layout: Layout, site: Path, screenshots: Path | None) -> int:
    """Print everything that is wrong with a site, on disk and in the browser in both colour schemes."""
    from memlib.companion.book.browser import complaints, look_at
    from memlib.companion.book.check import check_site
    from memlib.companion.book.site import expected_pages

    if not site.is_dir():
        raise InputError(f"There is no site in {site}: run 'make book' first.")
    expected = expected_pages(layout)
    found = check_site(site, expected)
    # The first of them, index.html, only sends the reader on to the landing page.
    present = [site / name for name in expected[1:] if (site / name).exists()]
    for scheme in ("light", "dark"):
        for look in look_at(present, scheme, screenshots=screenshots):
            found += complaints(look)
    print("\n".join(found) or f"{len(present)} pages, nothing wrong.")
    return int(bool(found))


def main() -> int:
    arguments = parser().parse_args()
    return exit_status(lambda: run(arguments), "Stopped; what was finished is kept and the next run goes on from there.")


if __name__ == "__main__":
    sys.exit(main())
