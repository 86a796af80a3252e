"""A whole report: what ``memlib report`` carries out once its options are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from memlib.base.errors import InputError
from memlib.base.numbers import counted
from memlib.companion.report.advice import advise
from memlib.companion.report.findings import Findings, Scope, find
from memlib.companion.report.own import MAKESHIFT, captions_of, equip, judge
from memlib.companion.report.page import write
from memlib.experiment.group import Group
from memlib.experiment.run import Experiment
from memlib.metrics import Unmeasured
from memlib.models.substrate import load
from memlib.prompts.sets import PromptSet, load_prompts
from memlib.results import table
from memlib.training.finetune.examples import read_training_set


def report(
    model: str, pictures: Path | None, others: str | None, out: Path | None, *, metric: str, prompts: int, scope: Scope, show: str, keep: bool,
    sampling: Mapping[str, Any], device: str, dtype: str, say: Callable[[str], None] = print,
) -> tuple[Path, Findings]:  # fmt: skip
    """Measure a model and write its report; return where it is and what was found.

    `model` is a substrate's name, a diffusers folder or a YAML file; `pictures` its training pictures with captions, without which the memorized
    prompts that its data names are screened. `others` are prompts that are not memorized (a name or file). `keep` puts the rows into the table of scores, for
    ``memlib results export``. `sampling` goes to `Experiment`. Raises InputError for what cannot be read, before anything is sampled.
    """
    examples = None if pictures is None else read_training_set(pictures)
    if out is not None and not out.parent.is_dir():
        raise InputError(f"There is no folder {str(out.parent)!r} to write {out.name} to: make it first.")
    other_prompts = None if others is None else load_prompts(others)
    loaded = load(model, device, dtype)
    equip(loaded, examples is not None, show, metric in MAKESHIFT)
    run = Experiment(model, loaded=loaded, pictures=show, **sampling)
    if examples is None:
        chosen: str | PromptSet = "memorized"
        other_prompts = run.group("not memorized", None).prompts if other_prompts is None else other_prompts
        facts = {"prompts": f"memorized prompts that {loaded.name} names"}
    else:
        chosen = captions_of(examples, prompts, str(pictures))
        facts = {"prompts": _drawn(len(chosen), len({e.caption for e in examples.examples}), examples.name, examples.fingerprint)}
    screened = run.group(chosen, prompts, "screened")
    if screened.training is None:
        raise InputError(f"Nothing is known of what {loaded.name} was trained on: give --pictures, a folder or table of pictures with their captions.")
    judged = judge(loaded, metric, _alignment(run), screened.training)
    facts |= {"copy metric": f"{judged.metric.name} ({judged.metric.fingerprint[:24]}), threshold {judged.metric.threshold:.3f}: {judged.threshold_from}"}
    say(f"{loaded.name}: {counted(len(screened), 'prompt')}, copies by {judged.metric.name} from {judged.metric.threshold:.2f} on.")
    found = find(run, screened, judged, other_prompts, scope, say)
    if keep:
        _keep(found)
    path = write(found, advise(found), out or Path(f"report-{loaded.name}.html"), facts, model)
    return path, found


def _drawn(count: int, of: int, name: str, fingerprint: str) -> str:
    which = "all" if count == of else "those that came most often first, of equals a fixed draw"
    return f"{count} of {counted(of, 'caption')} of {name} ({fingerprint[:12]}), {which}"


def _alignment(run: Experiment) -> Any:
    return run.metrics["alignment"] if "alignment" in run.metrics else Unmeasured("alignment", "alignment", f"{run.substrate.name} names no such metric.")


def _keep(found: Findings) -> None:
    """Add the rows to the table of scores, those of the screening included."""
    path = table.path_of("report", found.run.substrate.name)
    screened: Group = found.screened
    rows = [table.rows_of(screened, "none", "similarity to training", np.asarray(found.similarity)), found.rows, found.other_rows]
    table.append(path, table.join(part for part in rows if len(part)))
