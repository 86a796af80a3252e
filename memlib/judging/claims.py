"""Claims of the texts (``data/claims.yml``), and the figures that the texts report (``data/reported``).

What is asked of a claim, and how it is judged, stands in `memlib.judging.registration` and `memlib.judging.judge`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pandas as pd
import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from memlib.base.errors import InputError
from memlib.base.paths import data_folder

Text = Literal["clip", "clip-news", "basin", "dori", "attn"]
TEXTS = get_args(Text)
Words = Annotated[str, Field(min_length=1)]
# Fields that a class does not have are mistakes: a misspelt one would otherwise be left out without a word.
STRICTLY = ConfigDict(extra="forbid")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Claim:
    """One claim of ``data/claims.yml``: where it stands, what it says, and in which `notebook` it is tested.

    `reported` points to the text's own figures (place, method, metric). What is asked of a claim stands in ``data/registration.yml``.
    """

    id: Words
    text: Text
    place: Words
    title: Words
    statement: Words
    notebook: Words
    reported: tuple[Mapping[Literal["place", "method", "metric"], str], ...] = ()
    reported_note: str = ""

    __pydantic_config__ = STRICTLY

    @property
    def source(self) -> str:
        """Where the claim stands: the key of the text, and the section, table or figure in it."""
        return f"{self.text}, {self.place}"

    def reported_rows(self) -> pd.DataFrame:
        """Return what the text itself reports for this claim; see `reported`."""
        parts = [reported(self.text, **{str(name): value for name, value in pointer.items()}) for pointer in self.reported]
        return pd.concat(parts, ignore_index=True) if parts else reported().iloc[:0]


def load_claims(path: str | Path | None = None) -> dict[str, Claim]:
    """Return the claims by id, in the order of the file (``data/claims.yml`` by default).

    Raises InputError, naming the claim and the line, for all that does not follow the classes above: a field that is missing, unknown
    or of another kind, a repeated id.
    """
    path = Path(path) if path is not None else data_folder() / "claims.yml"
    text = path.read_text(encoding="utf-8")
    try:
        rows, nodes = yaml.load(text, Loader=_LOADER), yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise InputError(f"{path.name} is not YAML ({' '.join(str(error).split())}): correct it.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path.name} must be a list of claims, each with its fields.")
    try:
        claims = TypeAdapter(list[Claim]).validate_python(rows)
    except ValidationError as error:
        # The sentences of the classes above say more than those about the other kinds that a field could also have.
        first = min(error.errors(), key=lambda found: (found["loc"][0], found["type"] != "value_error"))
        where = " ".join(map(str, first["loc"][1:]))
        told = str(first.get("ctx", {}).get("error", first["msg"])).rstrip(".")
        name = rows[int(first["loc"][0])].get("id", "without id")
        raise InputError(f"{path.name}, line {_line(nodes, first['loc'])}: the claim {name} has {where or 'a fault'}: {told}.") from error
    for place, known in enumerate(claims):
        if any(known.id == other.id for other in claims[:place]):
            raise InputError(f"{path.name}, line {_line(nodes, (place,))}: the claim {known.id} stands twice: give each claim its own id.")
    return {known.id: known for known in claims}


def _line(node: Any, where: Sequence[int | str]) -> int:
    """The line of the file where the value stands that pydantic names by its place, or as much of it as is there."""
    line = node.start_mark.line + 1
    for part in where:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == part:
                    node, line = value, key.start_mark.line + 1
                    break
    return line


def claim(name: str) -> Claim:
    """Return the claim with the id `name`; raises InputError with the known ids otherwise."""
    claims = load_claims()
    if name not in claims:
        raise InputError(f"Unknown claim {name!r}: known are {', '.join(claims)}.")
    return claims[name]


@cache
def _reported_table() -> pd.DataFrame:
    table = pd.read_csv(data_folder() / "reported" / "reported.csv", dtype={"note": "string", "method": "string"})
    return table.assign(source="reported")


def reported(text: str | None = None, place: str | None = None, method: str | None = None, metric: str | None = None) -> pd.DataFrame:
    """Return the figures that the texts report, one per row, filtered by what is given.

    Columns: text, place, setting, method, metric, value, sd, note, and ``source`` which is always
    "reported". No row may be left; a filter value that occurs nowhere in the table is an InputError.
    """
    table = _reported_table()
    for column, wanted in (("text", text), ("place", place), ("method", method), ("metric", metric)):
        if wanted is None:
            continue
        known = _reported_table()[column].unique()
        if wanted not in known:
            raise InputError(f"Nothing is reported with {column} {wanted!r}: known are {', '.join(sorted(known))}.")
        table = table[table[column] == wanted]
    return table.reset_index(drop=True)
