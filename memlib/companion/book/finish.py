"""The last touch to a rendered site: what Jupyter Book's theme and pandas leave out for those who listen to a page or read it on a phone."""

from __future__ import annotations

import re
from pathlib import Path

FRAME = "table-frame"
# A list of references whose entries are no items of a list, an arrow without words, and a button whose name is not the words on it.
_ROLES = (
    (r'<div role="list" class="citation-list">', '<div class="citation-list">'),
    (r'(<div class="citation"[^>]*?) role="doc-biblioentry"', r"\1"),
    (r'<summary>(<span class="toctree-toggle")', r'<summary aria-label="Pages below this one">\1'),
    (r'(<button class="btn search-button-field[^>]*?) aria-label="Search"', r"\1"),
)
ICONS = "_static/scripts/fontawesome.js"
_ICON = re.compile(r'"?(?P<name>[\w-]+)"?:\[\d+,\d+,\[(?P<aliases>[^\]]*)\],"[0-9a-f]*",(?:"[^"]*"|\[[^\]]*\])\],?')
_EMPTY_HEAD = re.compile(r"<th\b([^>]*)>\s*(?:<p>\s*</p>)?\s*</th>")
_TABLE = re.compile(r"<table\b.*?</table>", re.DOTALL)


def finish(site: Path) -> None:
    """Go over every page of a site, in place."""
    for page in site.rglob("*.html"):
        if "_static" not in page.parts:
            text = page.read_text(encoding="utf-8")
            if (finished := finished_page(text)) != text:
                page.write_text(finished, encoding="utf-8")
    _only_used_icons(site)


def _only_used_icons(site: Path) -> None:
    """Leave of the theme's two thousand icons, a megabyte and a half on every page, those that pages and scripts of the site name."""
    icons = site / ICONS
    if not icons.is_file():
        return
    files = [path for kind in ("*.html", "*.js") for path in site.rglob(kind) if "fontawesome" not in path.as_posix()]
    used = {name for path in files for name in re.findall(r"\bfa-([a-z0-9-]+)", path.read_text(encoding="utf-8", errors="ignore"))}

    def kept(found: re.Match[str]) -> str:
        return found.group() if used & {found["name"], *re.findall(r'"([\w-]+)"', found["aliases"])} else ""

    icons.write_text(_ICON.sub(kept, icons.read_text(encoding="utf-8")), encoding="utf-8")


def finished_page(text: str) -> str:
    """One page: tables with heads that say what they head, captions, and frames that scroll; roles that fit what they are given to."""
    for wrong, right in _ROLES:
        text = re.sub(wrong, right, text)
    return tables(text)


def tables(text: str) -> str:
    """Give each table's heads a scope, a table without a caption the words of the heading above it, and a frame that a keyboard reaches."""
    made, last = [], 0
    for found in _TABLE.finditer(text):
        before, words = text[last : found.start()], _heading(text[: found.start()])
        table = _scoped(found.group())
        if "<caption" not in table:
            table = re.sub(r"(<table\b[^>]*>)", rf'\1<caption class="visually-hidden">{words}</caption>', table, count=1)
        framed = re.search(r'class=["\'](?:table-frame|memlib-table|pst-scrollable-table-container)["\'][^>]*>\s*$', before)
        made += [before, table if framed else f'<div class="{FRAME}" role="region" tabindex="0" aria-label="Table: {words}">{table}</div>']
        last = found.end()
    return "".join([*made, text[last:]])


def _scoped(table: str) -> str:
    """Heads with their scope; an empty one, over the heads of rows, heads nothing."""
    head, ended, body = table.partition("</thead>")
    if not ended:
        head, body = "", table
    head, body = (_EMPTY_HEAD.sub(r"<td\1></td>", part) for part in (head, body))
    head = re.sub(r"<th\b(?![^>]*\bscope=)", '<th scope="col"', head)
    body = re.sub(r"<th\b(?![^>]*\bscope=)", '<th scope="row"', body)
    return head + ended + body


def _heading(before: str) -> str:
    """The words of the last heading before a place."""
    found = re.findall(r"<h[1-6][^>]*>(.*?)</h[1-6]>", before, re.DOTALL)
    words = re.sub(r"<a class=\"headerlink\".*?</a>|<[^>]+>", "", found[-1]) if found else ""
    return " ".join(words.split()).replace('"', "&quot;") or "Table"
