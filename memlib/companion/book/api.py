"""Sphinx extension and staged pages: what is public in each room, from the docstrings.

One page a room, with autodoc. Docstrings are plain English with `names` in backticks, and not reStructuredText: signs that mean something there are escaped.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

FOLDER = "book/api"
# What a reader of the package may call; commands and the making of the book are not among it.
ROOMS = ("mitigations", "probes", "experiment", "results", "sampling", "metrics", "prompts", "models", "judging", "base")


def write_pages(root: Path, source: Path) -> list[Path]:
    """Write the pages of all rooms under `source`/book/api and return them; `root` has the package."""
    pages = []
    for room in ROOMS:
        package = root / "memlib" / room
        page = source / FOLDER / f"{room}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        parts = [f"# memlib.{room}\n\n{_text(package / '__init__.py')}\n"]
        for path in sorted(package.rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            if _public(path):
                parts.append(f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n   :member-order: bysource\n```\n")
        page.write_text("\n".join(parts), encoding="utf-8")
        pages.append(page)
    return pages


def escaped(lines: list[str]) -> list[str]:
    """Docstring lines as reStructuredText that shows them as they are: names in backticks as code, every other sign as itself, indented lines as a
    block, and lists (a dash behind an empty line, lines that go on indented) as lists."""
    out: list[str] = []
    listed = False
    for line in lines:
        indented, begins = re.match(r"\s{2,}\S", line), line.startswith("- ") and (listed or not out or not out[-1])
        if listed and line and not begins and not indented:
            out.append("")
        listed = bool(line) and (begins or (listed and bool(indented)))
        if indented and not listed and (not out or not out[-1].startswith("| ")):
            out.append("")
        text = ""
        for part in re.split(r"(``.+?``|`[^`]+`)", line.strip().removeprefix("- " if begins else "")):
            code = part.startswith("`")
            shown = f"``{part.strip('`')}``" if code else re.sub(r"([\\*_|`])", r"\\\1", part)
            # A code span needs blanks or punctuation around it.
            text += ("\\ " if shown and text and ((code and text[-1].isalnum()) or (text.endswith("``") and shown[0].isalnum())) else "") + shown
        if listed:
            out.append(("- " if begins else "  ") + text)
            continue
        if indented:
            text = f"| {text}"
        elif out and out[-1].startswith("| "):
            out.append("")
        if re.match(r"(\.\.|::|:\w|[-=~+>#]{2}|[-+•]\s|\w{1,4}[.)]\s|\()", text):
            text = "\\" + text
        out.append(text)
    return out


def _process(app: Sphinx, what: str, name: str, object_: Any, options: Any, lines: list[str]) -> None:
    lines[:] = escaped(lines)


def _public(path: Path) -> bool:
    """Whether a module defines anything public of its own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") for node in tree.body)


def _text(path: Path) -> str:
    return " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", _process)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
