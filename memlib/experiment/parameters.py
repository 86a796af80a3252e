"""Notebook parameters: which there are, of what kind each is, and refusing those that are not."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import MinLen
from pydantic import Field

from memlib.base.declared import Count, Part, Positive, Whole, check, in_words
from memlib.base.errors import InputError

# Papermill opens the cell that it injects with this line.
INJECTED = "# Parameters"


Name = Annotated[str, MinLen(1), Field(description="a name, or the path of a file or folder, in quotes")]
Names = Annotated[list[Name], Field(description="a list of names, or one name")]

# Every parameter of every notebook by name. The same name means the same thing on every page.
KINDS: dict[str, Any] = {
    **dict.fromkeys(
        ("n_seeds", "steps", "n_controls", "n_cuts", "n_damaged", "n_held_out", "n_other_seeds", "n_others", "n_pictures",
         "n_seen_once", "n_shown", "n_sweep", "n_swept_seeds", "n_table", "n_together", "n_triggered", "n_triggers", "n_widths", "held_out_seeds", "restarts",
         "at_once", "behind", "coarser", "every", "attack_every", "attack_samples", "check_seeds", "check_steps"),
        Count,
    ),
    **dict.fromkeys(("n_prompts", "n_timed", "batch_size"), Count | None),
    **dict.fromkeys(("seed", "attack_steps"), Whole),
    **dict.fromkeys(("guidance", "weaker"), float),
    "opposite": float | None,
    "attack_lr": Positive,
    "radii_noise": Annotated[list[Positive], MinLen(1), Field(description="a list of numbers above 0")],
    "radii_mixed": Annotated[list[Part], MinLen(1), Field(description="a list of numbers above 0 and at most 1")],
    **dict.fromkeys(
        ("substrate", "not_memorized", "control", "webster", "membench", "scheduler", "device", "dtype", "other_substrate", "plain", "without",
         "adversarial", "small_model", "large_model", "class_model", "duplicated_model"),
        Name,
    ),
    **dict.fromkeys(("memorized", "labels", "statistics_file"), Name | None),
    **dict.fromkeys(("towers", "checked", "shown"), Names),
    **dict.fromkeys(("models", "methods", "mitigations", "scenarios", "swept", "only_pretrained"), Names | None),
    **dict.fromkeys(("refetch", "strengths"), bool),
    "profile": Literal["live", "reference", "check"],
    "measure": bool | Literal["auto"],
}  # fmt: skip


def checked(name: str, value: Any) -> Any:
    """`value` as the kind that the parameter `name` has: text from a command line becomes the number, flag or list that it stands for.

    A name that no page of the book has is returned as it is. Raises InputError for a value of another kind or out of range.
    """
    if name not in KINDS:
        return value
    kept = _read(value, KINDS[name])
    try:
        check(kept, KINDS[name], name)
    except InputError:
        raise InputError(f"The parameter {name} is {value!r}: use {in_words(KINDS[name])}.") from None
    return kept


def _read(value: Any, kind: Any) -> Any:
    """What a value stands for where another kind was meant: a text from a command line, a whole number for any number, one of a list for the list."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _read(value, inner[0])
    if origin in (Union, UnionType):
        readings = (_read(value, one) for one in sorted(inner, key=lambda one: one is not NoneType))
        return next((one for one in readings if one is None or type(one) is not type(value)), value)
    if origin is list:
        found = [part.strip(" '\"") for part in value.strip().strip("[]").split(",") if part.strip()] if isinstance(value, str) else value
        return [_read(one, inner[0]) for one in found] if isinstance(found, list) else found
    if kind is float and type(value) is int:
        return float(value)
    if not isinstance(value, str):
        return value
    if kind is NoneType:
        return None if value.strip().lower() in ("none", "null") else value
    if kind is bool:
        return {"true": True, "false": False}.get(value.strip().lower(), value)
    try:
        return kind(value) if kind in (int, float) else value
    except ValueError:
        return value


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

    Raises InputError for a parameter that none of them declares, and for a value of another kind than it has (`checked`).
    """
    names = {path: declared(path) for path in notebooks}
    known = sorted(set().union(*names.values())) if names else []
    for name in given:
        if name not in known:
            raise InputError(f"No notebook has a parameter {name!r}; there are {', '.join(known) or 'none'}.")
    kinds = {name: checked(name, value) for name, value in given.items()}
    return {path: {k: v for k, v in kinds.items() if k in has} for path, has in names.items()}


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


def check_cells(sources: list[str]) -> set[str]:
    """The names that code cells, in order of execution, assign up to the injected cell, or all where there is none.

    Raises InputError if the injected cell assigns a name that no cell before it does. Papermill itself only logs a warning for that, and the run
    goes on with the default.
    """
    known: set[str] = set()
    for source in sources:
        names = _assigned(source)
        if source.lstrip().startswith(INJECTED):
            unknown = sorted(names - known)
            if unknown:
                raise InputError(f"This notebook has no parameter {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
            return known
        known |= names
    return known


def check_namespace(namespace: MutableMapping[str, Any]) -> None:
    """In IPython, after a notebook's parameters: refuse injected names that it does not have, and give its parameters the types of their kinds.

    Raises InputError for either. Outside IPython nothing is injected, and nothing is done.
    """
    if (running := shell()) is None:
        return
    for name in check_cells([source for source in running.user_ns.get("In", []) if source]) & set(namespace):
        namespace[name] = checked(name, namespace[name])


def shell() -> Any:
    """The IPython shell that runs this code, or None."""
    try:
        return get_ipython()  # type: ignore[name-defined]
    except NameError:
        return None
