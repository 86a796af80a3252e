"""The site: built from the committed notebooks and looked at in headless Chromium; and the checks themselves."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest
from browser import axe, look_at, opened, window
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from memlib.base.errors import InputError
from memlib.companion.book import facts, mathml, times
from memlib.companion.book.check import check_site
from memlib.companion.book.layout import ROOT, Layout
from memlib.companion.book.site import build, expected_pages, stage
from memlib.judging.claims import load_claims
from memlib.judging.estimates import Estimate
from memlib.judging.verdicts import PartOutcome, Verdict

NASTY = "</td><script>document.title = 'taken over'</script><b>&amp; \"quoted\" 日本語"


def verdict_on(claim: str, substrate: str, verdict: str) -> Verdict:
    measured = Estimate(0.91, 0.88, 0.94, 9, 3)
    part = PartOutcome("near the original", "similarity (b)", "strength", "at least 0.75", "met", estimate=measured, bound=0.75)
    return Verdict(claim, "t", "s", substrate, verdict, "r", 9, 3, {"near the original": measured}, (part,))


def executed_notebook(path: Path, *verdicts: Verdict) -> Path:
    shown = new_output("display_data", {"text/html": pd.DataFrame({"prompt": [NASTY]}).to_html(), "text/plain": ""})
    cells = [new_markdown_cell("# A claim\n\nWith $v_{\\mathrm{eot}} \\leftarrow 0$ in it.")]
    cells.append(new_code_cell("table", execution_count=1, outputs=[shown]))
    cells += [new_code_cell("v", execution_count=2, outputs=[new_output("display_data", v._repr_mimebundle_())]) for v in verdicts]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel, "papermill": {"exception": None}}), path)
    return path


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """The book as committed, built apart from any that the reader has made."""
    layout = Layout(made=tmp_path_factory.mktemp("book"))
    build(layout, committed=True)
    return layout


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A book with one notebook of our own, run on two substrates, for what the committed ones need not show."""
    root = tmp_path_factory.mktemp("example")
    for name in ("_config.yml", "_toc.yml", "CITATION.cff"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "book", root / "book")
    (root / "memlib").symlink_to(ROOT / "memlib")  # its pages of the package
    (root / "data").mkdir()
    for name in ("claims.yml", "coverage.csv"):
        shutil.copy(ROOT / "data" / name, root / "data")
    source = executed_notebook(root / "notebooks" / "01_prompt_embeddings.ipynb", verdict_on("C1a", "minisd-v1", "holds in part"))
    layout = Layout(root=root, substrate="sd14")
    layout.executed.mkdir(parents=True)
    # Pages of the book link to notebooks; those that it does not have here are stood in for.
    for page in (root / "book").glob("*.md*"):
        for name in re.findall(r"\(\.\./notebooks/(\w+)\)", page.read_text(encoding="utf-8")):
            for folder in (source.parent, layout.executed):
                executed_notebook(folder / f"{name}.ipynb")
    executed_notebook(layout.executed / source.name, verdict_on("C1a", "sd14", "does not hold"))
    (root / "data" / "measured").mkdir()
    large = dataclasses.replace(verdict_on("C1b", "sd21", "holds"), n_prompts=458)
    kept = {"01_prompt_embeddings": {"run": {}, "verdicts": [large.to_json()]}}
    (root / "data" / "measured" / "verdicts-sd21.json").write_text(json.dumps(kept), encoding="utf-8")
    build(layout)
    return layout


# the book


@pytest.mark.browser
def test_the_book_is_whole(committed):
    assert check_site(committed.html, expected_pages(committed)) == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_opens_in_the_browser(committed, scheme):
    pages = [committed.html / name for name in expected_pages(committed)[1:]]
    looks = look_at(pages, scheme)
    assert [what for look in looks for what in look.complaints()] == []
    assert {look.scheme for look in looks} == {scheme}


@pytest.mark.browser
def test_light_and_dark_differ(committed):
    page = [committed.html / "book" / "index.html"]
    (light,), (dark,) = look_at(page, "light"), look_at(page, "dark")
    assert light.ground != dark.ground and light.ink != dark.ink


