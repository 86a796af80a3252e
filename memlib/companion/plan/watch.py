"""Progress and time left of a run under way, read from its store: whoever makes the pictures, and however often it was stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from memlib.base.store.entries import KINDS
from memlib.companion.plan.demand import Plan, duration


class Watch:
    """Says every `every` seconds how many of a plan's pictures are there; a context manager around the run.

    The time left follows from the speed since the beginning, or from the plan's rates before there is any.
    """

    def __init__(self, plan: Plan, root: Path, every: float = 60.0, say: Callable[[str], None] = print, now: Callable[[], float] = time.monotonic):
        self.plan, self.root, self.every, self._say, self._now = plan, root, every, say, now
        self._missing = {demand.notebook: set(demand.to_make) for demand in plan.demands}
        self._each = {demand.notebook: demand.evaluations / max(1, len(demand.to_make)) for demand in plan.demands}
        self._began, self._stop = now(), threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Watch:
        if self.plan.to_make:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def line(self) -> str:
        """How far the run is, in one line."""
        for missing in self._missing.values():
            missing -= {key for key in missing if (self.root / "pictures" / key[:2] / f"{key}{KINDS['pictures'].suffix}").is_file()}
        total = self.plan.to_make
        made = total - sum(map(len, self._missing.values()))
        under_way = [name for name, missing in self._missing.items() if 0 < len(missing) < len(self._demand(name).to_make)]
        where = f", in {', '.join(under_way)}" if under_way else ""
        return f"{made:,} of {total:,} new pictures{where}; about {duration(self._left(made))} left"

    def _demand(self, name: str):
        return next(demand for demand in self.plan.demands if demand.notebook == name)

    def _left(self, made: int) -> float | None:
        whole = self.plan.evaluations
        open_rows = sum(len(missing) * self._each[name] for name, missing in self._missing.items())
        done = whole - open_rows
        if made and done > 0:
            return open_rows * (self._now() - self._began) / done / 3600
        return None if self.plan.rates is None else self.plan.rates.hours(open_rows, self.plan.to_make - made)

    def _follow(self) -> None:
        while not self._stop.wait(self.every):
            self._say(self.line())
