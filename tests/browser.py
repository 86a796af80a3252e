"""Pages in the system's Chromium, driven by playwright: opened from disk, as a reader does after a build."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from memlib.base.paths import ROOT
from memlib.companion.book import pdf

# The page as drawn: title and heading, pictures that did not load, the scheme in force, text on its ground.
_LOOK = """() => {
  document.querySelectorAll('img').forEach(i => i.loading = 'eager');
  return Promise.all([...document.images].map(i => i.decode().catch(() => 0))).then(() => ({
    title: document.title,
    heading: (document.querySelector('h1') || {innerText: ''}).innerText.trim(),
    broken: [...document.images].filter(i => !i.naturalWidth).map(i => i.src.slice(0, 120)),
    scheme: document.documentElement.dataset.theme || '',
    ground: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    overflow: document.documentElement.scrollWidth - window.innerWidth,
  }));
}"""


@dataclass
class Look:
    """One page as the browser drew it."""

    url: str
    title: str = ""
    heading: str = ""
    scheme: str = ""
    ground: str = ""
    ink: str = ""
    overflow: int = 0
    broken: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def complaints(self) -> list[str]:
        """What is wrong with the page, one sentence each."""
        name = self.url.rsplit("/", 1)[-1]
        found = [f"{name}: the console says: {error}" for error in self.errors]
        found += [f"{name}: picture {source} does not show" for source in self.broken]
        found += [f"{name}: asks {address} for a file, so it is not whole offline" for address in self.outside]
        if not self.heading:
            found.append(f"{name}: the page has no heading")
        if self.overflow > 0:
            found.append(f"{name}: the page is {self.overflow} pixels wider than the window")
        if self.ground == self.ink:
            found.append(f"{name}: text and ground have the same colour")
        return found


def chromium() -> str:
    """Path of Chromium; the test is skipped where there is none."""
    if path := pdf.chromium():
        return path
    pytest.skip("Chromium is missing")


AXE = ROOT / "_build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"


def axe() -> str:
    """The accessibility engine axe-core, which `make axe` installs; the test is skipped where it is missing."""
    if not AXE.is_file():
        pytest.skip("axe-core is missing: run make axe")
    return AXE.read_text(encoding="utf-8")


@contextmanager
def window(scheme: str = "light", width: int = 1280) -> Iterator[Page]:
    """An empty page in a window of so many CSS pixels, for a reader who prefers this colour scheme."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"])
        try:
            yield browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 1000}).new_page()
        finally:
            browser.close()


def opened(page: Page, path: Path) -> Look:
    """Open a page from disk; what the console says and what is asked for from then on is noted in the look."""
    look = Look(path.resolve().as_uri())
    page.on("console", lambda message: look.errors.append(message.text[:300]) if message.type in {"error", "assert"} else None)
    page.on("pageerror", lambda error: look.errors.append(str(error)[:300]))
    page.on("requestfailed", lambda request: look.errors.append(f"{request.url} did not load"))
    local = ("file:", "data:", "blob:", "about:")
    page.on("request", lambda request: None if request.url.startswith(local) else look.outside.append(request.url))
    page.goto(look.url, wait_until="load")
    page.wait_for_timeout(200)  # scripts that run after loading get their say
    return look


def look_at(pages: Sequence[Path], scheme: str = "light", width: int = 1280) -> list[Look]:
    """Each page as the browser drew it, and what it complained of."""
    looks = []
    with window(scheme, width) as first:
        for path in pages:
            page = first.context.new_page()
            look = opened(page, path)
            for name, value in page.evaluate(_LOOK).items():
                setattr(look, name, value)
            page.close()
            looks.append(look)
    return looks