# Why a page may have more than 20 screens: what it lists is looked up and not read through.
LONG = {"book/api": "the whole package"}
SCREEN, SCREENS, WEIGHT = 1000, 20, 3_000_000


@pytest.mark.slow
@pytest.mark.browser
def test_pages_are_fit_for_those_who_listen(committed):
    """By axe-core, on every page; of findings of lesser weight there may be some."""
    script, found = axe(), []
    with window() as first:
        for name in expected_pages(committed)[1:]:
            page = first.context.new_page()
            opened(page, committed.html / name)
            page.evaluate(script)
            for rule, impact, nodes in page.evaluate("axe.run().then(r => r.violations.map(v => [v.id, v.impact, v.nodes.slice(0, 3).map(n => n.html)]))"):
                if impact in ("critical", "serious"):
                    found.append(f"{name}: {rule} ({impact}): {nodes}")
            page.close()
    assert found == []


@pytest.mark.browser
def test_tables_have_captions_and_heads_with_a_scope(committed):
    for name in expected_pages(committed)[1:]:
        page = BeautifulSoup((committed.html / name).read_text(encoding="utf-8"), "html.parser")
        for table in page.select("article table"):
            assert table.caption is not None and table.caption.get_text().strip(), f"{name}: {str(table)[:80]}"
            assert all(head.get("scope") and head.get_text(strip=True) for head in table.find_all("th")), f"{name}: {table.caption.get_text()}"


@pytest.mark.browser
def test_pages_are_neither_heavy_nor_endless(committed):
    heights = {}
    with window() as first:
        for name in expected_pages(committed)[1:]:
            page = first.context.new_page()
            files: set[str] = set()
            page.on("request", lambda request, files=files: files.add(request.url))
            opened(page, committed.html / name)
            paths = {Path(unquote(urlsplit(url).path)) for url in files if url.startswith("file:")}
            assert sum(path.stat().st_size for path in paths) < WEIGHT, name
            heights[name] = page.evaluate("document.documentElement.scrollHeight") / SCREEN
            page.close()
    assert [name for name, screens in heights.items() if screens > SCREENS and not name.startswith(tuple(LONG))] == []


@pytest.mark.browser
def test_the_ledger_is_of_use_on_a_phone(committed):
    with window(width=390) as page:
        look = opened(page, committed.html / "book" / "ledger.html")
        assert look.errors == [] and page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("document.documentElement.scrollHeight") < 12 * SCREEN
        line = page.locator("details.claim").first
        line.locator("summary").click()
        assert line.locator("table").first.is_visible()


@pytest.mark.browser
def test_the_explorer_follows_the_keyboard_and_tells_without_scripts(committed):
    index = committed.html / "book" / "index.html"
    with window() as page:
        look = opened(page, index)
        edit, told = page.locator("#explorer-edit"), page.locator(".explorer-told")
        before, where = told.inner_text(), page.locator(".explorer-frame img").nth(1).evaluate("image => image.style.left")
        edit.focus()
        page.keyboard.press("ArrowDown")
        assert told.inner_text() != before and page.locator(".explorer-frame img").nth(1).evaluate("image => image.style.left") != where
        assert page.locator(".explorer-frame img").evaluate_all("images => images.every(image => image.naturalWidth > 0)")
        assert look.errors == look.outside == []
        still = page.context.browser.new_context(java_script_enabled=False).new_page()
        still.goto(index.resolve().as_uri())
        assert still.locator(".explorer-static").is_visible() and not still.locator(".explorer-live").first.is_visible()
        assert still.locator(".strips img").first.is_visible()


def test_the_ledger_lists_every_claim(committed):
    text = BeautifulSoup((committed.html / "book" / "ledger.html").read_text(encoding="utf-8"), "html.parser")
    shown = [tag.get_text() for tag in text.select("details.claim > summary .claim-id")]
    assert sorted(shown) == sorted(load_claims())
    assert text.select_one(".verdict-not-tested-yet") is not None or "not tested yet" not in text.get_text()


