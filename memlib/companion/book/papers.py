"""How pages name papers: by their authors, from book/references.bib."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from pybtex.database import parse_file

from memlib.base.errors import InputError


@dataclass(frozen=True)
class Paper:
    """A paper: `short` as "Kim and No (2026)" or "Ren et al. (2024)", and its whole title."""

    short: str
    title: str


def read(path: Path) -> dict[str, Paper]:
    """All entries of a BibTeX file by key. Raises InputError for one that cannot be read."""
    try:
        entries = parse_file(str(path), bib_format="bibtex").entries
    except Exception as error:  # pybtex raises many kinds
        raise InputError(f"{path.name} cannot be read: {error}.") from error
    found = {}
    for key, entry in entries.items():
        names = [" ".join(person.prelast_names + person.last_names) for person in entry.persons.get("author", [])]
        shown = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
        found[str(key)] = Paper(f"{shown} ({entry.fields.get('year', 'no year')})", entry.fields.get("title", "").replace("{", "").replace("}", ""))
    return found


def citation(path: Path) -> str:
    """A CITATION.cff as a BibTeX entry; its address only where it names one."""
    cff = yaml.safe_load(path.read_text(encoding="utf-8"))
    people = (person.get("name") or f"{person['family-names']}, {person['given-names']}" for person in cff["authors"])
    fields = {"title": f"{{{cff['title']}}}", "author": " and ".join(f"{{{name}}}" for name in people), "version": cff["version"]}
    fields |= {"url": url} if (url := repository(path)) else {}
    return "@software{companion,\n" + "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items()) + "}"


def repository(path: Path) -> str:
    """The address of the repository as CITATION.cff names it (`repository-code`), without a slash at its end; empty where it names none."""
    return str(yaml.safe_load(path.read_text(encoding="utf-8")).get("repository-code") or "").rstrip("/") if path.is_file() else ""
