"""Progress of a run of the notebooks, in lines that a log can hold as well as a terminal."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from memlib.companion.book.layout import Layout

EVERY = 60.0  # seconds between lines while nothing begins or ends


class Progress:
    """Tells which notebooks begin and end, and about how long the others will take; a context manager around the run.

    `took` has seconds by notebook of an earlier run. Their sum sets the scale, and the run itself says how much faster or slower this one is.
    """

    def __init__(self, names: Sequence[str], took: Mapping[str, float], jobs: int, say: Callable[[str], None], layout: Layout):
        usual = sum(took.values()) / len(took) if took else 0.0
        self._names, self._jobs, self._say, self._layout = list(names), jobs, say, layout
        self._expected = {name: took.get(name, usual) for name in names}
        self._began: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._over: set[str] = set()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def unchanged(self, name: str) -> None:
        self._over.add(name)
        self._tell(name, "unchanged")

    def began(self, name: str) -> None:
        with self._lock:
            self._began[name] = time.monotonic()
        usual = self._expected[name]
        self._tell(name, "begins" + (f" (about {duration(usual)} last time)" if usual else ""))

    def ended(self, name: str) -> None:
        with self._lock:
            self._took[name] = time.monotonic() - self._began.pop(name)
            self._over.add(name)
        left = self.left()
        rest = "" if left is None else f"; {duration(left)} left"
        self._tell(name, f"ran on {self._layout.substrate} in {duration(self._took[name])}{rest}")

    def failed(self, name: str) -> None:
        with self._lock:
            self._began.pop(name, None)
            self._over.add(name)
        self._tell(name, "failed")

    def left(self) -> float | None:
        """Seconds that the rest will take, from the times of last time and this run's speed; None where nothing is known."""
        with self._lock:
            known = sum(self._expected[name] for name in self._took)
            speed = sum(self._took.values()) / known if known else 1.0
            now = time.monotonic()
            running = sum(max(0.0, speed * self._expected[name] - (now - began)) for name, began in self._began.items())
            waiting = sum(speed * seconds for name, seconds in self._expected.items() if name not in self._over and name not in self._began)
        if not any(self._expected.values()):
            return None
        return (running + waiting) / max(1, self._jobs)

    def _tell(self, name: str, what: str) -> None:
        self._say(f"[{self._names.index(name) + 1}/{len(self._names)}] {name}: {what}")

    def _follow(self) -> None:
        while not self._stop.wait(EVERY):
            with self._lock:
                running = list(self._began)
            left = self.left()
            if running:
                self._say(
                    f"{', '.join(map(self._where, running))}; {len(self._over)} of {len(self._names)} done"
                    + ("" if left is None else f", {duration(left)} left")
                )

    def _where(self, name: str) -> str:
        """A notebook and the cell that it is at, as its partial copy says."""
        try:
            cells = json.loads((self._layout.build / f"running-{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        except (OSError, ValueError):  # not written yet, or being written now
            return name
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        return f"{name} at cell {1 + sum(cell['execution_count'] is not None for cell in code)} of {len(code)}"


def told(line: str) -> None:
    """Print a line at once, into a pipe or a log as well."""
    print(line, flush=True)


def duration(seconds: float) -> str:
    """A time in words: seconds below two minutes, then minutes, then hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
