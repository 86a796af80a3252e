"""Facts of a run (when, how long, which commit, what came from the store) apart from its results, so that outputs change only where results do.

Under every notebook stands a line of provenance. In the committed notebook its place is kept and its text is not: that is in one file,
``data/runs.json``, and the site puts it back. The same file says what a page took, for the table of times and for ``memlib cost``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from memlib.base.writing import write_text

FACTS = "data/runs.json"
# The line as `memlib.experiment.provenance.Provenance` shows it, and the place that is kept of it.
_LINE = re.compile(r"<p class='memlib-provenance'>.*?</p>", re.DOTALL)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+>")  # where an object lay in memory
PLACE = "<p class='memlib-provenance'></p>"
_PICTURES, _STEPS = re.compile(r"(\d+) sampled or scored here, (\d+) from the store"), re.compile(r"(\d+) steps")


def take_out(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """Remove the facts of a run from an executed notebook, in place, and return them: the lines, when it ran, for how many seconds.

    Of papermill's record the parameters stay, which are part of the result.
    """
    lines: list[str] = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/plain" in data:
                data["text/plain"] = _ADDRESS.sub(" at …>", data["text/plain"])
            if _LINE.search(data.get("text/html", "")):
                lines += _LINE.findall(data["text/html"])
                output["data"] = {"text/html": _LINE.sub(PLACE, data["text/html"])}
    record = notebook.metadata.get("papermill", {})
    facts: dict[str, Any] = {"provenance": lines}
    facts |= {name: record.pop(name) for name in ("start_time", "end_time", "duration", "version") if name in record}
    if isinstance(facts.get("duration"), float):
        facts["duration"] = round(facts["duration"], 1)
    facts.pop("end_time", None)
    text = " ".join(lines)
    facts["pictures"] = sum(int(made) + int(found) for made, found in _PICTURES.findall(text))
    # A guided picture is two rows a step; what methods and detectors take beside is not counted here.
    facts["evaluations"] = 2 * facts["pictures"] * max(map(int, _STEPS.findall(text)), default=0)
    return facts


def put_back(notebook: nbformat.NotebookNode, facts: Mapping[str, Any]) -> None:
    """Show the lines of provenance in their places again, in place; what is not known stays out."""
    lines = iter(facts.get("provenance", ()))
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if PLACE in output.get("data", {}).get("text/html", ""):
                output["data"]["text/html"] = output["data"]["text/html"].replace(PLACE, next(lines, ""))


def read(root: Path) -> dict[str, dict[str, Any]]:
    """Facts of the committed run by notebook; empty where there are none yet."""
    path = root / FACTS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(root: Path, facts: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write the facts of a run, one notebook after the other."""
    path = root / FACTS
    write_text(path, json.dumps(dict(sorted(facts.items())), indent=1, ensure_ascii=False) + "\n")
    return path
