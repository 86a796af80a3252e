"""What an executed notebook depends on: its cells and parameters, the code it reaches, the data that this code names.

Code counts as what it does: comments, docstrings and layout are left out of its hash. A notebook reaches the modules that it imports and those that
they import, so that a figure's look is in the hash of the pages that draw it alone.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import yaml

from memlib.companion.book.layout import Layout

FACTS = "runs.json"  # what a run took must not ask for the next run
PACKAGE = "memlib"
ASSET = re.compile(r"[\w-]+\.\w+")


def fingerprint(notebook: Path, parameters: Mapping[str, Any], layout: Layout) -> str:
    """Hash of all that an executed notebook depends on; hexadecimal, 64 characters.

    Checkpoints outside the repository are gigabytes: sizes and times stand for their content.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    content = [[cell.cell_type, cell.source, cell.metadata.get("tags", [])] for cell in cells]
    trees = [tree for cell in cells if cell.cell_type == "code" and (tree := _parsed(cell.source)) is not None]
    modules = reached(layout.root, trees)
    writes = parameters.get("profile") == "reference" or any("table.append(" in cell.source for cell in cells)
    told = [
        content,
        dict(parameters),
        {name: code_hash(path) for name, path in modules.items()},
        _data(layout, trees, modules.values(), notebook.stem, writes),
        _checkpoint(layout),
        os.environ.get("MEMLIB_PICTURES", ""),
        _hash_file(layout.root / "requirements.txt"),
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def reached(root: Path, trees: Iterable[ast.AST]) -> dict[str, Path]:
    """The package's modules that code imports, and that they import in turn, by name; imports inside functions count."""
    found: dict[str, Path] = {}
    waiting = [name for tree in trees for name in imported(tree)]
    while waiting:
        name = waiting.pop()
        path = module_file(root, name)
        if name in found or path is None:
            continue
        found[name] = path
        waiting += imports_of(path, name)
        if name.count("."):
            waiting.append(name.rpartition(".")[0])  # a package's own file runs before its modules
    return dict(sorted(found.items()))


def imported(tree: ast.AST, within: str = "") -> list[str]:
    """Names in the package that may be modules: of ``from memlib.a import b`` both ``memlib.a`` and ``memlib.a.b``."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(filter(None, [*within.split(".")[: -node.level], base]))
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == PACKAGE]


def module_file(root: Path, name: str) -> Path | None:
    """The file of a module by name; None where there is no such module."""
    path = root.joinpath(*name.split("."))
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return file
    return None


def imports_of(path: Path, name: str) -> tuple[str, ...]:
    """What a module imports of the package; a package that looks for its modules itself (with pkgutil) imports all of them."""
    return _imports_of(path, name, path.stat().st_mtime_ns)


@cache
def _imports_of(path: Path, name: str, _time: int) -> tuple[str, ...]:
    names = imported(_bare(path), f"{name}.__init__" if path.name == "__init__.py" else name)
    if any(isinstance(node, ast.ImportFrom) and node.module == "pkgutil" for node in ast.walk(_bare(path))):
        names += [f"{name}.{other.stem}" for other in path.parent.glob("*.py") if other.stem != "__init__"]
        names += [f"{name}.{other.parent.name}" for other in path.parent.glob("*/__init__.py")]
    return tuple(names)


def code_hash(path: Path) -> str:
    """Hash of what a module does, and of the files beside it that it names: two that differ in comments, docstrings or layout have the same."""
    time = path.stat().st_mtime_ns
    beside = sorted(word for word in _words(path, time) if ASSET.fullmatch(word) and path.with_name(word).is_file())
    return _code_hash(path, time) + "".join(_hash_file(path.with_name(word)) for word in beside)


@cache
def _code_hash(path: Path, _time: int) -> str:
    return hashlib.sha256(ast.dump(_bare(path)).encode()).hexdigest()


def _bare(path: Path) -> ast.Module:
    """A module without its docstrings; the parser drops comments and layout by itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree


def _data(layout: Layout, trees: Iterable[ast.AST], modules: Iterable[Path], stem: str, writes: bool = False) -> dict[str, str]:
    """Hashes of the committed data that code names: whatever stands at the top of ``data`` and in a string of the code. Of the claims, the page's own."""
    root, words = layout.root, {text for tree in trees for text in _strings(tree)}
    for path in modules:
        words |= _words(path, path.stat().st_mtime_ns)
    hashes = {}
    for entry in sorted((root / "data").iterdir()) if (root / "data").is_dir() else []:
        if entry.name == FACTS or not any(entry.name in text for text in words):
            continue
        if entry.name == "claims.yml":
            own = [claim for claim in yaml.safe_load(entry.read_text(encoding="utf-8")) if claim["notebook"] == stem or claim["id"] in words]
            hashes[entry.name] = hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()
        else:
            files = [entry] if entry.is_file() else sorted(path for path in entry.rglob("*") if path.is_file())
            if entry.name == "scores" and writes:  # what a run writes is no input of it
                files = [path for path in files if not path.stem.endswith((f"-{layout.folder_name}", f"-{Path(layout.parameter).name}"))]
            hashes |= {path.relative_to(root).as_posix(): _hash_file(path) for path in files}
    return hashes


@cache
def _words(path: Path, _time: int) -> frozenset[str]:
    return frozenset(_strings(_bare(path)))


def _strings(tree: ast.AST) -> list[str]:
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def _hash_file(path: Path) -> str:
    return _hashed(path, path.stat().st_mtime_ns) if path.is_file() else ""


@cache
def _hashed(path: Path, _time: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checkpoint(layout: Layout) -> list[str]:
    lines = []
    for folder in (Path(layout.parameter), Path(os.environ.get("MEMLIB_MODELS", "")) / layout.substrate):
        if folder.is_absolute() and folder.is_dir():
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                lines.append(f"{path.relative_to(folder)} {path.stat().st_size} {path.stat().st_mtime_ns}")
    return lines


def _parsed(source: str) -> ast.AST | None:
    try:
        return ast.parse(source)
    except SyntaxError:  # a cell with magics of IPython
        return None
