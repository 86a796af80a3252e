"""Pages made of data: the templates ``book/**/*.md.j2``, filled with what the outputs of notebooks and the kept tables hold.

A template sees `book`, an `Evidence`. No number is typed in one: a template asks for it by claim and name, chooses words by where its interval lies,
and says "not measured" where there is none.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from memlib.base.numbers import counted
from memlib.companion.book import papers, remedies
from memlib.companion.book.directions import Row, row_of
from memlib.companion.book.explorer import about
from memlib.companion.book.ledger import Entry, collect, counts
from memlib.companion.book.mathml import to_mathml
from memlib.companion.book.scores import Beside, beside
from memlib.companion.book.times import measured
from memlib.companion.book.wording import badge, percent, side, sign, told, ucfirst, with_edits
from memlib.judging.estimates import Estimate
from memlib.judging.verdicts import VERDICTS, Verdict
from memlib.mitigations import REGISTRY
from memlib.models.catalogue import SUBSTRATES
from memlib.probes.premises import Finding, kept
from memlib.results.evidence import Evidence as Rows
from memlib.results.table import path_of
from memlib.results.table import read as read_rows

SUFFIX = ".j2"
PUBLISHED = "sd14"
GLUED = "application/papermill.record/text/plain"


@dataclass(frozen=True)
class Evidence:
    """What templates ask: claims with their verdicts, measured figures, premises, papers, remedies; `substrate` is the one the book was made on,
    `static` the folder with the front page's pictures."""

    root: Path
    substrate: str
    notebooks: Sequence[Path]
    others: Sequence[Verdict] = ()
    static: Path | None = None
    repository: str = ""

    @cached_property
    def entries(self) -> list[Entry]:
        """All claims in the order of data/claims.yml."""
        return collect(self.root / "data" / "claims.yml", self.notebooks, self.others)

    @cached_property
    def papers(self) -> dict[str, papers.Paper]:
        """The texts by key, as papers are called: by their authors."""
        return papers.read(self.root / "book" / "references.bib")

    @cached_property
    def premises(self) -> list[Finding]:
        """Kept figures of what the substrate must show before claims are tested on it."""
        return kept(self.substrate)

    @cached_property
    def remedies(self) -> remedies.Remedies:
        """Registered settings of all mitigations on this substrate."""
        return remedies.read(self.substrate)

    @cached_property
    def counted_verdicts(self) -> dict[str, dict[str, int]]:
        """How often each verdict was reached, by substrate, in the order of VERDICTS."""
        return {name: {verdict: found[verdict] for verdict in VERDICTS if found[verdict]} for name, found in counts(self.entries).items()}

    @property
    def measured_before(self) -> bool:
        """Whether verdicts are on a model that had been measured before what is asked of claims was fixed."""
        return any(verdict.before for entry in self.entries for name, verdict in entry.verdicts.items() if name == self.substrate)

    @cached_property
    def citation(self) -> str:
        """CITATION.cff as BibTeX."""
        return papers.citation(self.root / "CITATION.cff")

    @cached_property
    def explorer(self) -> dict[str, Any] | None:
        """What the pictures of the front page are of (`memlib.companion.book.explorer.about`), or None where there are none."""
        return about(self.static or self.root / "book" / "_static")

    @cached_property
    def directions(self) -> list[tuple[str, list[Row]]]:
        """The rows of the plot of reported against measured directions, by paper."""
        by_text: dict[str, list[Row]] = {}
        for entry in self.entries:
            by_text.setdefault(self.papers[entry.claim.text].short, []).append(row_of(entry, self.verdict(entry.claim.id), self.link(entry.claim.id)))
        return list(by_text.items())

    @property
    def margin(self) -> float:
        """The share of alignment that a remedy may cost other prompts."""
        return remedies.MARGIN

    @property
    def miniature(self) -> bool:
        """Whether the book was made on a model that this project trained."""
        return self.substrate in SUBSTRATES and SUBSTRATES[self.substrate].data().small

    @property
    def tested(self) -> int:
        """How many claims were measured."""
        return sum(any(verdict.n_prompts for verdict in entry.verdicts.values()) for entry in self.entries)

    @property
    def texts(self) -> list[str]:
        """Keys of the papers that claims are of."""
        return list(dict.fromkeys(entry.claim.text for entry in self.entries))

    @property
    def threshold(self) -> float | None:
        """The similarity from which a picture is a copy, as verdicts compared with it."""
        own = [entry.verdicts[self.substrate] for entry in self.entries if self.substrate in entry.verdicts]
        return next((part.bound for verdict in own for part in verdict.parts if "(strict)" in part.asked and part.bound is not None), None)

    def scores(self, metric: str, *prompt_sets: str) -> Beside:
        """A score of every mitigation on prompts so labelled, on all models of which there are tables."""
        return beside(metric, prompt_sets)

    @property
    def second_hand(self) -> int:
        """How many claims are tested of which the paper itself was not read, but its abstract or a summary."""
        return sum(bool(re.match("abstract|summary", entry.claim.place, re.IGNORECASE)) for entry in self.entries)

    @property
    def published_run(self) -> list[str]:
        """The models, other than miniatures, that drew pictures for any verdict; a count of published lists is no run of a model."""
        drew = {name for entry in self.entries for name, verdict in entry.verdicts.items() if verdict.n_seeds}
        return sorted(name for name in drew if not (name in SUBSTRATES and SUBSTRATES[name].data().small))

    def entry(self, claim: str) -> Entry:
        """A claim with its verdicts."""
        return next(entry for entry in self.entries if entry.claim.id == claim)

    def verdict(self, claim: str) -> Verdict | None:
        """The verdict on this book's substrate, or else the first in which something was measured."""
        found = self.entry(claim).verdicts
        own = found.get(self.substrate)
        return own if own is not None and (own.n_prompts or len(found) == 1) else next((v for v in found.values() if v.n_prompts), own)

    def figure(self, claim: str, *names: str) -> Estimate | None:
        """A measured figure of a claim by the first of these names that it has; None where none was measured.

        Names are those of parts, and of values that the claim's notebook keeps for prose.
        """
        verdict = self.verdict(claim)
        if verdict is None:
            return None
        for name in names:
            estimate = verdict.quantities.get(name) or self._glued(self.entry(claim).notebook, name, verdict)
            if estimate is not None:
                return estimate
        return None

    def _glued(self, notebook: str | None, name: str, verdict: Verdict) -> Estimate | None:
        """An estimate that a notebook keeps as text (``0.42 [0.15, 0.69]``), on as much as its verdict rests on."""
        path = next((path for path in self.notebooks if path.stem == notebook), None)
        if path is None:
            return None
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", ()):
                if output.get("metadata", {}).get("scrapbook", {}).get("name") == name:
                    numbers = re.fullmatch(r"'(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]'", "".join(output["data"].get(GLUED, "")))
                    if numbers is None:
                        return None
                    value, low, high = map(float, numbers.groups())
                    return Estimate(value, low, high, verdict.n_prompts, verdict.n_seeds)
        return None

    def plain(self, method: str) -> str:
        """What pages call a mitigation."""
        return REGISTRY[method].label

    def link(self, claim: str) -> str:
        """The address of a claim's notebook from a page under book/, or of the claim in the ledger where there is no such page."""
        entry = self.entry(claim)
        return f"../notebooks/{entry.notebook}.html" if entry.notebook else f"ledger.html#{claim}"

    def judged_in(self, notebook: str) -> list[Entry]:
        """The claims of a notebook, by its name."""
        return [entry for entry in self.entries if notebook in (entry.notebook, entry.claim.notebook)]

    def columns(self, notebook: str) -> list[str]:
        """The models in which claims of a notebook stand, and Stable Diffusion beside a miniature, before anything was measured on it."""
        found = sorted({name for entry in self.judged_in(notebook) for name in entry.verdicts})
        stands_in = not found or any(name in SUBSTRATES and SUBSTRATES[name].data().small for name in found)
        return found + [PUBLISHED] * (PUBLISHED not in found and stands_in)

    def contrast(self, page: str, metric: str, edit: str) -> Estimate | None:
        """Memorized prompts minus titles seen once, of a metric in a page's kept rows under an edit."""
        rows = read_rows(path_of(page, self.substrate))
        return Rows({}, {str(label): own for label, own in rows.groupby("prompt_set")}, "").contrast(metric, edit)

    def sample(self, claim: str) -> str:
        """On how much a claim's verdict rests, in words."""
        verdict = self.verdict(claim)
        if verdict is None or not verdict.n_prompts:
            return "not measured"
        seeds = f", {counted(verdict.n_seeds, 'seed')} each" if verdict.n_seeds and verdict.unit == "prompt" else ""
        return f"{counted(verdict.n_prompts, verdict.unit)}{seeds}, {verdict.substrate}"

    def words(self, text: str) -> Markup:
        """Text as HTML: keys of texts become their authors, `code` and $formulas$ are set as such, and everything else is shown as it stands."""
        made = []
        for part in re.split(r"(`[^`]+`|\$[^$]+\$)", " ".join(text.split())):
            inner = part[1:-1]
            if part.startswith("`"):
                made.append(html.escape(self.papers[inner].short) if inner in self.papers else f"<code>{html.escape(inner)}</code>")
            elif part.startswith("$") and len(part) > 2:
                made.append(to_mathml(inner, False))
            else:
                made.append(html.escape(part))
        return Markup("".join(made))