def test_verdicts_of_two_substrates_stand_side_by_side(example):
    ledger = BeautifulSoup((example.html / "book" / "ledger.html").read_text(encoding="utf-8"), "html.parser")
    claim = ledger.select_one("details.claim#C1a")
    assert [tag.get_text() for tag in claim.select("summary .verdict")] == ["✗ does not hold", "◐ holds in part"]
    assert claim.select_one("a")["href"] == "../notebooks/01_prompt_embeddings.html"
    # Measured and reported figures have tables of their own, and the captions say which is which.
    tables = {table.caption.get_text(): table.get_text() for table in claim.select("table")}
    assert any("0.91" in text for caption, text in tables.items() if caption.startswith("Measured on sd14"))
    assert any("0.55" in text and "0.91" not in text for caption, text in tables.items() if caption == "Reported by Kim and No (2026)")


def test_signs_of_verdicts_stand_in_the_navigation(example):
    page = BeautifulSoup((example.html / "book" / "method.html").read_text(encoding="utf-8"), "html.parser")
    (entry,) = [link for link in page.select("nav.bd-links a") if "01_prompt_embeddings" in link["href"]]
    assert entry.get_text().strip() == "A claim ✗"


def test_a_page_says_of_each_cell_whether_it_was_measured(example):
    """C1a was run on both substrates, C1b on none; a third substrate's result is kept in the repository."""
    page = BeautifulSoup((example.html / "notebooks" / "01_prompt_embeddings.html").read_text(encoding="utf-8"), "html.parser")
    (table,) = page.select("table.beside")
    heads = [tag.get_text() for tag in table.select("thead th")]
    assert heads == ["Claim", "Reported", "minisd-v1", "sd14", "sd21"]
    rows = {row.select_one(".claim-id").get_text(): [cell.get_text(" ", strip=True) for cell in row.select("td")] for row in table.select("tbody tr")}
    reported, mini, sd14, sd21 = rows["C1a"]
    assert reported.startswith("reported") and "0.55" in reported
    assert "holds in part" in mini and "measured, 9 prompts, 3 seeds" in mini and "0.91" in mini
    assert "does not hold" in sd14 and "measured" in sd14 and sd21 == "not measured"
    _, mini, sd14, sd21 = rows["C1b"]
    assert mini == sd14 == "not measured" and "✓ holds" in sd21 and "measured, 458 prompts" in sd21


@pytest.mark.browser
def test_prompts_are_shown_and_not_obeyed(example):
    page = example.html / "notebooks" / "01_prompt_embeddings.html"
    cell = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").select_one("tbody td")
    assert cell.get_text() == NASTY
    (look,) = look_at([page])
    assert look.complaints() == [] and "taken over" not in look.title


def test_formulas_need_no_script(example):
    page = BeautifulSoup((example.html / "book" / "method.html").read_text(encoding="utf-8"), "html.parser")
    assert len(page.find_all("math")) > 10
    assert not [tag for tag in page.find_all("script") if "mathjax" in (tag.get("src") or tag.get_text()).lower()]


def test_a_failed_run_is_not_shown(tmp_path):
    path = executed_notebook(tmp_path / "a.ipynb")
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.papermill.exception = True
    nbformat.write(notebook, path)
    with pytest.raises(InputError, match="a is not shown: its last run ended in an exception"):
        stage(Layout(made=tmp_path), [path])


def test_a_warning_stops_the_build(tmp_path):
    for folder in ("data", "book/_static", "notebooks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data" / "claims.yml").write_text("[]", encoding="utf-8")
    shutil.copy(ROOT / "_config.yml", tmp_path)
    shutil.copy(ROOT / "book" / "references.bib", tmp_path / "book")
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/index\n", encoding="utf-8")
    (tmp_path / "book" / "index.md").write_text("# Title\n\n{doc}`nowhere`\n", encoding="utf-8")
    said: list[str] = []
    with pytest.raises(InputError, match="complained"):
        build(Layout(root=tmp_path), committed=True, say=said.append)
    assert "nowhere" in said[0] and not Layout(root=tmp_path).html.exists()


# the checks


def write(site: Path, **pages: str) -> None:
    for name, body in pages.items():
        html = f"<!doctype html><html><head><title>{name}</title></head><body><h1>{name}</h1>{body}</body></html>"
        (site / f"{name}.html").write_text(html, encoding="utf-8")


