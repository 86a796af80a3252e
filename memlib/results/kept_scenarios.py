"""What a run with all mitigations and strengths leaves behind, for runs that have no time for all of them.

One file of JSON lines for each scenario and substrate under ``data/measured``: the recipe first, then a line for each mitigation and for each
curve over strengths, with the scores of every prompt and seed. Nothing here is typed or edited by hand. A run takes from it what it did not
measure itself, if prompts, seeds, weights, metrics and sampling are its own, and the mitigation is the same one in name, parameters and version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memlib.base.writing import replacing
from memlib.mitigations import Mitigation
from memlib.results import measured
from memlib.results.mitigation_table import Row
from memlib.results.pareto import Reference, Setting
from memlib.results.side_by_side import SideBySide, Variant, enter, settings_of

# Scores are kept with so many digits; intervals are shown with two or three.
DIGITS = 4
# For the scenario's own prompts and for those that are not memorized: rows, curves and worst corner of `SideBySide`.
PARTS = {"rows": ("curves", "reference"), "others": ("other_curves", "other_reference")}
VARIANTS = "variant_rows"


@dataclass(frozen=True)
class Kept:
    """The lines of one file: `rows` by part and mitigation's key, `curves` by part and keys of the settings, worst corners by part."""

    recipe: dict[str, Any]
    provenance: str
    rows: dict[tuple[str, str], dict[str, Any]]
    curves: dict[tuple[str, str], dict[str, Any]]
    references: dict[str, Reference | None]

    def fits(self, recipe: dict[str, Any]) -> bool:
        """Whether all of it was measured with this recipe (`memlib.results.side_by_side.recipe`)."""
        return self.recipe == json.loads(json.dumps(recipe))


def path_of(scenario: str, substrate: str) -> Path:
    """Return where a scenario (a key of `memlib.results.scenarios.SCENARIOS`) of a substrate is kept."""
    return measured.folder() / f"side_by_side-{scenario}-{Path(substrate).name}.jsonl"


def keep(found: SideBySide, path: Path) -> None:
    """Write all numbers of a scenario to `path`, in place of what is there."""
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in _lines(found)), encoding="utf-8")


def read(path: Path) -> Kept | None:
    """Return what is kept in a file, None where there is none; raises InputError for one that cannot be read."""
    if not path.is_file():
        return None
    with measured.reading(path, "measured scenario"):
        head, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        references = {part: None if corner is None else Reference(*corner) for part, corner in head["references"].items()}
        rows = {(line["part"], _text(line["key"])): line for line in lines if "key" in line}
        curves = {(line["part"], _text(line["keys"])): line for line in lines if "keys" in line}
        return Kept(head["recipe"], head["provenance"], rows, curves, references)


def fitting(recipe: dict[str, Any], path: Path) -> Kept | None:
    """Return what is kept in a file if it fits a recipe, else None."""
    kept = read(path)
    return kept if kept is not None and kept.fits(recipe) else None


def complete(found: SideBySide, kept: Kept | None, methods: Sequence[Mitigation], curves: bool = True, variants: Sequence[Variant] = ()) -> list[str]:
    """Put into `found` what it lacks of `methods`, and with `curves` all curves over strengths, which must share one worst corner; and of
    `variants` those of which both ways are kept, if it has none.

    Returns what was taken from `kept`, titles of mitigations for a word under the table; nothing where it has another recipe.
    """
    if kept is None or not kept.fits(found.recipe):
        return []
    taken = []
    at_hand = {row.mitigation.name: row for row in found.rows}
    for part in PARTS if found.others else ("rows",):
        rows = {row.mitigation.name: row for row in getattr(found, part)}
        for method in methods:
            line = kept.rows.get((part, _text(method.key)))
            if method.name not in rows and line is not None:
                rows[method.name] = _row(method, line)
                if part == "rows":
                    enter(found.result, rows[method.name])
                taken.append(method.title)
        order = {method.name: place for place, method in enumerate(methods)}
        setattr(found, part, sorted(rows.values(), key=lambda row: order.get(row.mitigation.name, -1)))
        if curves and _take_curves(found, kept, part, [at_hand[m.name].mitigation if m.name in at_hand else m for m in methods]):
            taken.append("curves over strengths")
    if variants and not found.variants and _take_variants(found, kept, variants):
        taken.append("what published programs do otherwise")
    return list(dict.fromkeys(taken))