def render(source: Path, target: Path, book: Evidence) -> list[Path]:
    """Fill the templates under `source`, write the pages to the same places under `target`, and return them."""
    environment = templates(source, book)
    pages = []
    for template in sorted(source.glob(f"*.md{SUFFIX}")):
        name = template.relative_to(source).as_posix()
        page = target / name.removesuffix(SUFFIX)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(environment.get_template(name).render(book=book), encoding="utf-8")
        pages.append(page)
    return pages


def templates(source: Path, book: Evidence) -> jinja2.Environment:
    """The templates under a folder, with what turns figures and verdicts into words."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(source), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
    )  # fmt: skip
    environment.filters.update({each.__name__: each for each in (told, side, badge, sign, percent, counted, book.words, with_edits, ucfirst)})
    environment.globals["measured"] = partial(measured, book.root)
    return environment


def signed_contents(contents: Mapping[str, Any], titles: Mapping[str, str], entries: Sequence[Entry], substrate: str) -> dict[str, Any]:
    """The table of contents with the verdicts' signs behind each notebook's title; `titles` has the titles by notebook.

    A notebook that is not there (``titles`` lacks it) is left out, and so are parts that are then empty.
    """
    signs: dict[str, str] = {}
    for entry in entries:
        # What was found on several models together stands for this one; what was found on another one does not.
        found = entry.verdicts.get(substrate) or next((verdict for name, verdict in entry.verdicts.items() if name not in SUBSTRATES), None)
        if entry.notebook and found is not None:
            signs[entry.notebook] = signs.get(entry.notebook, "") + sign(found.verdict)
    made: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(contents)))
    for part in made.get("parts", []):
        chapters = []
        for chapter in part["chapters"]:
            stem = chapter["file"].removeprefix("notebooks/")
            if stem == chapter["file"]:
                chapters.append(chapter)
            elif stem in titles:
                chapters.append({**chapter, "title": f"{titles[stem].replace('`', '')} {signs.get(stem, '')}".strip()})
        part["chapters"] = chapters
    if "parts" in made:
        made["parts"] = [part for part in made["parts"] if part["chapters"]]
    return made
