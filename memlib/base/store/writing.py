"""Writing finished pictures in threads while the next batch is sampled."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

THREADS = 4  # Compressing a PNG takes longer than writing it, and lets other threads run meanwhile.


class Writer:
    """Calls carried out in a few threads; the first one to fail is raised at the next `settle` or at the end.

    Leaving the context waits for all of them, after an exception too: what was sampled is kept.
    """

    def __init__(self, threads: int = THREADS):
        self._under_way: list[Future] = []
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="memlib-writer")

    def __enter__(self) -> Writer:
        return self

    def submit(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Begin a call as soon as a thread is free."""
        self._under_way.append(self._pool.submit(call, *arguments))

    def settle(self, left: int = 0) -> None:
        """Wait until at most the last `left` calls are under way; raises what an earlier one raised."""
        while self._under_way and (self._under_way[0].done() or len(self._under_way) > left):
            self._under_way.pop(0).result()

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self.settle()
