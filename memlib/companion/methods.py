"""All that is registered by name, memlib's own and what other packages plug in, as one table."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from memlib.base.plugins import Plugged
from memlib.base.registry import Registered
from memlib.metrics import METRICS
from memlib.mitigations import REGISTRY as MITIGATIONS
from memlib.models.catalogue import SUBSTRATES
from memlib.probes.detectors import REGISTRY as DETECTORS
from memlib.prompts.interventions import INTERVENTIONS

COLUMNS = ("name", "room", "from", "source", "parameters")


def table() -> pd.DataFrame:
    """One row for each mitigation, detector, edit of the embedding, metric and substrate: COLUMNS, all texts.

    `room` is where it belongs in memlib, `from` the package that brings it, `source` the text it follows, and `parameters` have their defaults.
    """
    return pd.DataFrame(_rows(), columns=list(COLUMNS))


def _rows() -> Iterator[tuple[str, str, str, str, str]]:
    rooms: tuple[tuple[str, Plugged], ...] = (("mitigations", MITIGATIONS), ("probes.detectors", DETECTORS))
    for room, registry in rooms:
        for name, entry in registry.items():
            yield name, room, _package(registry, name), entry.source, _parameters(entry)
    for key, edit in INTERVENTIONS.items():
        yield key, "prompts.interventions", "memlib", edit.source, ""
    for name, metric in METRICS.items():
        yield name, "metrics", "memlib", metric.source, f"role={metric.role!r}"
    for name, source in SUBSTRATES.items():
        yield name, "models", _package(SUBSTRATES, name), source.summary, ""


def _package(registry: Plugged, name: str) -> str:
    return registry.packages.get(name, "memlib")


def _parameters(entry: Registered) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in entry.params.items())


def as_text(found: pd.DataFrame) -> str:
    """The table in columns as wide as they need, the last one open."""
    widths = [max(map(len, (column, *found[column]))) for column in found.columns]
    lines: list[list[str]] = [list(found.columns), *found.to_numpy().tolist()]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
