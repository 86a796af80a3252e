"""Sphinx extension: the claims ledger as directives, so that prose never lags behind the executed notebooks.

``{claims-beside}`` has the claims of one notebook (``:notebook: 02_pad_embeddings``) in a column for what is reported and one for each substrate;
every cell says whether it was measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from memlib.base.numbers import counted
from memlib.companion.book.ledger import Entry, collect
from memlib.companion.book.site import OTHER_VERDICTS
from memlib.judging.verdicts import BADGES, Verdict
from memlib.models.catalogue import SUBSTRATES

PUBLISHED = "sd14"


def inline(text: str) -> list[nodes.Node]:
    """Text with `code` and $formulas$; everything else, angle brackets included, is shown as it stands."""
    found: list[nodes.Node] = []
    for part in re.split(r"(`[^`]+`|\$[^$]+\$)", " ".join(text.split())):
        if part.startswith("`"):
            found.append(nodes.literal("", part.strip("`")))
        elif part.startswith("$") and len(part) > 2:
            found.append(nodes.math("", part.strip("$")))
        elif part:
            found.append(nodes.Text(part))
    return found


def badge(verdict: str) -> nodes.inline:
    """A verdict as a coloured label; the words say the same as the colour."""
    sign = f"{BADGES[verdict][0]} " if verdict in BADGES else ""
    return nodes.inline("", f"{sign}{verdict}", classes=["verdict", "verdict-" + verdict.replace(" ", "-")])


def _paragraph(*parts: nodes.Node, classes: tuple[str, ...] = ()) -> nodes.paragraph:
    return nodes.paragraph("", "", *parts, classes=list(classes))


def _table(columns: Sequence[tuple[str, int]], rows: Sequence[Sequence[list[nodes.Node]]], name: str) -> nodes.table:
    """A table of columns (heading, width in per cent) and rows of cells."""
    group = nodes.tgroup(cols=len(columns))
    group += [nodes.colspec(colwidth=width) for _, width in columns]
    head = nodes.row("", *(nodes.entry("", _paragraph(nodes.Text(heading))) for heading, _ in columns))
    body = nodes.tbody("", *(nodes.row("", *(nodes.entry("", *cell) for cell in row)) for row in rows))
    group += [nodes.thead("", head), body]
    return nodes.table("", group, classes=[name, "colwidths-given"])


def _reported(entry: Entry) -> list[nodes.Node]:
    """A cell with the text's own figures."""
    lines = [_figure(quantity, figure) for quantity, figure in entry.reported()]
    return [_state("reported" if lines else "not reported"), *lines]


def _measured(entry: Entry, substrate: str) -> list[nodes.Node]:
    """A cell with what was measured on one substrate, or that nothing was."""
    verdict = entry.verdicts.get(substrate)
    if verdict is None:
        return [_state("not measured")]
    if not verdict.quantities:
        return [_paragraph(badge(verdict.verdict)), _state("not measured"), _paragraph(*inline(verdict.reason), classes=("claim-figures",))]
    lines = [_figure(entry.claim.quantities.get(name, name), estimate.text()) for name, estimate in verdict.quantities.items()]
    seeds = f", {counted(verdict.n_seeds, 'seed')}" if verdict.n_seeds else ""
    return [_paragraph(badge(verdict.verdict)), _state(f"measured, {counted(verdict.n_prompts, 'prompt')}{seeds}"), *lines]


def _figure(quantity: str, figure: str) -> nodes.paragraph:
    return _paragraph(*inline(quantity), nodes.Text(": "), nodes.strong("", figure), classes=("claim-figures",))


def _state(text: str) -> nodes.paragraph:
    return _paragraph(nodes.emphasis("", text), classes=("claim-state",))


class _Ledger(SphinxDirective):
    option_spec: ClassVar[dict[str, Any]] = {"text": directives.unchanged}

    def entries(self) -> list[Entry]:
        source = Path(self.env.srcdir)
        claims, others = source / "data" / "claims.yml", source / OTHER_VERDICTS
        notebooks = sorted((source / "notebooks").glob("*.ipynb"))
        for path in [claims, others, *notebooks]:
            if path.exists():
                self.env.note_dependency(str(path))
        elsewhere = json.loads(others.read_text(encoding="utf-8")) if others.exists() else []
        entries = collect(claims, notebooks, [Verdict.from_json(fields) for fields in elsewhere])
        wanted = self.options.get("text")
        if wanted and not any(entry.claim.text == wanted for entry in entries):
            raise self.error(f"No claim is of the text {wanted!r}.")
        return [entry for entry in entries if wanted in (None, entry.claim.text)]

    def linked(self, entry: Entry) -> list[nodes.Node]:
        """The claim's id and title, as a link to its notebook where there is one."""
        label = nodes.inline("", "", nodes.inline("", entry.claim.id, classes=["claim-id"]), nodes.Text(" "))
        label += inline(entry.claim.title)
        if entry.notebook is None:
            return [label]
        # A cross-reference would keep the label's words and lose its markup.
        target = self.env.app.builder.get_relative_uri(self.env.docname, f"notebooks/{entry.notebook}")
        link = nodes.reference("", "", label, refuri=target, internal=True)
        return [link]

    def where(self, entry: Entry) -> nodes.paragraph:
        place = [nodes.literal("", entry.claim.text), nodes.Text(" "), *inline(entry.claim.place)]
        return _paragraph(*place, classes=("claim-place",))


class ClaimsBeside(_Ledger):
    """The claims of one notebook: what is reported, and what was measured on each substrate."""

    option_spec: ClassVar[dict[str, Any]] = {"notebook": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        notebook = self.options["notebook"]
        entries = [entry for entry in self.entries() if notebook in (entry.notebook, entry.claim.notebook)]
        if not entries:
            raise self.error(f"No claim is judged in the notebook {notebook!r}.")
        found = sorted({substrate for entry in entries for substrate in entry.verdicts})
        # Stable Diffusion has its column before anything was measured on it, beside a model that stands in for it.
        columns = found + [PUBLISHED] * (PUBLISHED not in found and (not found or any(name in SUBSTRATES and SUBSTRATES[name].data().small for name in found)))
        rows = [[[_paragraph(*self.linked(entry))], _reported(entry), *(_measured(entry, name) for name in columns)] for entry in entries]
        widths = [("Claim", 22), ("Reported", 24), *((name, 54 // len(columns)) for name in columns)]
        return [_table(widths, rows, "beside")]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("claims-beside", ClaimsBeside)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
