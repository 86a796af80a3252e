"""Papermill over the notebooks: each into the substrate's own folder, and only those whose inputs changed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nbformat

from memlib.base.errors import InputError
from memlib.companion.book.jobs import jobs_for, run_beside
from memlib.companion.book.layout import Layout
from memlib.experiment.parameters import given_parameters


def execute(
    layout: Layout,
    parameters: Mapping[str, Any] | None = None,
    force: bool = False,
    say: Callable[[str], None] = print,
    jobs: int | None = None,
    profile: str | None = None,
    plan: bool = False,
) -> list[Path]:
    """Execute the notebooks, `jobs` at a time (None: what fits the machine), and return the executed copies; an unchanged one is kept.

    `profile` names parameters by notebook (`memlib.experiment.parameters.profile`). With `plan` the run is planned first (`memlib.companion.plan`), and
    progress with the time left is said every minute.

    Raises InputError for an unknown parameter, for no notebooks at all, for less than one job, and for a cell that fails.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"{jobs} notebooks at a time were asked for: use at least 1.")
    notebooks = layout.notebooks()
    if not notebooks:
        raise InputError(f"There are no notebooks in {_shown(layout.sources, layout)}.")
    given = given_parameters(layout, dict(parameters or {}), profile)
    inputs = _hash_inputs(layout)
    layout.executed.mkdir(parents=True, exist_ok=True)
    targets, pending = [], []
    for number, path in enumerate(notebooks, 1):
        target, stamp = layout.executed / path.name, layout.executed / f"{path.stem}.stamp"
        targets.append(target)
        wanted = fingerprint(path, given[path], inputs, layout)
        head = f"[{number}/{len(notebooks)}] {path.stem}"
        if not force and target.exists() and stamp.exists() and stamp.read_text() == wanted:
            say(f"{head}: unchanged")
        else:
            stamp.unlink(missing_ok=True)
            pending.append((path, target, stamp, wanted, head))

    def ended(position: int) -> None:
        _, target, stamp, wanted, head = pending[position]
        stamp.write_text(wanted)
        say(f"{head}: ran on {layout.substrate} in {_minutes(target):.1f} minutes")

    if pending:
        jobs = min(jobs or jobs_for(layout.substrate), len(pending))
        if jobs > 1:
            pending.sort(key=lambda one: -_minutes(one[0]))  # by the run that each was committed with: a long one begun last would run alone
        say(f"{len(pending)} notebooks to run on {layout.substrate}, {jobs} at a time")
        with _planned(layout, dict(parameters or {}), profile, [path for path, *_ in pending], say) if plan else nullcontext():
            run_beside([(_run, (path, target, given[path], layout)) for path, target, *_ in pending], jobs, ended)
    _drop_others(layout, targets)
    return targets


def _planned(layout: Layout, parameters: Mapping[str, Any], profile: str | None, pending: list[Path], say: Callable[[str], None]) -> Any:
    """Plan the notebooks that are to run, in a process that ends before they begin (it holds the model), and return a watch over them."""
    from memlib.base.paths import store_folder
    from memlib.companion.plan.demand import Plan
    from memlib.companion.plan.watch import Watch

    target = layout.build / "plan.json"
    command = [sys.executable, "-m", "memlib.companion.plan", "--substrate", layout.parameter, "--json", str(target)]
    command += ["--only", *(path.stem for path in pending)]
    command += ["--profile", profile] if profile else []
    command += [part for name, value in parameters.items() for part in ("-p", f"{name}={json.dumps(value)}")]
    target.unlink(missing_ok=True)
    done = subprocess.run(command, check=False)
    if done.returncode or not target.is_file():
        raise InputError("The run could not be planned, for the reason above: mend that, or leave the plan out with --no-plan.")
    return Watch(Plan.from_json(json.loads(target.read_text())), store_folder(), say=say)


def fingerprint(notebook: Path, parameters: Mapping[str, Any], inputs: str, layout: Layout | None = None) -> str:
    """Hash of all that an executed notebook depends on: its cells, its parameters, `inputs` (code and data), and where it shows them
    tables kept of other substrates' runs (`memlib.results.measured`; its own it writes itself) and kept rows (`memlib.results.kept_scenarios`)."""
    cells = nbformat.read(notebook, as_version=4).cells
    content = [[cell.cell_type, cell.source, cell.metadata.get("tags", [])] for cell in cells]
    kept: list[Path] = []
    if layout is not None:
        folder, source = layout.root / "data" / "measured", "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        if "memlib.results.measured" in source:
            own = (f"-{layout.folder_name}.json", f"-{Path(layout.parameter).name}.json")
            kept += [path for path in folder.glob("*.json") if not path.name.endswith(own)]
        if "kept_scenarios" in source and not parameters.get("keep_rows"):
            kept += folder.glob(f"*-{Path(layout.parameter).name}.jsonl")
    shown = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}
    text = json.dumps([content, dict(parameters), inputs, *([shown] if shown else [])], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_inputs(layout: Layout) -> str:
    """Hash of the package without the book's part, of the committed data without measured results, the requirements and the weights at hand."""
    digest = hashlib.sha256()
    code = [p for p in (layout.root / "memlib").rglob("*.py") if "book" not in p.relative_to(layout.root).parts]
    data = [p for p in (layout.root / "data").rglob("*") if p.is_file() and p.parent != layout.root / "data" / "measured"]
    for path in sorted(code + data) + [layout.root / "requirements.txt"]:
        if path.exists():
            digest.update(str(path.relative_to(layout.root)).encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    # Downloaded checkpoints are gigabytes: sizes and times stand for their content.
    digest.update(os.environ.get("MEMLIB_PICTURES", "").encode())
    for folder in (Path(layout.parameter), Path(os.environ.get("MEMLIB_MODELS", "")) / layout.substrate):
        if folder.is_absolute() and folder.is_dir():
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                digest.update(f"{path.relative_to(folder)} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _run(source: Path, target: Path, parameters: dict[str, Any], layout: Layout) -> None:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    running = layout.build / f"running-{source.name}"
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
        failed = layout.build / f"failed-{source.name}"
        os.replace(running, failed)
        raise InputError(
            f"Notebook {source.stem} stopped in cell {error.exec_count} with {error.ename}: {error.evalue} "
            f"(the notebook as far as it came: {_shown(failed, layout)})"
        ) from None
    except BaseException:
        running.unlink(missing_ok=True)
        raise
    notebook = nbformat.read(running, as_version=4)
    record = notebook.metadata.get("papermill", {})
    record.pop("environment_variables", None)
    record["input_path"], record["output_path"] = _shown(source, layout), _shown(target, layout)
    nbformat.write(notebook, running)
    os.replace(running, target)
    (layout.build / f"failed-{source.name}").unlink(missing_ok=True)


def _minutes(executed: Path) -> float:
    return (nbformat.read(executed, as_version=4).metadata.get("papermill", {}).get("duration") or 0) / 60


def _drop_others(layout: Layout, kept: list[Path]) -> None:
    """Remove executed copies of notebooks that no longer exist: the site would show them."""
    names = {path.stem for path in kept}
    for path in layout.executed.glob("*.*"):
        if path.suffix in {".ipynb", ".stamp"} and path.stem not in names:
            path.unlink()


def _shown(path: Path, layout: Layout) -> str:
    return path.relative_to(layout.root).as_posix() if path.is_relative_to(layout.root) else str(path)
