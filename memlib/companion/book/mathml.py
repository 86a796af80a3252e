"""Sphinx extension: formulas as MathML, made at build time, so that a page needs no script from elsewhere."""

from __future__ import annotations

import html
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert_to_element
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def to_mathml(latex: str, block: bool, where: Any = None) -> str:
    """MathML of a LaTeX formula; a bad formula is a warning."""
    try:
        formula = convert_to_element(latex.strip(), display="block" if block else "inline")
    except Exception as error:  # the converter raises many kinds, none of them documented
        logger.warning("formula %r cannot be rendered: %s", latex, error, location=where)
        return ""
    # The converter's own text undoes the escaping of what it took from the formula: written from its elements, text stays text.
    for element in formula.iter():
        element.text = element.text and html.unescape(element.text)
        if not element.get("href", "https:").startswith(("https:", "http:")):  # a formula may give any address, a script too
            del element.attrib["href"]
    return ElementTree.tostring(formula, encoding="unicode")


def _visit_inline(writer: Any, node: Any) -> None:
    writer.body.append(f'<span class="math">{to_mathml(node.astext(), False, node)}</span>')
    raise nodes.SkipNode


def _visit_block(writer: Any, node: Any) -> None:
    writer.body.append(writer.starttag(node, "div", CLASS="math"))
    if node.get("number"):
        writer.body.append(f'<span class="eqno">({node["number"]})')
        writer.add_permalink_ref(node, "Link to this equation")
        writer.body.append("</span>")
    writer.body.append(f"{to_mathml(node.astext(), True, node)}</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", inline_renderers=(_visit_inline, None), block_renderers=(_visit_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
