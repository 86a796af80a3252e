"""How far a long command is, in lines that a log can hold: what was done, how long it took, and about how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from memlib.companion.book.progress import duration
from memlib.sampling.loop import Cost

Result = TypeVar("Result")


class Pace:
    """Tells each step as it ends. Work is planned in U-Net rows; the time of a row is that of the rows computed so far, and what came from the store is none.

    `cost` counts what is computed (`Experiment.cost`), `say` takes the lines.
    """

    def __init__(self, cost: Cost, say: Callable[[str], None]):
        self._cost, self._say = cost, say
        self._ahead = self._seconds = self._rows = 0.0

    def plan(self, rows: float) -> None:
        """So many U-Net rows more are ahead (or fewer, for what was planned too much)."""
        self._ahead += rows

    def left(self) -> float | None:
        """Seconds that the rest will take, None before anything was computed."""
        return max(0.0, self._ahead) * self._seconds / self._rows if self._rows else None

    def step(self, label: str, rows: float, work: Callable[[], Result]) -> Result:
        """Do `work`, for which `rows` were planned, tell it, and return what it gives."""
        before, began = self._cost.evaluations, time.monotonic()
        result = work()
        took, made = time.monotonic() - began, self._cost.evaluations - before
        if made:
            self._seconds, self._rows = self._seconds + took, self._rows + made
        self._ahead -= rows
        left = self.left()
        rest = "" if left is None or self._ahead <= 0 else f"; about {duration(left)} left"
        self._say(f"{label}: {duration(took) if made or not rows else 'from the store'}{rest}")
        return result