def disagreement(found: SideBySide, kept: Kept | None) -> tuple[int, float]:
    """Return how many rows `found` measured itself and `kept` has too, and the largest difference of a mean score between them.

    To be called before `complete`; (0, 0.0) where nothing can be compared.
    """
    if kept is None or not kept.fits(found.recipe):
        return 0, 0.0
    differences, compared = [0.0], 0
    for part in PARTS:
        for row in getattr(found, part):
            line = kept.rows.get((part, _text(row.mitigation.key)))
            if line is None or row.reason or line["reason"]:
                continue
            compared += 1
            pairs = [(values, line["scores"].get(name)) for name, values in row.scores.items()]
            differences += [abs(float(np.mean(values) - np.mean(other))) for values, other in pairs if values is not None and other is not None]
    return compared, max(differences)


def _take_variants(found: SideBySide, kept: Kept, variants: Sequence[Variant]) -> bool:
    lines = {m: kept.rows.get((VARIANTS, _text(m.key))) for variant in variants for m in (variant.ours, variant.other)}
    found.variants = [v for v in variants if lines[v.ours] is not None and lines[v.other] is not None]
    found.variant_rows = [_row(m, line) for m, line in lines.items() if line is not None]
    return bool(found.variants)


def _take_curves(found: SideBySide, kept: Kept, part: str, methods: Sequence[Mitigation]) -> bool:
    lines = {m.name: kept.curves.get((part, _text([s.key for s in settings_of(m)]))) for m in methods}
    if lines.get("none") is None:
        return False
    name, corner = PARTS[part]
    made = {method: [Setting(*map(_array, one)) for one in zip(line["titles"], line["left"], line["kept"], strict=True)]
            for method, line in lines.items() if line is not None}  # fmt: skip
    setattr(found, name, made)
    setattr(found, corner, kept.references[part])
    return True


def _lines(found: SideBySide) -> Iterator[dict[str, Any]]:
    corners = {part: getattr(found, corner) for part, (_, corner) in PARTS.items()}
    references = {part: None if c is None else [c.left, c.kept, c.unharmed] for part, c in corners.items()}
    yield {"recipe": found.recipe, "provenance": str(found.provenance), "references": references}
    methods = {row.mitigation.name: row.mitigation for row in found.rows}
    for part in (*PARTS, VARIANTS):
        for row in getattr(found, part):
            scores = {name: None if values is None else _numbers(values) for name, values in row.scores.items()}
            rows = None if row.reason else row.evaluations
            yield {"part": part, "title": row.title, "key": row.mitigation.key, "scores": scores, "evaluations": rows, "reason": row.reason}
    for part, (curves, _) in PARTS.items():
        for name, settings in getattr(found, curves).items():
            keys = {m.title: m.key for m in settings_of(methods[name])}
            yield {"part": part, "keys": [keys[s.title] for s in settings], "titles": [s.title for s in settings],
                   "left": [_numbers(s.left) for s in settings], "kept": [_numbers(s.kept) for s in settings]}  # fmt: skip


def _row(method: Mitigation, line: dict[str, Any]) -> Row:
    scores = {name: None if values is None else np.asarray(values) for name, values in line["scores"].items()}
    return Row(method, scores, float("nan") if line["evaluations"] is None else line["evaluations"], reason=line["reason"])


def _array(value: Any) -> Any:
    return value if isinstance(value, str) else np.asarray(value)


def _numbers(values: np.ndarray) -> list[Any]:
    return np.round(values.astype(float), DIGITS).tolist()


def _text(key: Any) -> str:
    return json.dumps(key, sort_keys=True)
