"""Where the notebooks, their executed copies and the site of one substrate stand."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from memlib.base.paths import ROOT

DEFAULT_SUBSTRATE = "minisd-v1"


@dataclass(frozen=True)
class Layout:
    """Paths of one run: everything that is made lies in the folder `made`, ``root/_build`` if it is not given."""

    root: Path = ROOT
    substrate: str = DEFAULT_SUBSTRATE
    made: Path | None = None

    @property
    def folder_name(self) -> str:
        """The substrate's name, or for a checkpoint's path its last part and a short hash of the whole."""
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.substrate):
            return self.substrate
        path = str(Path(self.substrate).expanduser().resolve())
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).name) or "model"
        return f"{stem}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"

    @property
    def parameter(self) -> str:
        """What the notebooks are given: kernels run in another folder, so a checkpoint's path is made absolute."""
        path = Path(self.substrate).expanduser()
        return str(path.resolve()) if path.is_dir() else self.substrate

    @property
    def sources(self) -> Path:
        return self.root / "notebooks"

    @property
    def everything(self) -> Path:
        return self.made or self.root / "_build"

    @property
    def build(self) -> Path:
        return self.everything / self.folder_name

    @property
    def executed(self) -> Path:
        return self.build / "notebooks"

    @property
    def site_source(self) -> Path:
        return self.build / "site"

    @property
    def html(self) -> Path:
        """The site: ``_build/html`` on the default substrate, ``_build/<substrate>/html`` on another."""
        if self.substrate == DEFAULT_SUBSTRATE:
            return self.everything / "html"
        return self.build / "html"

    def notebooks(self) -> list[Path]:
        """The committed notebooks in reading order."""
        return sorted(self.sources.glob("*.ipynb"))
