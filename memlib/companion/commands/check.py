"""``memlib check``, ``published``, ``methods``, ``cost``: what to look at before hours are spent."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from annotated_types import Ge

from memlib.base.declared import Count, Positive
from memlib.base.writing import write_table
from memlib.companion.commands.options import Device, Dtype, Steps, Table, Threads, TwoOrMore, option

Model = Annotated[str, typer.Argument(help="A substrate's name or a checkpoint's folder.")]


def check(substrate: Model, device: Device = "auto", dtype: Dtype = "auto") -> int:
    """Is a model set up right? Files, memory, disk, metrics, prompts; then two minutes of comparing with known facts. Status 1 if anything is wrong."""
    from memlib.companion import check_setup, check_substrate
    from memlib.models.substrate import load

    began = time.monotonic()
    found = check_setup.check(substrate, device, dtype)
    if all(fact.holds is not False for fact in found):
        found += check_substrate.check(load(substrate, device, dtype))
    wrong = [fact.name for fact in found if fact.holds is False]
    verdict = f"Wrong: {', '.join(wrong)}; do not start a long run." if wrong else "Nothing is wrong."
    print(f"{verdict} ({time.monotonic() - began:.0f} seconds)")
    return int(bool(wrong))


def coverage(repeats: Annotated[int, option(Annotated[int, Ge(10)], "Samples drawn of each kind.")] = 1000) -> None:
    """How often do the book's intervals hold what they should? Simulated, and written to data/coverage.csv for the page on method."""
    from memlib.base.paths import data_folder
    from memlib.judging import bounded

    found = bounded.coverage(repeats=repeats).pivot(index=["share", "prompts"], columns="method", values="coverage")[list(bounded.METHODS)]
    write_table(data_folder() / "coverage.csv", found.map("{:.1%}".format).reset_index())
    print(found.to_string(float_format="{:.3f}".format))


def premises(
    substrate: Model,
    figure: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this figure of data/premises.yml; may be given several times.")] = None,
    prompts: Annotated[int, option(TwoOrMore, "Prompts of each kind.")] = 60,
    seeds: Annotated[int, option(Count, "Seeds of each.")] = 2,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    kept: Annotated[bool, typer.Option("--keep", help="Write the figures to data/premises, from where the book takes them.")] = False,
) -> None:
    """Does a model show what claims presuppose? Its premises with intervals, each beside its bar."""
    from pathlib import Path

    from memlib.models.minisd2.data import world_of
    from memlib.models.substrate import load
    from memlib.probes.premise_figures import Case
    from memlib.probes.premises import figures, keep, measure

    if threads:
        import torch

        torch.set_num_threads(threads)
    case = Case(load(substrate, device, dtype), prompts=prompts, seeds=seeds, world=world_of(Path(substrate)))
    findings = []
    for name in figure or figures():
        for finding in measure(case, [name]):
            print(finding.line(), flush=True)
            findings.append(finding)
    if kept:
        print(f"Kept in {keep(substrate, findings)}: commit it.")


def published(
    substrate: Model = "sd14",
    memorized: Annotated[str, typer.Option(help="A prompt set or file.")] = "webster500",
    others: Annotated[str, typer.Option(help="Likewise, not memorized.")] = "lexica",
    minutes: Annotated[float, option(Positive, "As many prompts as fit into these.")] = 20.0,
    steps: Steps = 50,
    csv: Table = None,
) -> None:
    """Does this set-up give what others published? Detectors on published lists, ours beside theirs."""
    from memlib.companion import check_published as checking

    table = checking.within(substrate, memorized, others, minutes, steps)
    print(checking.as_text(table))
    if csv:
        write_table(csv, table)


def methods(room: Annotated[str | None, typer.Option(help="Of this room alone, such as mitigations.")] = None, csv: Table = None) -> None:
    """List what is registered, memlib's own and plug-ins: name, room, package, source and parameters."""
    from memlib.base.errors import InputError
    from memlib.companion import methods as listing

    found = listing.table()
    if room is not None:
        if room not in set(found["room"]):
            raise InputError(f"No room {room!r} has names: use one of {', '.join(dict.fromkeys(found['room']))}.")
        found = found[found["room"] == room]
    print(listing.as_text(found))
    if csv:
        write_table(csv, found)


def cost(substrate: Model, device: Device = "auto", dtype: Dtype = "auto") -> None:
    """What would a run cost here? Times this machine for a minute, and sets the work of the committed run against it."""
    from memlib.companion import cost as costing
    from memlib.models.substrate import load

    print(costing.describe(costing.calibrate(load(substrate, device, dtype))))
