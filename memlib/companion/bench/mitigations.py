"""What every mitigation costs, side by side: memlib bench mitigations --substrate minisd-v1 --pictures 8

All of them in one process, warm, one picture (or batch) after the other in turn, from prompt to picture; the ratio is to no mitigation in
the same turn, so that a machine that slows down for a while slows down both.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from memlib.base.errors import InputError
from memlib.base.writing import write_table
from memlib.experiment.provenance import provenance
from memlib.judging.estimates import quantile_interval
from memlib.mitigations import REGISTRY, Mitigation, get
from memlib.models.architectures import build
from memlib.models.substrate import load
from memlib.prompts.sets import choose_prompts
from memlib.results.timed import Run, Sampler, measure, write
from memlib.results.times import ratio_text

KINDS = ("memorized", "not memorized")
COLUMNS = ("prompts", "mitigation", "seconds", "ratio", "ratio_low", "ratio_high", "evaluations", "decodes", "peak_mib", "pictures", "note")


def table(runs: Sequence[Run], left_out: Mapping[str, str]) -> pd.DataFrame:
    """One row a kind of prompts and mitigation: medians over turns, the ratio's with its 95 % interval, the largest peak.

    The interval is a bootstrap over turns of the median ratio; there is none for a single turn.
    """
    frame = pd.DataFrame([asdict(run) for run in runs])
    plain = frame[frame["mitigation"] == "none"].set_index(["prompts", "turn"])["seconds"]
    frame["ratio"] = frame["seconds"] / plain.loc[pd.MultiIndex.from_frame(frame[["prompts", "turn"]])].to_numpy()
    rows = []
    for (kind, title), part in frame.groupby(["prompts", "mitigation"], sort=False):
        ratio = quantile_interval(part["ratio"].to_numpy(), 0.5)
        rows.append({
            "prompts": kind, "mitigation": title, "seconds": part["seconds"].median(), "ratio": ratio.value, "ratio_low": ratio.low,
            "ratio_high": ratio.high, "evaluations": part["evaluations"].median(), "decodes": part["decodes"].median(),
            "peak_mib": part["peak_mib"].max(), "pictures": len(part), "note": "",
        })  # fmt: skip
    rows.sort(key=lambda row: (list(dict.fromkeys(frame["prompts"])).index(row["prompts"]), row["mitigation"] != "none", row["ratio"]))
    rows += [{"prompts": "", "mitigation": title, "pictures": 0, "note": f"not measured: {why}"} for title, why in left_out.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def as_text(found: pd.DataFrame) -> str:
    """The table as it is printed."""
    lines = [f"{'mitigation':42} {'s/picture':>10} {'ratio to none [95 %]':>24} {'U-Net rows':>11} {'decodes':>8} {'peak MiB':>9}"]
    for kind, part in found.groupby("prompts", sort=False):
        if kind:
            lines.append(f"{kind} prompts")
        for row in part.itertuples():
            if row.note:
                lines.append(f"{row.mitigation:42} {row.note}")
                continue
            lines.append(
                f"{row.mitigation[:42]:42} {row.seconds:10.3f} {ratio_text(row, 3):>24} {row.evaluations:11.0f} {row.decodes:8.0f} {row.peak_mib:9.0f}"
            )
    return "\n".join(lines)


def chosen(names: Sequence[str] | None, every_step: bool) -> list[Mitigation]:
    """The mitigations to time, by default all; with `every_step` each one that may end early comes a second time without early ends."""
    found = []
    for mitigation in [get(name) for name in names or REGISTRY]:
        found.append(mitigation)
        if every_step and mitigation.full_run() != mitigation:
            found.append(mitigation.full_run())
    return found


@contextmanager
def _empty_store() -> Iterator[None]:
    """Meanwhile the store is an empty one: what earlier runs found for a prompt (neurons, say) would make its method look cheap."""
    before = os.environ.get("MEMLIB_STORE")
    with tempfile.TemporaryDirectory(prefix="memlib-bench-") as folder:
        os.environ["MEMLIB_STORE"] = folder
        try:
            yield
        finally:
            os.environ.pop("MEMLIB_STORE")
            if before is not None:
                os.environ["MEMLIB_STORE"] = before


def run(
    substrate: str,
    architecture: str | None,
    only: Sequence[str] | None,
    prompts: str,
    pictures: int,
    sampling: Mapping[str, Any],
    model: Mapping[str, Any],
    out: Path | None,
    runs_file: Path | None,
) -> None:
    """Carry out ``memlib bench mitigations``: measure, print, and write where asked.

    `sampling` are the fields of `Sampler`, `model` the device, the precision and whether a full-size model is built on a CPU as well.
    Raises InputError for kinds of prompts that there are not.
    """  # fmt: skip
    started = time.monotonic()
    if prompts not in (*KINDS, "both"):
        raise InputError(f"There are no prompts {prompts!r} to time: use {', '.join(KINDS)} or both.")
    mitigations = chosen(only, every_step=architecture is not None)
    if architecture:
        loaded = build(architecture, model["device"], model["dtype"], model["force"])
        texts = {"the texts' figure": choose_prompts("figures", loaded.data).prompts}
    else:
        loaded = load(substrate, model["device"], model["dtype"])
        texts = {kind: choose_prompts(kind, loaded.data, pictures).prompts for kind in (KINDS if prompts == "both" else (prompts,))}
    with _empty_store():
        runs, left_out = measure(Sampler(loaded, **sampling), mitigations, texts, pictures, progress=True)
    found = table(runs, left_out)
    print(as_text(found))
    facts = {
        "substrate": loaded.name, "pictures": f"{pictures} of each, {sampling['batch_size']} at once",
        "sampler": f"{sampling['scheduler']}, {sampling['steps']} steps, {str(loaded.dtype).removeprefix('torch.')}",
    }  # fmt: skip
    line = str(provenance(facts, started, loaded.device))
    print(f"\n{line}")
    if out is not None:
        write_table(out, found.assign(provenance=line))
    if runs_file is not None:
        write(runs, line, runs_file)
