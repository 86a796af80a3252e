"""The plan of a run: python -m memlib.companion.plan --substrate sd14 --profile paper"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from memlib.base.errors import exit_status
from memlib.companion.book.layout import DEFAULT_SUBSTRATE, Layout


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(prog="python -m memlib.companion.plan", description="Says what a run of the notebooks will make and what it will cost.")
    main.add_argument("--substrate", default=DEFAULT_SUBSTRATE, help="a substrate's name or a checkpoint's folder")
    main.add_argument("--profile", help="a name in data/profiles, such as paper, or a YAML file")
    main.add_argument("-p", dest="parameters", action="append", default=[], metavar="name=value", help="a notebook parameter, as for make book")
    main.add_argument("--store", type=Path, help="the store's folder (default: MEMLIB_STORE, or _build/store)")
    main.add_argument("--only", nargs="+", metavar="NOTEBOOK", help="these notebooks alone, by the beginning of their names")
    main.add_argument("--no-rates", action="store_true", help="leave out the calibration, and with it hours and disk")
    main.add_argument("--json", type=Path, help="write the plan to this file too")
    return main


def run(options: argparse.Namespace) -> int:
    """Plan, print, and write the plan where asked."""
    from memlib.companion.plan.demand import Plan
    from memlib.companion.plan.notebooks import Planner, quiet_threads
    from memlib.companion.plan.rates import calibrate
    from memlib.experiment.parameters import given_parameters, parse_assignment

    quiet_threads()
    layout = Layout(substrate=options.substrate)
    given = given_parameters(layout, dict(map(parse_assignment, options.parameters)), options.profile)
    # A notebook that does not take a substrate is MiniSD's own.
    wanted = [path for path in given if "substrate" in given[path] and (not options.only or path.stem.startswith(tuple(options.only)))]
    began, demands, rates = time.monotonic(), [], None
    with Planner(options.store) as planner:
        for path in tqdm(wanted, unit="notebook", desc="planning"):
            demands.append(planner.demand(path, given[path]))
        loaded = list(planner.substrates.values())
    if loaded and not options.no_rates:
        rates = calibrate(loaded[0], next((own["batch_size"] for own in given.values() if own.get("batch_size")), None))
    plan = Plan(layout.substrate, demands, rates)
    print(plan.as_text())
    print(f"Planned in {time.monotonic() - began:.0f} seconds.")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(plan.as_json()))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return exit_status(lambda: run(options), "Stopped; nothing was made.")


if __name__ == "__main__":
    sys.exit(main())
