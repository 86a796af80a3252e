"""Tables with a caption and heads that screen readers understand, open or folded."""

from __future__ import annotations

import html
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Captioned:
    """A table for a page: the columns of `frame` after its index, if that has names, as heads of rows; `folded` until a reader opens it.

    Wide ones scroll within their frame, which a keyboard reaches.
    """

    frame: pd.DataFrame
    caption: str
    folded: bool = False

    def __str__(self) -> str:
        return f"{self.caption}\n{self.frame.to_string()}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        named = [name for name in self.frame.index.names if name is not None]
        flat = self.frame.reset_index() if named else self.frame
        heads = "".join(f"<th scope='col'>{html.escape(str(column))}</th>" for column in flat.columns)
        lines = []
        for row in flat.itertuples(index=False):
            cells = [html.escape("" if pd.isna(cell) else str(cell)) for cell in row]
            first = "".join(f"<th scope='row'>{cell}</th>" for cell in cells[: len(named)])
            lines.append(f"<tr>{first}{''.join(f'<td>{cell}</td>' for cell in cells[len(named) :])}</tr>")
        caption = html.escape(self.caption)
        table = (
            f"<div class='memlib-table' role='region' tabindex='0' aria-label='{caption}'><table class='dataframe'><caption>{caption}</caption>"
            f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        )
        return f"<details><summary>Table: {caption}</summary>{table}</details>" if self.folded else table
