"""Notebook parameters: which there are, and refusing those that are not."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from memlib.base.errors import InputError

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


def profile(name: str, notebooks: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """The parameters that a profile gives to each notebook: one of ``data/profiles`` by name, or a YAML file.

    Raises InputError for a profile that is not there or not understood, and for a notebook or parameter that does not exist.
    """
    from memlib.base.paths import data_folder

    known = sorted(path.stem for path in (data_folder() / "profiles").glob("*.yml"))
    path = data_folder() / "profiles" / f"{name}.yml" if name in known else Path(name).expanduser()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        everywhere, single = dict(content.get("all") or {}), dict(content.get("notebooks") or {})
    except OSError:
        raise InputError(f"Unknown profile {name!r}: use {', '.join(known) or 'none'}, or the path of a YAML file.") from None
    except (yaml.YAMLError, AttributeError, TypeError, ValueError):
        raise InputError(f"The profile {path} is not understood: it has 'all' and 'notebooks', each with parameters by name.") from None
    by_stem = {notebook.stem: notebook for notebook in notebooks}
    given = share_out(everywhere, by_stem.values())
    for stem, own in single.items():
        if stem not in by_stem:
            raise InputError(f"The profile {name!r} names a notebook {stem!r}; there are {', '.join(by_stem)}.")
        given[by_stem[stem]] |= share_out(own or {}, [by_stem[stem]])[by_stem[stem]]
    return given


def given_parameters(layout: Any, given: Mapping[str, Any], profile_name: str | None = None) -> dict[Path, dict[str, Any]]:
    """What each notebook of a layout is run with: the substrate, before it the profile's parameters, and before all those given."""
    notebooks = layout.notebooks()
    chosen = {path: {} for path in notebooks} if not profile_name else profile(profile_name, notebooks)
    substrate, own = share_out({"substrate": layout.parameter}, notebooks), share_out(given, notebooks)
    return {path: substrate[path] | chosen[path] | own[path] for path in notebooks}


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
        shell = get_ipython()  # type: ignore[name-defined]
    except NameError:
        return
    check_cells([source for source in shell.user_ns.get("In", []) if source])
