"""Calls carried out beside each other, each in a process of its own with its share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil

from memlib.base.errors import InputError

MOST = 4
MEMORY = 4 * 2**30  # bytes that a notebook on MiniSD takes at most


def jobs_for(substrate: str) -> int:
    """How many notebooks to run at once: one on a GPU or on a full-size checkpoint, which fill the machine alone.

    MiniSD's small matrices gain little from a second thread (two processes of one thread do 1.7 times the work of one of two).
    """
    if shutil.which("nvidia-smi") or not substrate.startswith("minisd-"):
        return 1
    return max(1, min(cores(), MOST, psutil.virtual_memory().available // MEMORY))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_for(processes: int) -> int:
    """Threads of each of so many processes beside each other: its share of the cores, at least one."""
    return max(1, cores() // processes)


def run_beside(calls: Sequence[tuple[Callable[..., None], tuple]], jobs: int, ended: Callable[[int], None]) -> None:
    """Carry out `calls` (a function that can be imported, and its arguments), at most `jobs` at a time, begun in their order.

    `ended` is called here with the position of each call that went well. After a failure no further call begins, those
    under way are finished, and the first failure is raised: InputError as it was, anything else as RuntimeError with its text.
    When this process is interrupted or dies, the others are interrupted.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["papermill"])
    threads = threads_for(jobs)
    waiting, failure = list(enumerate(calls)), None
    running: dict[Connection, tuple[int, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                position, (call, arguments) = waiting.pop(0)
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=_carry_out, args=(there, threads, call, arguments))
                process.start()
                there.close()
                running[here] = position, process
            for here in wait(list(running)):
                position, process = running.pop(here)
                error = _result(here)
                process.join()
                if error is None:
                    ended(position)
                else:
                    failure, waiting = failure or error, []
    except BaseException:
        for _, process in running.values():
            os.kill(process.pid, signal.SIGINT)
        for _, process in running.values():
            process.join()
        raise
    if failure is not None:
        raise failure


def _result(connection: Connection) -> Exception | None:
    try:
        kind, text = connection.recv()
    except EOFError:
        return RuntimeError("a process ended without a word: it was killed, perhaps for memory; run again with --jobs 1.")
    finally:
        connection.close()
    return {"done": None, "input": InputError(text)}.get(kind, RuntimeError(text))


def _carry_out(connection: Connection, threads: int, call: Callable[..., None], arguments: tuple) -> None:
    # In a session of its own it hears of Ctrl-C once, from its parent, and can end its kernel in peace.
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_follow_parent, daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    try:
        call(*arguments)
        answer = "done", ""
    except InputError as error:
        answer = "input", str(error)
    except KeyboardInterrupt:
        return
    except Exception as error:
        answer = "other", f"{type(error).__name__}: {error}"
    connection.send(answer)


def _follow_parent() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGINT)