@pytest.mark.parametrize(
    "body, problem",
    [
        ('<a href="gone.html">x</a>', "gone.html leads nowhere"),
        ('<a href="two.html#gone">x</a>', "no such place"),
        ('<img src="gone.png" alt="A cat">', "gone.png leads nowhere"),
        ('<img src="here.png" alt="here.png">', "no alternative text"),
        ('<img src="here.png">', "no alternative text"),
        ('<script src="https://example.org/x.js"></script>', "from elsewhere"),
        ('<meta http-equiv="Refresh" content="0; url=gone.html">', "gone.html leads nowhere"),
    ],
)
def test_what_is_broken_is_found(tmp_path, body, problem):
    (tmp_path / "here.png").write_bytes(b"")
    write(tmp_path, one=body, two="<p id='there'>")
    (found,) = check_site(tmp_path, ["one.html"])
    assert problem in found and found.startswith("one.html")


def test_what_is_whole_passes(tmp_path):
    (tmp_path / "here.png").write_bytes(b"")
    links = '<a href="two.html#there">x</a><a href="#own">y</a><p id="own"><a href="https://example.org/">z</a>'
    write(tmp_path, one=links + '<img src="here.png" alt="A cat">', two="<p id='there'>")
    assert check_site(tmp_path, ["one.html", "two.html"]) == []
    assert check_site(tmp_path, ["three.html"]) == ["three.html is missing"]


@pytest.mark.browser
@pytest.mark.parametrize(
    "body, problem",
    [
        ("<script>console.error('a complaint')</script>", "a complaint"),
        ("<script>throw new Error('an exception')</script>", "an exception"),
        ('<img src="gone.png" alt="A cat">', "does not show"),
        ('<script src="gone.js"></script>', "gone.js"),
        ('<img src="http://127.0.0.1:9/x.png" alt="A cat">', "not whole offline"),
        ("<div style='width: 3000px'>wide</div>", "wider than the window"),
    ],
)
def test_what_the_browser_complains_of_is_found(tmp_path, body, problem):
    write(tmp_path, one=body)
    (look,) = look_at([tmp_path / "one.html"])
    assert any(problem in what for what in look.complaints())


def test_times_are_shown_as_they_were_written(tmp_path):
    """Texts of a file as a table with where they come from below, and of what is not there nothing."""
    (tmp_path / "data" / "bench").mkdir(parents=True)
    (tmp_path / "data" / "bench" / "store.csv").write_text('pictures,rate,from\n"1,000",12,"a machine"\n"2,000",,"a machine"\n', encoding="utf-8")
    assert times.measured(tmp_path, "store").split("\n") == ["", "| pictures | rate |", "| --- | --- |", "| 1,000 | 12 |", "| 2,000 |  |", "", "a machine"]
    assert times.measured(tmp_path, "sampling") == times.measured(tmp_path, "notebooks") == times.MISSING
    facts.write(tmp_path, {"a": {"duration": 90.0, "pictures": 1200}, "b": {"duration": 30.0}})
    shown = times.measured(tmp_path, "notebooks").split("\n")
    assert "| [a](../notebooks/a) | 1.5 | 75% | 1,200 |" in shown and shown[-1].startswith("All notebooks: 2 minutes")


def test_formulas_become_mathml():
    inline, block = mathml.to_mathml(r"v_{\mathrm{eot}} \leftarrow 0", False), mathml.to_mathml("x^2", True)
    assert 'display="inline"' in inline and "<msub>" in inline and 'display="block"' in block


# files at the top


def test_pictures_and_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_a_formula_runs_nothing():
    """Text inside a formula is text, whoever wrote the claim."""
    for latex in (r'\text{<img src="x" onerror="alert(1)">}', "a<script>alert(1)</script>b", r"\mathrm{<b onclick='x'>}"):
        made = BeautifulSoup(mathml.to_mathml(latex, False), "html.parser")
        assert made.find("math") is not None
        assert not made.find_all(["img", "script", "b"]) and not [name for tag in made.find_all() for name in tag.attrs if name.startswith("on")]
    assert "javascript" not in mathml.to_mathml(r"\href{javascript:alert(1)}{x}", False)
    assert 'href="https://example.org"' in mathml.to_mathml(r"\href{https://example.org}{x}", False)
