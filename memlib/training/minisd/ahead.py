"""The examples of a corpus in order, a chunk at a time; beside a GPU, other processes make those of the chunks to come.

One core draws and captions some twelve thousand examples a second, a GPU trains on as many: it must not wait for them.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import torch

_corpus: Any = None  # in a worker process


def _remember(corpus: Any) -> None:
    global _corpus
    _corpus = corpus


def _make(start: int, count: int) -> list:
    return [_corpus.example(position) for position in range(start, start + count)]


class Examples:
    """Examples (scene, caption, index) of positions, in chunks of `size`; `workers` other processes (default: on a GPU all cores but one)."""

    def __init__(self, corpus: Any, device: torch.device, size: int, workers: int | None = None):
        self._corpus, self._size = corpus, size
        self._workers = (max(0, (os.cpu_count() or 1) - 1) if device.type == "cuda" else 0) if workers is None else workers
        self._pool: ProcessPoolExecutor | None = None
        self._coming: dict[int, Future] = {}
        self._kept: dict[int, list] = {}

    def chunk(self, number: int) -> list:
        """The examples of a chunk, in order."""
        if number not in self._kept:
            if len(self._kept) > 1:  # a batch lies in two chunks at most
                del self._kept[min(self._kept)]
            self._kept[number] = self._made(number)
        return self._kept[number]

    def of(self, start: int, count: int) -> list:
        """The examples of positions start..start + count."""
        return [self.chunk(position // self._size)[position % self._size] for position in range(start, start + count)]

    def _made(self, number: int) -> list:
        if not self._workers:
            return [self._corpus.example(position) for position in range(number * self._size, (number + 1) * self._size)]
        if self._pool is None:
            # Spawned: a process that was forked from one with a GPU must not touch it, and might.
            self._pool = ProcessPoolExecutor(self._workers, multiprocessing.get_context("spawn"), _remember, (self._corpus,))
        for ahead in range(number, number + 2 * self._workers):
            if ahead not in self._coming and ahead not in self._kept:
                self._coming[ahead] = self._pool.submit(_make, ahead * self._size, self._size)
        return self._coming.pop(number).result()

    def close(self) -> None:
        """End the other processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool, self._coming = None, {}
