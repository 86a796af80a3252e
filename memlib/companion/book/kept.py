"""Results that outlive the run that made them: verdicts of one substrate's executed notebooks, in one file of the repository.

    memlib book keep --substrate sd14

A run at the papers' scale takes hours on a GPU, the book is built anywhere. What is kept here stands in every later build, on the page of
its notebook and in the ledger, beside MiniSD's and the reported figures. Nothing in these files is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat

from memlib.base.errors import InputError
from memlib.base.writing import write_text
from memlib.companion.book.layout import DEFAULT_SUBSTRATE, Layout
from memlib.companion.book.outputs import problem_of
from memlib.judging.verdicts import Verdict, read_verdicts

# Of papermill's record: what the run was given and when it was.
RECORD = ("parameters", "start_time", "duration")


def folder(root: Path) -> Path:
    """Return the folder of kept results."""
    return root / "data" / "measured"


def keep(layout: Layout) -> tuple[Path, list[str]]:
    """Write the verdicts of a substrate's executed notebooks to their file; return it and the notebooks that are in it anew.

    A notebook that was not executed keeps what is in the file, and so does one that was executed with fewer prompts and seeds than those
    that are kept. Raises InputError for the default substrate, whose results are the committed notebooks themselves, and where nothing was executed.
    """
    if layout.substrate == DEFAULT_SUBSTRATE:
        raise InputError(f"The results on {DEFAULT_SUBSTRATE} are the committed notebooks: keep them with 'memlib book outputs'.")
    path = folder(layout.root) / f"verdicts-{layout.folder_name}.json"
    notebooks = _read(path) if path.is_file() else {}
    anew = []
    for executed in sorted(layout.executed.glob("*.ipynb")):
        content, verdicts = nbformat.read(executed, as_version=4), read_verdicts(executed)
        if verdicts and problem_of(content) is None and size(verdicts) >= size(notebooks.get(executed.stem, {}).get("verdicts", [])):
            record = content.metadata.get("papermill", {})
            notebooks[executed.stem] = {"run": {name: record[name] for name in RECORD if name in record}, "verdicts": verdicts}
            anew.append(executed.stem)
    if not anew:
        raise InputError(f"Nothing to keep: no notebook was executed on {layout.substrate} with as many prompts as are kept; run 'make book' first.")
    write_text(path, json.dumps(dict(sorted(notebooks.items())), indent=1, ensure_ascii=False) + "\n")
    return path, anew


def kept(root: Path) -> list[dict[str, Any]]:
    """Return all verdicts that are kept, as `Verdict.to_json` gives them; raises InputError for a file that cannot be read."""
    return [verdict for path in sorted(folder(root).glob("verdicts-*.json")) for entry in _read(path).values() for verdict in entry["verdicts"]]


def size(verdicts: Iterable[dict[str, Any]]) -> int:
    """How many prompts with their seeds stand behind verdicts, the largest of them."""
    return max((verdict["n_prompts"] * max(1, verdict["n_seeds"]) for verdict in verdicts), default=0)


def _read(path: Path) -> dict[str, Any]:
    try:
        notebooks = json.loads(path.read_text(encoding="utf-8"))
        for entry in notebooks.values():
            for fields in entry["verdicts"]:
                Verdict.from_json(fields)
        return notebooks
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"The kept results {path.name} cannot be read: restore the file from the repository or delete it.") from error
