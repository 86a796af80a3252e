"""Registries that other packages add to, by Python entry points.

A package names its objects in its ``pyproject.toml``, and is found wherever it is installed:

    [project.entry-points."memlib.mitigations"]
    my-method = "my_package.methods:MyMethod"

Groups are ``memlib.mitigations``, ``memlib.detectors`` (classes) and ``memlib.substrates`` (a `memlib.models.catalogue.Source`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

Entry = TypeVar("Entry")


class Plugged(MutableMapping[str, Entry]):
    """A registry by name that takes in the entry points of `group` when it is first read after `open`; `own` are the entries that memlib brings.

    `take` enters what an entry point gives, or raises. A plug-in that raises is left out, whole, with a warning that names it: what somebody
    else installed must not stop a run. `packages` says by name from which package an entry came, of those that were plugged in.
    """

    def __init__(self, group: str, take: Callable[[Any], None], own: Mapping[str, Entry] | None = None):
        self.group, self.packages = group, dict[str, str]()
        self._take, self._entries, self._waiting = take, dict(own or {}), False

    def open(self) -> None:
        """Let plug-ins in at the next look. Called when memlib's own entries are there, which plug-ins import."""
        self._waiting = True

    def __getitem__(self, name: str) -> Entry:
        return self._read()[name]

    def __setitem__(self, name: str, entry: Entry) -> None:
        self._read()[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def _read(self) -> dict[str, Entry]:
        if self._waiting:
            self._waiting = False  # first: what a plug-in imports looks here, too
            for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
                self._plug_in(point)
        return self._entries

    def _plug_in(self, point: EntryPoint) -> None:
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        before = dict(self._entries)
        try:
            self._take(point.load())
        except Exception as error:  # whatever goes wrong in code that is not ours
            self._entries = before
            reason = " ".join(str(error).split())
            warnings.warn(f"The plug-in {point.name!r} of {package} ({self.group}) is left out. {type(error).__name__}: {reason}", stacklevel=4)
        else:
            self.packages |= dict.fromkeys(self._entries.keys() - before.keys(), package)
