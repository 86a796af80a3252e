"""Shared fixtures, and nbval set to ignore what notebooks print to stderr."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memlib import care
from memlib.book.jobs import threads_for


class IgnoreStderr:
    """Progress bars and library warnings go to stderr and differ from run to run."""

    def pytest_collectstart(self, collector: pytest.Collector) -> None:
        if hasattr(collector, "skip_compare"):
            collector.skip_compare += ("stderr",)


def pytest_configure(config: pytest.Config) -> None:
    # Processes beside each other share the cores, as notebooks do in `make book`; torch reads this when it is imported.
    beside = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0))
    if beside:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads_for(beside)))
    # As a hook of this file it would not reach the notebooks, which lie in another folder.
    config.pluginmanager.register(IgnoreStderr(), "ignore-stderr")


@pytest.fixture(autouse=True)
def pictures_in_full() -> Iterator[None]:
    """How pictures are shown is a choice of the process; each test begins without one."""
    care.reset()
    yield
    care.reset()


@pytest.fixture(scope="session")
def sd1_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random checkpoint configured as Stable Diffusion 1.4."""
    from checkpoints import build_sd1

    return build_sd1(tmp_path_factory.mktemp("checkpoints") / "sd1-tiny")


@pytest.fixture(scope="session")
def sd2_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random checkpoint configured as Stable Diffusion 2.1."""
    from checkpoints import build_sd2

    return build_sd2(tmp_path_factory.mktemp("checkpoints") / "sd2-tiny")
