"""Tasks on worker processes: the same pictures as one process, also where a worker is killed in mid-run."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest

from memlib.base.errors import InputError
from memlib.companion import distributed
from memlib.companion.commands import main
from memlib.companion.distributed import Work, cluster, dask, parts, run_parts, sample_on, sample_part, score_part
from memlib.sampling.stored import PictureStore

try:
    import dask.distributed

    installed = True
except ImportError:
    installed = False

needs_dask = pytest.mark.skipif(not installed, reason="dask.distributed is not installed")


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("prompt\na cat\ntwo dogs & a bird\n<b>three</b> fish\n")
    return str(path)


@pytest.fixture
def group(tmp_path, prompts, sd1_tiny, monkeypatch):
    from memlib.experiment.run import Experiment

    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    run = Experiment(str(sd1_tiny), n_seeds=2, steps=2, device="cpu", dtype="float32", store=tmp_path / "one")
    return run.group(prompts)


@pytest.fixture
def work_for(sd1_tiny):
    return lambda root, edit="none": Work(str(sd1_tiny), str(root), 2, 7.5, "ddim", edit, "cpu", "float32")


def test_tasks_cover_every_prompt_and_seed_once(group):
    for size in (1, 2, 3, 4, 100):
        for whole in (False, True):
            tasks = parts(group, "none", size, whole)
            covered = [(prompt, seed) for task in tasks for prompt in task.prompts.prompts for seed in task.seeds]
            assert sorted(covered) == sorted((prompt, seed) for prompt in group.prompts.prompts for seed in (0, 1))
            assert all(len(task.prompts) * len(task.seeds) <= max(size, 2 if whole else 1) for task in tasks)
            assert not whole or all(task.seeds == (0, 1) for task in tasks)
    with pytest.raises(InputError):
        parts(group, "none", 0)


@pytest.mark.parametrize("edit", ["none", "h", "pad-swap"])
def test_a_task_puts_into_the_store_what_a_notebook_asks_for(group, work_for, tmp_path, edit):
    work = work_for(tmp_path / "many", edit)
    tasks = [pickle.loads(pickle.dumps(task)) for task in parts(group, work.how, 2)]
    assert sum(sample_part(work, task)[0] for task in tasks) == 6
    expected = group.pictures(work.how)
    # The same group under the other store finds every picture there.
    group.experiment.store = store = PictureStore(tmp_path / "many")
    group._pictures.clear()
    found = group.pictures(work.how)
    assert store.made == 0 and store.found == 6 and np.abs(found.astype(int) - expected).max() <= 1


def test_scores_that_cannot_be_measured_are_left_out(group, work_for, tmp_path):
    (task,) = parts(group, "none", 100, whole_prompts=True)
    assert score_part(work_for(tmp_path / "many"), task, ["similarity to training"]) == {}


def test_without_dask_a_sentence_says_what_to_install(capsys, tmp_path):
    if installed:
        pytest.skip("dask.distributed is installed")
    with pytest.raises(InputError, match="make env"):
        dask()
    assert main(["distributed", "sample", "--prompts", "figures", "--store", str(tmp_path)]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def client():
    """A cluster of two workers for all tests: starting one takes longer than what they ask of it."""
    with cluster("local", 2) as client:
        yield client


@pytest.mark.slow
@needs_dask
def test_two_processes_make_the_pictures_of_one(client, group, work_for, tmp_path):
    expected = group.pictures()
    work = work_for(tmp_path / "many")
    assert sample_on(client, work, group, 2, progress=False) == (6, 0)
    assert sample_on(client, work, group, 2, progress=False) == (0, 6)
    group.experiment.store = PictureStore(tmp_path / "many")
    group._pictures.clear()
    assert np.abs(group.pictures().astype(int) - expected).max() <= 1 and group.experiment.store.made == 0


@pytest.mark.slow
@needs_dask
def test_a_killed_worker_costs_its_batch_alone(client, group, work_for, tmp_path):
    work = work_for(tmp_path / "many")
    client.wait_for_workers(2)
    workers = client.run(os.getpid)
    before: dict = {}

    def kill_one():
        while not list((tmp_path / "many").glob("pictures/*/*.png")):
            time.sleep(0.05)
        os.kill(next(iter(workers.values())), signal.SIGKILL)
        before.update({path: path.stat().st_mtime_ns for path in (tmp_path / "many").glob("pictures/*/*.png")})

    killer = threading.Thread(target=kill_one)
    killer.start()
    made, there = sample_on(client, work, group, 1, progress=False)
    killer.join()
    assert made + there >= 6
    store = PictureStore(tmp_path / "many")
    assert len(list(store.entries("pictures"))) == 6 and store.broken() == []
    # Nothing that was there when the worker died was made a second time.
    assert before and {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
@needs_dask
def test_the_speed_up_is_measured_on_the_same_pictures(sd1_tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    options = ["--pictures", "4", "--batch-size", "2", "--steps", "2", "--device", "cpu", "--dtype", "float32"]
    assert main(["bench", "workers", "--substrate", str(sd1_tiny), "--workers", "1", "--workers", "2", *options, "--csv", str(tmp_path / "speed.csv")]) == 0
    table = pd.read_csv(tmp_path / "speed.csv")
    assert list(table["workers"]) == [1, 2] and (table["seconds"] > 0).all() and (table["largest difference"] <= 1).all()
    assert table["speed-up"][1] == pytest.approx(table["seconds"][0] / table["seconds"][1])
    assert main(["bench", "workers", "--workers", "0"]) == 1 and "--workers is 0: give a whole number from 1 on" in capsys.readouterr().err


@needs_dask
def test_a_scheduler_that_does_not_answer_ends_in_one_sentence(monkeypatch):
    monkeypatch.setattr("memlib.companion.distributed.ANSWER_SECONDS", 1)
    with pytest.raises(InputError, match="No dask scheduler"), cluster("tcp://127.0.0.1:9"):
        pass


@pytest.mark.slow
@needs_dask
def test_nothing_listens_but_on_this_machine(client):
    """Whoever reaches a worker's port can run code there: scheduler, workers, nannies and dashboards are bound to the loopback address."""
    client.wait_for_workers(2)
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    heard = [socket.laddr for process in processes for socket in process.net_connections("inet") if socket.status == psutil.CONN_LISTEN]
    assert len(heard) >= 4 and {address.ip for address in heard} <= {"127.0.0.1", "::1"}


