"""Notebook parameters: which there are, and refusing those that are not."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from memlib.errors import InputError

# Papermill opens the cell that it injects with this line.
INJECTED = "# Parameters"


def parse_assignment(text: str) -> tuple[str, Any]:
    """Split ``name=value``; the value is read as YAML, so that 4, 7.5, true and [1, 2] have their types.

    Raises InputError where there is no ``=`` or the value is not YAML.
    """
    name, sign, value = text.partition("=")
    name = name.strip()
    if not sign or not name.isidentifier():
        raise InputError(f"A parameter is written name=value, not {text!r}.")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"The value of parameter {name} cannot be read: {value!r} is not YAML.") from None


def declared(notebook: Path) -> dict[str, dict[str, Any]]:
    """The parameters of a notebook by name, as papermill reads them from its `parameters` cell."""
    import papermill

    return papermill.inspect_notebook(str(notebook))


def share_out(given: Mapping[str, Any], notebooks: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """Give each notebook those of the parameters that it declares.

    Raises InputError for a parameter that none of them declares.
    """
    names = {path: declared(path) for path in notebooks}
    known = sorted(set().union(*names.values())) if names else []
    for name in given:
        if name not in known:
            raise InputError(f"No notebook has a parameter {name!r}; there are {', '.join(known) or 'none'}.")
    return {path: {k: v for k, v in given.items() if k in has} for path, has in names.items()}


def _assigned(source: str) -> set[str]:
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a cell with IPython magics declares no parameters
        return set()
    found = set()
    for statement in body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def check_cells(sources: list[str]) -> None:
    """Raise InputError if an injected cell assigns a name that no cell before it does.

    `sources` are the code cells in order of execution; without an injected cell there is nothing to refuse.
    """
    known: set[str] = set()
    for source in sources:
        names = _assigned(source)
        if source.lstrip().startswith(INJECTED):
            unknown = sorted(names - known)
            if unknown:
                raise InputError(f"This notebook has no parameter {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
            return
        known |= names


def refuse_unknown() -> None:
    """Called in a notebook after its parameters: raise InputError if papermill injected one that it does not have.

    Papermill itself only logs a warning for those, and the run goes on with the default. Does nothing outside IPython.
    """
    try:
        shell = get_ipython()  # type: ignore[name-defined]  # noqa: F821
    except NameError:
        return
    check_cells([source for source in shell.user_ns.get("In", []) if source])
