"""How many notebooks run beside each other, and with how many threads each."""

from __future__ import annotations

import os
import shutil

import psutil

from memlib.models.catalogue import source_of

MOST = 4
MEMORY = 4 * 2**30  # bytes that a notebook on MiniSD takes at most


def jobs_for(substrate: str) -> int:
    """How many notebooks to run at once: one on a GPU or on a full-size checkpoint, which fill the machine alone.

    MiniSD's small matrices gain little from a second thread (two processes of one thread do 1.7 times the work of one of two).
    """
    if shutil.which("nvidia-smi") or not source_of(substrate).data().small:
        return 1
    return max(1, min(cores(), MOST, psutil.virtual_memory().available // MEMORY))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_for(processes: int) -> int:
    """Threads of each of so many processes beside each other: its share of the cores, at least one."""
    return max(1, cores() // processes)
