"""Reading a finished site: pages there, internal links and images whole, every picture described."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup


@dataclass
class Page:
    """What one HTML page offers and asks for."""

    path: Path
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    resources: list[str] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)


def read_page(path: Path) -> Page:
    """Parse a page: its anchors, the targets of its links, the files it loads, its pictures with their alt text."""
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    page = Page(path)
    page.anchors = {str(tag["id"]) for tag in soup.find_all(id=True)} | {str(tag["name"]) for tag in soup.find_all("a", attrs={"name": True})}
    page.links = [str(tag["href"]) for tag in soup.find_all("a", href=True)]
    # A page that only sends the reader on has its one link there.
    for tag in soup.find_all("meta", attrs={"http-equiv": re.compile("refresh", re.I)}):
        page.links.append(str(tag["content"]).partition("url=")[2])
    page.images = [(str(tag.get("src", "")), str(tag.get("alt") or "").strip()) for tag in soup.find_all("img")]
    page.resources = [src for src, _ in page.images]
    page.resources += [str(tag["src"]) for tag in soup.find_all(["script", "source", "video", "iframe"], src=True)]
    page.resources += [str(tag["href"]) for tag in soup.find_all("link", href=True) if _loads(tag.get_attribute_list("rel"))]
    return page


def check_site(site: Path, expected: list[str]) -> list[str]:
    """Everything wrong with the files of a site, one sentence each; an empty list means it is whole."""
    problems = [f"{name} is missing" for name in expected if not (site / name).is_file()]
    pages = {path.resolve(): read_page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}
    for page in pages.values():
        name = page.path.relative_to(site).as_posix()
        for target in page.links:
            problems += [f"{name}: {what}" for what in _broken(target, page, pages)]
        for target in page.resources:
            if urlsplit(target).scheme in {"http", "https"} or target.startswith("//"):
                problems.append(f"{name}: loads {target} from elsewhere, so it is not whole offline")
            else:
                problems += [f"{name}: {what}" for what in _broken(target, page, pages)]
        for src, alt in page.images:
            # Without a description of its own a notebook's figure gets its file name for one.
            if not alt or alt in src or alt.startswith(".."):
                problems.append(f"{name}: picture {src[:60]} has no alternative text")
    return problems


def _loads(rel: list[Any]) -> bool:
    return bool({"stylesheet", "icon", "preload", "modulepreload"} & set(rel))


def _broken(target: str, page: Page, pages: dict[Path, Page]) -> list[str]:
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:  # addresses elsewhere, mail, data: are not ours to follow
        return []
    file = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path.resolve()
    if file.is_dir():
        file = file / "index.html"
    if not file.is_file():
        return [f"{target} leads nowhere"]
    if parts.fragment and file in pages and unquote(parts.fragment) not in pages[file].anchors:
        return [f"{target}: there is no such place on that page"]
    return []
