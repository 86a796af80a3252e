"""Files of prompts: text, CSV, JSON, JSON lines and Parquet, read without changing a single prompt."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from memlib.base.errors import InputError

# The column that holds the prompt when none is named, in any capitalization, the first found.
# Hubs publish prompts under "text" (LAION's tables under "TEXT").
PROMPT_COLUMNS = ("prompt", "caption", "title", "text")
DELIMITERS = (",", ";", "\t")
SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet")

# A leading zero ("0042") marks an identifier, which has to stay text.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")


def read_prompt_file(path: str | Path, column: str | None = None) -> pd.DataFrame:
    """Return the table of a prompt file: one row per prompt, column ``prompt`` first, others after it.

    Read are .txt (one prompt a line), .csv and .tsv (with a header; ``,``, ``;`` or tab), .jsonl and
    .json (objects or plain strings) and .parquet. `column` names the prompts' column; without it the
    first of ``prompt``, ``caption``, ``title`` and ``text`` is taken, in any capitalization. Prompts stay verbatim: mark-up, quotes, any
    script and any length. Other columns become numbers where every filled cell is one. Raises InputError
    for a missing or unreadable file, other suffixes, bytes that are not UTF-8, a missing column, an
    empty line or prompt, ragged rows, and for no prompts at all.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"The prompt file {path} has no known kind: give a file that ends in {', '.join(SUFFIXES)}.")
    if suffix == ".parquet":
        table = _parquet_table(path, column)
    elif suffix == ".txt":
        table = _line_table(path, _read_text(path))
    elif suffix in (".csv", ".tsv"):
        table = _csv_table(path, _read_text(path), column)
    else:
        table = _json_table(path, _read_text(path), column)
    if table.empty:
        raise InputError(f"The prompt file {path} holds no prompts: give at least one.")
    return table


def _read_text(path: Path) -> str:
    try:
        # Spreadsheets put a byte-order mark in front, which is no part of the first prompt.
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"The prompt file {path} is not UTF-8 (byte 0x{error.object[error.start]:02x} at position {error.start}): save it as UTF-8."
        ) from error
    except OSError as error:
        raise InputError(f"The prompt file {path} cannot be read ({error.strerror}): check the path.") from error


def _empty(path: Path, line: int) -> InputError:
    return InputError(f"Line {line} of the prompt file {path} is empty: remove it or fill in a prompt.")


def _lines(path: Path, text: str) -> list[str]:
    # Only line feeds end a line: `splitlines` would also cut prompts at rarer separators.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise _empty(path, number)
    return lines


def _line_table(path: Path, text: str) -> pd.DataFrame:
    return pd.DataFrame({"prompt": pd.Series(_lines(path, text), dtype=object)})


def _find_column(path: Path, names: list[str], column: str | None) -> str:
    wanted = PROMPT_COLUMNS if column is None else (column.lower(),)
    by_lower = {name.lower(): name for name in reversed(names)}
    for name in wanted:
        if name in by_lower:
            return by_lower[name]
    asked = f"column {column!r}" if column else "column 'prompt' (nor 'caption', 'title' or 'text')"
    raise InputError(
        f"The prompt file {path} has no {asked}, only {', '.join(map(repr, names)) or 'no column at all'}: rename the column that holds the prompts or name it."
    )


def _csv_table(path: Path, text: str, column: str | None) -> pd.DataFrame:
    if not text.strip():
        return pd.DataFrame()
    delimiter = _delimiter(text.split("\n", 1)[0], column)
    # Strict, because a quote that is never closed would otherwise swallow the prompts behind it.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        header = [name or "row" for name in next(reader)]
        chosen = _find_column(path, header, column)
        if len(set(header)) < len(header):
            raise InputError(f"The prompt file {path} has two columns of the same name: rename one of them.")
        for row in reader:
            if not row:
                raise _empty(path, reader.line_num)
            if len(row) != len(header):
                raise InputError(
                    f"Line {reader.line_num} of the prompt file {path} has {len(row)} fields where the header "
                    f"has {len(header)}: put double quotes round prompts that hold {delimiter!r}."
                )
            if not row[header.index(chosen)].strip():
                raise _empty(path, reader.line_num)
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"Line {reader.line_num} of the prompt file {path} is not CSV ({error}): check its quotes.") from error
    table = pd.DataFrame(rows, columns=header, dtype=object)
    others = {name: _typed(table[name]) for name in header if name != chosen}
    return _prompt_first(table.assign(**others), chosen)


def _delimiter(header: str, column: str | None) -> str:
    # The one that isolates a prompt column in the header, or else the busiest one.
    wanted = set(PROMPT_COLUMNS if column is None else (column.lower(),))

    def rank(mark: str) -> tuple[bool, int]:
        names = [name.strip('"\r').lower() for name in header.split(mark)]
        return bool(wanted & set(names)), len(names)

    return max(DELIMITERS, key=rank)


def _typed(cells: pd.Series) -> pd.Series:
    filled = cells[cells != ""]
    if filled.empty or not all(_NUMBER.fullmatch(cell) for cell in filled):
        return cells
    return pd.to_numeric(cells.where(cells != "", None))


def _json_table(path: Path, text: str, column: str | None) -> pd.DataFrame:
    if path.suffix.lower() == ".json":
        items = _parse(path, text, "The prompt file", "a JSON list") if text.strip() else []
        place = "Entry {} of the prompt file {}"
    else:
        lines = enumerate(_lines(path, text), start=1)
        items = [_parse(path, line, f"Line {n} of the prompt file", "one JSON value") for n, line in lines]
        place = "Line {} of the prompt file {}"
    if not isinstance(items, list):
        raise InputError(f"The prompt file {path} is not a JSON list: give a list of strings or objects.")
    if not items:
        return pd.DataFrame()
    if all(isinstance(item, str) for item in items):
        items, chosen = [{"prompt": item} for item in items], "prompt"
    elif all(isinstance(item, dict) for item in items):
        chosen = _find_column(path, list(items[0]), column)
    else:
        raise InputError(f"The prompt file {path} mixes kinds of entries: give strings only or objects only.")
    for number, item in enumerate(items, start=1):
        prompt = item.get(chosen)
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"{place.format(number, path)} has no text in {chosen!r}: remove it or fill in a prompt.")
    return _prompt_first(pd.DataFrame(items), chosen)


def _parse(path: Path, text: str, where: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} {path} is not {what} ({error.msg}): correct it.") from error


def _parquet_table(path: Path, column: str | None) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except ImportError as error:
        raise InputError(f"Reading the Parquet file {path} needs the package pyarrow: `pip install pyarrow`, or turn the file into CSV.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"The prompt file {path} cannot be read as Parquet ({str(error).splitlines()[0]}): check it.") from error
    if table.empty:
        return table
    chosen = _find_column(path, list(map(str, table.columns)), column)
    for number, prompt in enumerate(table[chosen], start=1):
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"Row {number} of the prompt file {path} is empty: remove it or fill in a prompt.")
    return _prompt_first(table.reset_index(drop=True), chosen)


def _prompt_first(table: pd.DataFrame, chosen: str) -> pd.DataFrame:
    names = {chosen: "prompt"} | ({"prompt": "other prompt"} if chosen != "prompt" else {})
    prompts = table[chosen].astype(object)
    others = table.drop(columns=chosen).rename(columns=names)
    return pd.concat([prompts.rename("prompt"), others], axis=1)