@pytest.mark.slow
@needs_dask
def test_what_a_task_raises_arrives_as_it_was(client, group, work_for, tmp_path):
    def refuse(work, task):
        raise InputError("no such thing")

    with pytest.raises(InputError, match="no such thing"):
        run_parts(client, refuse, work_for(tmp_path / "many"), parts(group, "none", 2), progress=False)


@needs_dask
@pytest.mark.slow
def test_the_only_worker_dies_and_is_started_again(group, work_for, tmp_path):
    """However long that takes: the cluster does not let go of it meanwhile, as it did after this time."""
    import dask

    with dask.config.set({"distributed.deploy.lost-worker-timeout": "0.1 s"}), cluster("local", 1) as client:
        [pid] = client.run(os.getpid).values()
        os.kill(pid, signal.SIGKILL)
        assert sample_on(client, work_for(tmp_path / "many"), group, 3, progress=False) == (6, 0)


@needs_dask
def test_a_worker_that_dies_while_it_starts_ends_in_one_sentence(monkeypatch):
    class Failing:
        def __init__(self, **options):
            raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr(distributed.dask(), "SpecCluster", Failing)
    with pytest.raises(InputError, match="ended while it started .* fewer --workers"), cluster("local", 1):
        pass


@needs_dask
def test_a_scheduler_without_workers_ends_in_one_sentence(monkeypatch):
    library = distributed.dask()
    monkeypatch.setattr(distributed, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(distributed, "PATIENCE_SECONDS", 0.5)
    with library.LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as alone, library.Client(alone.scheduler_address) as client:
        with pytest.raises(InputError, match=r"has had no worker: start one with 'dask worker .*', .* in the store"):
            distributed.results(client, [client.submit(pow, 2, 2)], progress=False)


@pytest.mark.parametrize(("alive", "seconds", "sentence"), [(False, 20, "was not started again"), (True, 20, None), (True, 400, "fewer --workers")])
def test_workers_here_are_waited_for_while_their_processes_live(alive, seconds, sentence):
    nanny = SimpleNamespace(is_alive=lambda: alive)
    client = SimpleNamespace(cluster=SimpleNamespace(workers={0: nanny}))
    with nullcontext() if sentence is None else pytest.raises(InputError, match=sentence):
        distributed._refuse_alone(client, seconds)


def test_no_workers_are_refused():
    with pytest.raises(InputError, match="0 workers are not possible"), cluster("local", 0):
        pass
