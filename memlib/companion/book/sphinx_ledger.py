"""Sphinx extension: the claims ledger as directives, so that prose never lags behind the executed notebooks.

``{claims-summary}`` counts the verdicts, ``{claims-overview}`` has a line for each claim tested so far, ``{claims-ledger}`` is the
table of all claims with their figures, or with ``:text: clip`` of one text. ``{claims-beside}`` has the claims of one notebook
(``:notebook: 02_pad_embeddings``) in a column for what is reported and one for each substrate; every cell says whether it was measured.
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
from memlib.companion.book.ledger import NOT_TESTED, Entry, collect, counts
from memlib.companion.book.site import OTHER_VERDICTS
from memlib.judging.verdicts import BADGES, VERDICTS, Verdict
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


def _verdicts(entry: Entry) -> list[nodes.Node]:
    if not entry.verdicts:
        return [_paragraph(badge(NOT_TESTED))]
    lines = []
    for substrate, verdict in entry.verdicts.items():
        parts = [badge(verdict.verdict), nodes.Text(" on "), nodes.literal("", substrate)]
        if verdict.verdict == "not testable here" and verdict.reason:
            parts += [nodes.Text(": "), *inline(verdict.reason)]
        lines.append(_paragraph(*parts))
    return lines


def _badges(entry: Entry) -> list[nodes.Node]:
    """The verdicts alone; where there are several, each with its substrate."""
    parts: list[nodes.Node] = []
    for substrate, verdict in entry.verdicts.items():
        parts += [badge(verdict.verdict), nodes.Text(f" {substrate} ")] if len(entry.verdicts) > 1 else [badge(verdict.verdict)]
    return parts


def _table(columns: Sequence[tuple[str, int]], rows: Sequence[Sequence[list[nodes.Node]]], name: str) -> nodes.table:
    """A table of columns (heading, width in per cent) and rows of cells."""
    group = nodes.tgroup(cols=len(columns))
    group += [nodes.colspec(colwidth=width) for _, width in columns]
    head = nodes.row("", *(nodes.entry("", _paragraph(nodes.Text(heading))) for heading, _ in columns))
    body = nodes.tbody("", *(nodes.row("", *(nodes.entry("", *cell) for cell in row)) for row in rows))
    group += [nodes.thead("", head), body]
    return nodes.table("", group, classes=[name, "colwidths-given"])


def _figures(entry: Entry) -> list[nodes.Node]:
    """Ours first, then the reported ones, each line with its label: the two never share one."""
    lines = []
    for quantity, figure, substrate in entry.measured():
        parts = [*inline(quantity), nodes.Text(": "), nodes.strong("", figure), nodes.Text(f" ({substrate})")]
        lines.append(_paragraph(*parts, classes=("claim-figures",)))
    for quantity, figure in entry.reported():
        parts = [nodes.emphasis("", "reported"), nodes.Text(" "), *inline(quantity), nodes.Text(f": {figure}")]
        lines.append(_paragraph(*parts, classes=("claim-figures", "reported")))
    return lines


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


class ClaimsSummary(_Ledger):
    """How many claims there are, how many were tested, and what came out on each substrate."""

    def run(self) -> list[nodes.Node]:
        entries = self.entries()
        tested = sum(bool(entry.verdicts) for entry in entries)
        result: list[nodes.Node] = [_paragraph(nodes.Text(f"{len(entries)} claims are stated; {tested} of them have been tested so far."))]
        rows = nodes.bullet_list()
        for substrate, number in counts(entries).items():
            parts: list[nodes.Node] = [nodes.literal("", substrate), nodes.Text(": ")]
            for verdict in VERDICTS:
                if number[verdict]:
                    parts += [nodes.Text(f"{number[verdict]} × "), badge(verdict), nodes.Text("  ")]
            rows += nodes.list_item("", _paragraph(*parts))
        return result + ([rows] if len(rows) else [])


class ClaimsOverview(_Ledger):
    """A line for each claim tested so far, its title and its verdicts: the landing page is read in a minute."""

    def run(self) -> list[nodes.Node]:
        rows = [[[_paragraph(*self.linked(entry))], [_paragraph(*_badges(entry))]] for entry in self.entries() if entry.verdicts]
        return [_table((("Claim", 68), ("Verdict", 32)), rows, "overview")] if rows else []


class ClaimsLedger(_Ledger):
    """All claims of one text, or of all, as a table."""

    def run(self) -> list[nodes.Node]:
        rows = []
        for entry in self.entries():
            said = [_paragraph(*self.linked(entry)), _paragraph(*inline(entry.claim.statement)), self.where(entry)]
            rows.append([said, _verdicts(entry), _figures(entry) or [_paragraph(nodes.Text("–"))]])
        return [_table((("Claim", 46), ("Verdict", 22), ("Figures", 32)), rows, "ledger")]


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
    app.add_directive("claims-summary", ClaimsSummary)
    app.add_directive("claims-overview", ClaimsOverview)
    app.add_directive("claims-ledger", ClaimsLedger)
    app.add_directive("claims-beside", ClaimsBeside)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
