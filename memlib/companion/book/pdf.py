"""The book on paper: each page of a finished site printed by Chromium to a PDF of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from memlib.base.errors import InputError

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 180  # for one page, on a busy machine


def chromium() -> str | None:
    """Path of Chromium: that in the environment variable CHROMIUM, or the first found."""
    return next((path for name in (os.environ.get("CHROMIUM"), *NAMES) if name and (path := shutil.which(name))), None)


def print_pages(site: Path, pages: Sequence[str], folder: Path, say: Callable[[str], None] = print) -> list[Path]:
    """Print pages of a site, given as paths in it, to ``folder/<its name>.pdf``, and return the files in order.

    Raises InputError where Chromium or a page is missing, or a page is not printed.
    """
    browser = chromium()
    if browser is None:
        raise InputError("Chromium is missing: install it (on Debian: apt-get install chromium) or set CHROMIUM to its path.")
    folder.mkdir(parents=True, exist_ok=True)
    printed = []
    for number, page in enumerate(pages):
        source = site / page
        if not source.is_file():
            raise InputError(f"{page} is not in {site}: run 'make book' or 'make site' first.")
        target = folder / f"{number:02}-{source.stem}.pdf"
        with tempfile.TemporaryDirectory() as profile:  # of its own: a window that is open elsewhere must not take the job
            command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
            command += ["--no-pdf-header-footer", f"--print-to-pdf={target}", source.resolve().as_uri()]
            result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        if result.returncode or not target.is_file():
            raise InputError(f"{page} was not printed; Chromium says: {result.stderr.strip().splitlines()[-1:] or ['nothing']}.")
        say(f"{target.name}")
        printed.append(target)
    return printed
