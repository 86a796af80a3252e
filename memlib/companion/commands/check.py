"""``memlib check``, ``published``, ``methods``, ``cost``: what to look at before hours are spent."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from memlib.companion.commands.options import Device, Dtype, Steps, Table, Threads

Model = Annotated[str, typer.Argument(help="A substrate's name or a checkpoint's folder.")]


def check(substrate: Model, device: Device = "auto", dtype: Dtype = "auto") -> int:
    """Is a model set up right? Two minutes of comparing with known facts; status 1 if one of them fails."""
    from memlib.companion import check_substrate
    from memlib.models.substrate import load

    began = time.monotonic()
    found = check_substrate.check(load(substrate, device, dtype))
    wrong = [fact.name for fact in found if fact.holds is False]
    verdict = f"Wrong: {', '.join(wrong)}; do not start a long run." if wrong else "Nothing is wrong."
    print(f"{verdict} ({time.monotonic() - began:.0f} seconds)")
    return int(bool(wrong))


def premises(
    substrate: Model,
    figure: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this figure of data/premises.yml; may be given several times.")] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts of each kind.")] = 60,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each.")] = 2,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Does a model show what claims presuppose? Its premises with intervals, each beside its bar."""
    from pathlib import Path

    from memlib.models.minisd2.data import world_of
    from memlib.models.substrate import load
    from memlib.probes.premise_figures import Case
    from memlib.probes.premises import figures, measure

    if threads:
        import torch

        torch.set_num_threads(threads)
    case = Case(load(substrate, device, dtype), prompts=prompts, seeds=seeds, world=world_of(Path(substrate)))
    for name in figure or figures():
        for finding in measure(case, [name]):
            print(finding.line(), flush=True)


def published(
    substrate: Model = "sd14",
    memorized: Annotated[str, typer.Option(help="A prompt set or file.")] = "webster500",
    others: Annotated[str, typer.Option(help="Likewise, not memorized.")] = "lexica",
    minutes: Annotated[float, typer.Option(help="As many prompts as fit into these.")] = 20.0,
    steps: Steps = 50,
    csv: Table = None,
) -> None:
    """Does this set-up give what others published? Detectors on published lists, ours beside theirs."""
    from memlib.companion import check_published as checking

    table = checking.within(substrate, memorized, others, minutes, steps)
    print(checking.as_text(table))
    if csv:
        table.to_csv(csv, index=False)


def methods() -> None:
    """List the mitigations, detectors and edits that are registered, with their parameters."""
    from dataclasses import fields

    from memlib.mitigations import REGISTRY as mitigations
    from memlib.probes.detectors import REGISTRY as detectors
    from memlib.prompts.interventions import INTERVENTIONS

    for title, registered in (("mitigations", mitigations), ("detectors", detectors)):
        print(f"{title}:")
        for name, entry in registered.items():
            given = ", ".join(
                f"{field.name}={getattr(entry, field.name)!r}" for field in fields(entry) if field.name not in {"name", "label", "text", "source"}
            )
            print(f"  {name:26} {given}")
    print("edits of the embedding:")
    for key, edit in INTERVENTIONS.items():
        print(f"  {key:26} {edit.label}")


def cost(substrate: Model, device: Device = "auto", dtype: Dtype = "auto") -> None:
    """What would a run cost here? Times this machine for a minute, and sets the work of the committed run against it."""
    from memlib.companion import cost as costing
    from memlib.models.substrate import load

    print(costing.describe(costing.calibrate(load(substrate, device, dtype))))
