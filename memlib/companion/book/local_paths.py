"""Published pages say which model or prompts a run was given, and not where these lie on somebody's machine."""

from __future__ import annotations

import ast
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import nbformat

# What papermill records beside the parameters, of no use to a reader.
_PLACES = ("input_path", "output_path", "environment_variables")


def without_local_paths(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the last part alone of every path in its injected parameters, in the cell and in papermill's record of them."""
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = _in_code(cell.source)
    record = notebook.metadata.get("papermill", {})
    for place in _PLACES:
        record.pop(place, None)
    if "parameters" in record:
        record["parameters"] = {name: _in_value(value) for name, value in record["parameters"].items()}
    return notebook


def _in_code(source: str) -> str:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # No parameters, then; what it is will be seen when it is shown.
        return source
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (shown := _in_value(node.value)) != node.value:
            source = source.replace(ast.get_source_segment(source, node) or repr(node.value), repr(shown))
            return _in_code(source)
    return source


def _in_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_in_value(part) for part in value]
    if isinstance(value, dict):
        return {name: _in_value(part) for name, part in value.items()}
    return _last_part(value) if isinstance(value, str) and _is_path(value) else value


def _is_path(text: str) -> bool:
    """Whether a text is a path from the root, from home or from where the command was run; a name of the hub (``owner/model``) is none."""
    return text.startswith(("/", "~", "./", "../", ".\\", "..\\", "\\\\")) or bool(PureWindowsPath(text).drive)


def _last_part(text: str) -> str:
    kind = PureWindowsPath if "\\" in text or PureWindowsPath(text).drive else PurePosixPath
    return kind(text).name or "a folder"
