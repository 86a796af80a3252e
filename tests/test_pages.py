"""Pages made of data, and what is done to every page last: words follow numbers, numbers come from verdicts and tables."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace

import nbformat
import pandas as pd
import pytest
import yaml
from browser import chromium
from bs4 import BeautifulSoup
from PIL import Image

from memlib.companion.book import explorer, facts, finish, pages, papers, pdf, remedies, site
from memlib.companion.book.directions import row_of
from memlib.companion.book.layout import ROOT, Layout
from memlib.companion.book.ledger import collect
from memlib.judging.estimates import Estimate
from memlib.judging.judge import judge
from memlib.judging.verdicts import PartOutcome, Verdict
from memlib.probes import premises

TEMPLATES = sorted((ROOT / "book").rglob("*.j2"))


def evidence(**quantities: tuple[float, float, float]) -> pages.Evidence:
    """A book in which these quantities were measured, by claim and name (``C4a__effect_of_padding``), and nothing else."""
    by_claim: dict[str, dict[str, Estimate]] = {}
    for name, (value, low, high) in quantities.items():
        claim, _, quantity = name.partition("__")
        by_claim.setdefault(claim, {})[quantity] = Estimate(value, low, high, 30, 4)
    copies = (PartOutcome("a copy", "similarity", "strength", "at least 0.75 (strict)", "met", bound=0.75),)
    found = [Verdict(name, "t", "s", "minisd-v1", "holds", "r", 30, 4, measured, copies) for name, measured in by_claim.items()]
    return pages.Evidence(ROOT, "minisd-v1", [], found)


def front(book: pages.Evidence) -> str:
    return pages.templates(ROOT / "book", book).get_template("index.md.j2").render(book=book)


# the front page


@pytest.mark.slow
def test_the_answer_follows_the_intervals():
    """The same template says the opposite where the numbers do."""
    repeated = front(evidence(C4a__effect_of_duplication=(0.4, 0.3, 0.5), C4a__effect_of_padding=(0.0, -0.1, 0.1)))
    padded = front(evidence(C4a__effect_of_duplication=(0.0, -0.1, 0.1), C4a__effect_of_padding=(0.4, 0.3, 0.5)))
    nothing = front(evidence())
    heading = re.compile(r"^# (.+?),", re.MULTILINE)
    assert [heading.search(text).group(1) for text in (repeated, padded, nothing)] == [
        "Repetition in training makes the copy", "The padding token makes the copy", "What makes the copy is open"]  # fmt: skip
    assert "no effect of the padding token was found" in repeated and "0.40</strong> <span>[0.30, 0.50]" in repeated
    assert "Not measured in this book" in nothing


@pytest.mark.slow
def test_the_mechanism_follows_the_intervals():
    gone, kept = (0.2, 0.1, 0.3), (0.9, 0.8, 1.0)
    both = front(evidence(C1a__similarity_c=gone, C2c__similarity_h=gone, C2a__similarity_f=kept))
    words = front(evidence(C1a__similarity_c=gone, C2c__similarity_h=kept, C2a__similarity_f=kept))
    assert "padding is one of the places where it is read from" in both
    assert "read from the words, and not shown to be read from the padding" in words


def test_no_template_types_a_figure():
    for template in TEMPLATES:
        text = re.sub(r"<svg.*?</svg>|<script.*?</script>|\{#.*?#\}|`[^`]*`", "", template.read_text(encoding="utf-8"), flags=re.DOTALL)
        if template.name != "substrates.md.j2":  # tells how MiniSD is made
            assert not re.findall(r"(?<![\w.])[01]\.\d+", text), template.name


def test_figures_on_the_front_page_are_those_of_the_verdicts():
    notebooks = Layout().notebooks()
    book = pages.Evidence(ROOT, "minisd-v1", notebooks)
    text = front(book)
    cause = book.figure("C4a", "effect_of_duplication")
    assert cause is not None and f"<strong>{cause.value:.2f}</strong> <span>[{cause.low:.2f}, {cause.high:.2f}]</span>" in text
    assert len(BeautifulSoup(text, "html.parser").select("table.directions tbody th[scope=row]")) == len(book.entries)
    assert f"{book.second_hand} of {len(book.entries)} claims are tested against an abstract or a news summary" in text


def test_claims_of_an_abstract_or_a_summary_are_counted():
    book = evidence()
    assert book.second_hand == sum(entry.claim.text in ("attn", "dori") for entry in book.entries)


def test_a_count_of_published_lists_is_no_run_of_a_model():
    """Only what drew pictures was run: without it the front page says that Stable Diffusion was not run here."""
    counted, drawn = (replace(evidence(C3b__x=(0, 0, 0)).others[0], substrate=name, n_seeds=seeds) for name, seeds in (("published lists", 0), ("sd14", 4)))
    lists, run = (pages.Evidence(ROOT, "minisd-v1", [], [verdict]) for verdict in (counted, drawn))
    assert lists.published_run == [] and run.published_run == ["sd14"]
    assert "Stable Diffusion itself was not run here" in front(lists) and "sd14 were run" in front(run)


def test_papers_are_called_by_their_authors():
    book = evidence()
    assert [book.papers[key].short for key in ("clip", "basin", "attn", "dori")] == [
        "Kim and No (2026)", "Jain et al. (2025)", "Ren et al. (2024)", "Kowalczuk et al. (2025)"]  # fmt: skip
    assert book.words("`clip` sets `<eot>` to 0 & stops") == "Kim and No (2026) sets <code>&lt;eot&gt;</code> to 0 &amp; stops"
    assert pages.Evidence(ROOT, "minisd-v1", []).citation.startswith("@software{companion,")


def test_a_row_of_directions_is_drawn_on_the_side_that_the_text_says():
    """C1b says that alignment falls: a fall is drawn to the right of the bound, a rise to the left."""
    entry = next(entry for entry in collect(ROOT / "data" / "claims.yml", []) if entry.claim.id == "C1b")
    for value, right in ((-0.5, True), (0.5, False)):
        measured = Estimate(value, value - 0.1, value + 0.1, 30, 4)
        row = row_of(entry, judge("C1b", [measured, None, None], "minisd-v1"), "")
        assert row.bar is not None and (row.bar.low > 0) is right and (row.bar.high > 0) is right
        assert row.measured[0].state == ("met" if right else "refuted")


# remedies


def test_the_recommended_remedy_follows_the_stated_rule():
    """By means taken with pandas from the kept table."""
    found = remedies.read("minisd-v1")
    pages_of = {n: pd.read_parquet(ROOT / "data" / "scores" / f"{page}-minisd-v1.parquet") for n, page in ((6, "16_all_mitigations"), (18, "08_mitigations"))}
    if found.main is None:
        pytest.skip("no table is kept for the default substrate")
    tried_on_more = {remedy.name for remedy in found.main.remedies if remedy.n_prompts == 18}
    assert tried_on_more == {"pad-swap", "pad-swap-eot-mask", "pad-mask", "sot-pad"}
    for remedy in found.main.remedies:
        rows = pages_of[remedy.n_prompts]
        own = rows[(rows["prompt_set"] == "memorized") & (rows["metric"] == "similarity to training")]
        params = remedies.name_of(remedy.method)[1]
        mean = own[(own["method"] == remedy.name) & (own["params"] == params)]["value"].mean()
        assert remedy.similarity.value == pytest.approx(mean)
    leader = found.leader
    assert leader is not None and not leader.oracle and leader.change.high < 0 and leader.others.value >= -remedies.MARGIN
    better = [r for r in found.main.remedies if r.similarity.value < leader.similarity.value]
    assert all(r.oracle or r.others.value < -remedies.MARGIN or r.change.high >= 0 for r in better)


# what is done to every page last


def test_tables_get_heads_captions_and_frames():
    table = "<table class='dataframe'><thead><tr><th></th><th>a</th></tr></thead><tbody><tr><th>x</th><td>1</td></tr></tbody></table>"
    page = f"<h2>Edits<a class=\"headerlink\" href='#x'>#</a></h2>{table}"
    table = BeautifulSoup(finish.finished_page(page), "html.parser").table
    assert [head.get("scope") for head in table.find_all("th")] == ["col", "row"] and table.thead.td is not None
    assert table.caption.get_text() == "Edits"
    assert table.parent["class"] == ["table-frame"] and table.parent["tabindex"] == "0" and table.parent["aria-label"] == "Table: Edits"
    assert finish.finished_page(finish.finished_page(page)) == finish.finished_page(page)


def test_a_table_that_has_all_that_is_left_alone():
    table = "<table><caption>c</caption><thead><tr><th scope='col'>a</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table>"
    page = f"<div class='table-frame' role='region'>{table}</div>"
    assert finish.finished_page(page) == page


# navigation, notebooks, repository


def test_signs_of_verdicts_stand_behind_entries_of_the_contents():
    judged = zip(evidence(C2a__x=(0, 0, 0), C2b__x=(0, 0, 0)).others, ("holds", "does not hold"))
    entries = collect(ROOT / "data" / "claims.yml", [], [replace(verdict, verdict=word) for verdict, word in judged])
    entries = [replace(entry, notebook=entry.claim.notebook) if entry.verdicts else entry for entry in entries]
    contents = {"parts": [{"caption": "p", "chapters": [{"file": "notebooks/02_pad_embeddings"}, {"file": "notebooks/gone"}, {"file": "book/method"}]},
                          {"caption": "q", "chapters": [{"file": "notebooks/gone"}]}]}  # fmt: skip
    made = pages.signed_contents(contents, {"02_pad_embeddings": "Is `<eot>` it?"}, entries, "minisd-v1")
    assert made["parts"] == [{"caption": "p", "chapters": [{"file": "notebooks/02_pad_embeddings", "title": "Is <eot> it? ✓✗"}, {"file": "book/method"}]}]


def test_every_notebook_is_in_the_contents():
    listed = [c["file"] for part in yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"] for c in part["chapters"]]
    assert sorted(name for name in listed if name.startswith("notebooks/")) == [f"notebooks/{path.stem}" for path in Layout().notebooks()]


@pytest.mark.parametrize("repository", ["", "https://github.com/someone/memlib"])
def test_a_downloaded_notebook_says_how_to_get_the_package(tmp_path, repository):
    title = site.stage_notebook(ROOT / "notebooks" / "04_token_lengths.ipynb", tmp_path / "a.ipynb", {}, repository)
    staged = nbformat.read(tmp_path / "a.ipynb", as_version=4)
    first = staged.cells[0]
    assert title and first.cell_type == "code" and first.metadata.tags == ["remove-cell"]
    assert ("git clone" in first.source and repository in first.source) if repository else ("clone of the repository" in first.source)
    if not repository:
        compile(first.source, "cell", "exec")  # with an address it has a magic command


def test_links_to_the_repository_come_from_one_address():
    config = {"html": {"use_repository_button": False}}
    assert site.with_repository(config, "") == config
    github, elsewhere = (site.with_repository(config, f"https://{host}/a/b") for host in ("github.com", "example.org"))
    assert github["repository"]["url"] == "https://github.com/a/b" and "colab_url" in github["launch_buttons"]
    assert "launch_buttons" not in elsewhere and elsewhere["html"]["use_repository_button"]


def test_the_address_is_read_from_the_citation_file(tmp_path):
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    path = tmp_path / "CITATION.cff"
    path.write_text(text + '\nrepository-code: "https://example.org/x/"\n', encoding="utf-8")
    assert papers.repository(path) == "https://example.org/x" and "https://example.org/x" in papers.citation(path)
    path.write_text(re.sub(r"^repository-code.*$", "", text, flags=re.MULTILINE), encoding="utf-8")
    assert papers.repository(path) == ""


# pictures of the front page


def test_the_explorer_is_small_whole_and_of_the_model_that_the_pages_are_of():
    script = (ROOT / "book" / "_static" / explorer.PICTURES).read_text(encoding="utf-8")
    about = explorer.about(ROOT / "book" / "_static")
    data = json.loads(script.partition("=")[2].rstrip().rstrip(";"))
    assert len(script) < 1_000_000 and "http" not in script
    line = facts.read(ROOT)["02_pad_embeddings"]["provenance"][0]
    assert f"weights {about['weights']}" in line  # `make outputs` makes both
    for prompt in data["prompts"]:
        sheet = Image.open(io.BytesIO(base64.b64decode(prompt["sheet"].partition(",")[2])))
        columns = len(data["edits"]) + prompt["training"]
        assert sheet.mode == "P" and sheet.width * len(data["seeds"]) == sheet.height * columns


# premises


def test_kept_premises_come_back(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_DATA", str(tmp_path))
    (tmp_path / "premises.yml").write_text((ROOT / "data" / "premises.yml").read_text(encoding="utf-8"), encoding="utf-8")
    figures = premises.figures(tmp_path / "premises.yml")
    found = [premises.Finding(figures["psnr"], Estimate(24.0, 23.5, 24.5, 200, 1)), premises.Finding(figures["named"], None, "not measured: nobody looked")]
    premises.keep("model", found)
    premises.keep("model", [premises.Finding(figures["psnr"], Estimate(31.0, 30.5, float("nan"), 200, 1))])
    first, second = premises.kept("model")
    assert first.estimate.value == 31 and first.estimate.high != first.estimate.high and second.state == "not measured"
    assert premises.kept("other") == []


# paper


@pytest.mark.browser
def test_a_page_is_printed(tmp_path):
    chromium()
    (tmp_path / "a.html").write_text("<h1>On paper</h1>", encoding="utf-8")
    (made,) = pdf.print_pages(tmp_path, ["a.html"], tmp_path / "pdf", say=lambda line: None)
    assert made.read_bytes().startswith(b"%PDF")


def test_icons_that_no_page_names_are_left_out(tmp_path):
    icons = tmp_path / finish.ICONS
    icons.parent.mkdir(parents=True)
    icons.write_text(
        'var a={bars:[448,512,["navicon"],"f0c9","M0 96C0"],"circle-half":[1,2,[9681,"adjust"],"f042",["M1","M2"]],monero:[496,512,[],"f3d0","M3"]};'
    )
    (tmp_path / "page.html").write_text('<i class="fa-solid fa-bars"></i><i class="fas fa-adjust"></i>', encoding="utf-8")
    finish.finish(tmp_path)
    assert icons.read_text() == 'var a={bars:[448,512,["navicon"],"f0c9","M0 96C0"],"circle-half":[1,2,[9681,"adjust"],"f042",["M1","M2"]],};'
