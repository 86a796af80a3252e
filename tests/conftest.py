"""Shared fixtures, and nbval set to ignore what notebooks print to stderr."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from memlib.companion.book.jobs import threads_for
from memlib.experiment import picture_policy as care

# Fixtures that make a checkpoint to sample with, or a site: what asks for them takes a second or more.
HEAVY = {"sd1_tiny", "sd2_tiny", "committed", "example"}


class IgnoreStderr:
    """Progress bars and library warnings go to stderr and differ from run to run."""

    def pytest_collectstart(self, collector: pytest.Collector) -> None:
        if hasattr(collector, "skip_compare"):
            collector.skip_compare += ("stderr",)


def pytest_configure(config: pytest.Config) -> None:
    # Processes beside each other share the cores, as notebooks do in `make book`. Kernels read this; torch has been imported by now and is told itself:
    # two processes of two threads on two cores wait for each other's threads and take many times as long.
    beside = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0))
    if beside:
        threads = os.environ.setdefault("OMP_NUM_THREADS", str(threads_for(beside)))
        torch.set_num_threads(int(threads))
    # As a hook of this file it would not reach the notebooks, which lie in another folder.
    config.pluginmanager.register(IgnoreStderr(), "ignore-stderr")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        asked = {*getattr(item, "fixturenames", ()), *map(str, getattr(getattr(item, "callspec", None), "params", {}).values())}
        if asked & HEAVY:
            item.add_marker("slow")


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


@pytest.fixture
def tiny_group(sd1_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], Any]:
    """Makes a group of two prompts (``prompts.csv``) on the tiny checkpoint, with so many seeds and steps, a store of its own and no metrics."""
    from memlib.experiment.run import Experiment

    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    monkeypatch.setenv("MEMLIB_METRICS", str(tmp_path / "metrics"))
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt\na cat\na small dog\n", encoding="utf-8")

    def make(n_seeds: int, steps: int) -> Any:
        run = Experiment(str(sd1_tiny), n_seeds=n_seeds, steps=steps, dtype="float32", device="cpu", store=tmp_path / "store")
        return run.group(str(prompts))

    return make
