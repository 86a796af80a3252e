"""The notebooks as tasks of doit: each is run by papermill into the substrate's own folder when something it depends on changed.

doit keeps what each was last run with (`memlib.companion.book.dependencies`), runs several beside each other, and begins no other after a failure;
what was finished stays, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from doit.cmd_base import TaskLoader2
from doit.doit_cmd import DoitMain
from doit.reporter import ZeroReporter
from doit.task import Task, dict_to_task
from doit.tools import config_changed

from memlib.base.errors import InputError
from memlib.base.writing import replacing
from memlib.companion.book import facts
from memlib.companion.book.dependencies import fingerprint
from memlib.companion.book.jobs import jobs_for, threads_for
from memlib.companion.book.layout import Layout
from memlib.companion.book.progress import Progress, told
from memlib.experiment.parameters import given_parameters


def execute(
    layout: Layout,
    parameters: Mapping[str, Any] | None = None,
    force: bool = False,
    say: Callable[[str], None] = told,
    jobs: int | None = None,
    profile: str | None = None,
) -> list[Path]:
    """Execute the notebooks, `jobs` at a time (None: what fits the machine), and return the executed copies; an unchanged one is kept.

    `profile` names parameters by notebook (`memlib.experiment.parameters.profile`). Each notebook is told as it begins and ends, with the time left.

    Raises InputError for an unknown parameter, for no notebooks at all, for less than one job, for a cell that fails and for a kernel that dies.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"{jobs} notebooks at a time were asked for: use at least 1.")
    notebooks = layout.notebooks()
    if not notebooks:
        raise InputError(f"There are no notebooks in {_shown(layout.sources, layout)}.")
    given = given_parameters(layout, dict(parameters or {}), profile)
    layout.executed.mkdir(parents=True, exist_ok=True)
    jobs = min(jobs or jobs_for(layout.substrate), len(notebooks))
    took = {name: run["duration"] for name, run in facts.read(layout.root).items() if run.get("duration")}
    progress = Progress([path.stem for path in notebooks], took, jobs, say, layout)
    failures: list[Exception] = []

    def run(path: Path) -> bool:
        try:
            _run(path, layout.executed / path.name, given[path], layout)
        except Exception as error:  # told below, by its own sentence
            failures.append(error)
            return False
        return True

    tasks = []
    for path in sorted(notebooks, key=lambda path: -took.get(path.stem, 0)):  # a long one begun last would run alone
        inputs = fingerprint(path, given[path], layout)
        task = {"name": path.stem, "actions": [(run, [path])], "targets": [str(layout.executed / path.name)], "uptodate": [config_changed(inputs)]}
        # doit would hold back whatever anybody prints while a task runs, lines of progress included.
        tasks.append(task | {"io": {"capture": False}})
    with _kernels(jobs), progress:
        DoitMain(_Loader(tasks, progress, jobs, force, layout.build / "executed.db")).run(["run"])
    if failures:
        raise failures[0]
    _drop_others(layout, [layout.executed / path.name for path in notebooks])
    return [layout.executed / path.name for path in notebooks]


class _Loader(TaskLoader2):
    """Hands the tasks and the way they are run to doit, which would look for them in a file."""

    def __init__(self, tasks: Sequence[Mapping[str, Any]], progress: Progress, jobs: int, force: bool, database: Path):
        super().__init__()
        self.tasks, self.progress, self.jobs, self.force, self.database = tasks, progress, jobs, force, database

    def load_doit_config(self) -> dict[str, Any]:
        threads = {"num_process": self.jobs, "par_type": "thread"} if self.jobs > 1 else {}  # papermill waits for its kernel, a process of its own
        return {"dep_file": str(self.database), "backend": "sqlite3", "reporter": _reporter(self.progress), "verbosity": 0, "always": self.force, **threads}

    def load_tasks(self, cmd: Any, pos_args: Any) -> list[Task]:
        return [dict_to_task(dict(task)) for task in self.tasks]


def _reporter(progress: Progress) -> type:
    class Reporter(ZeroReporter):
        """What doit tells of its tasks, told on."""

        def execute_task(self, task: Task) -> None:
            progress.began(task.name)

        def add_success(self, task: Task) -> None:
            progress.ended(task.name)

        def add_failure(self, task: Task, fail: Any) -> None:
            progress.failed(task.name)

        def skip_uptodate(self, task: Task) -> None:
            progress.unchanged(task.name)

    return Reporter


@contextmanager
def _kernels(jobs: int) -> Iterator[None]:
    """What kernels started within find in their environment: a share of the cores, and a backend that draws on the page whatever the shell says."""
    wanted = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads_for(jobs))), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _run(source: Path, target: Path, parameters: dict[str, Any], layout: Layout) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    running, failed = layout.build / f"running-{source.name}", layout.build / f"failed-{source.name}"
    try:
        papermill.execute_notebook(
            str(source),
            str(running),
            parameters=parameters,
            kernel_name="python3",
            cwd=str(layout.sources),
            start_timeout=600,  # a busy machine may need more than papermill's minute to import a kernel
            progress_bar=False,
            log_output=False,
            extra_arguments=["--log-level=ERROR"],  # the kernel warns of its loopback ports at every start
        )
    except PapermillExecutionError as error:
        os.replace(running, failed)
        raise InputError(
            f"Notebook {source.stem} stopped in cell {error.exec_count} with {error.ename}: {error.evalue} "
            f"(the notebook as far as it came: {_shown(failed, layout)})"
        ) from None
    except DeadKernelError:
        partial_copy = f" (the notebook as far as it came: {_shown(failed, layout)})" if running.is_file() else ""
        if running.is_file():
            os.replace(running, failed)
        raise InputError(
            f"The kernel of notebook {source.stem} was killed, most likely for want of memory: run fewer beside each other (--jobs 1), or give the "
            f"notebook fewer prompts or a smaller batch{partial_copy}."
        ) from None
    except BaseException:
        running.unlink(missing_ok=True)
        raise
    notebook = nbformat.read(running, as_version=4)
    record = notebook.metadata.get("papermill", {})
    record.pop("environment_variables", None)
    record["input_path"], record["output_path"] = _shown(source, layout), _shown(target, layout)
    with replacing(target) as temporary:
        nbformat.write(notebook, temporary)
    running.unlink()
    failed.unlink(missing_ok=True)


def _drop_others(layout: Layout, kept: Sequence[Path]) -> None:
    """Remove executed copies of notebooks that no longer exist: the site would show them."""
    for path in layout.executed.glob("*.ipynb"):
        if path not in kept:
            path.unlink()


def _shown(path: Path, layout: Layout) -> str:
    return path.relative_to(layout.root).as_posix() if path.is_relative_to(layout.root) else str(path)
