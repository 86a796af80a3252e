"""Fetching the npm packages that the drawings and names come from."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from memlib.base.errors import InputError
from memlib.models.minisd.ingredients import SOURCES, build
from memlib.models.minisd.paths import minisd_folder

VERSIONS = {"openmoji": "17.0.0", "emoji-datasource-google": "16.0.0", "emoji-datasource-twitter": "16.0.0",
            "@lobehub/fluent-emoji-3d": "1.1.0"}  # fmt: skip


def fetch_packages(target: Path) -> None:
    """Fetch and unpack the four packages into `target`, one folder each; raises InputError without npm or network."""
    if shutil.which("npm") is None:
        raise InputError("npm is not installed; install Node.js, or unpack the packages yourself and pass --packages FOLDER.")
    assert {name for name, _, _ in SOURCES.values()} | {"openmoji"} == set(VERSIONS)
    for name, version in VERSIONS.items():
        done = subprocess.run(["npm", "pack", f"{name}@{version}"], cwd=target, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"npm could not fetch {name}@{version}; check the network, or pass --packages FOLDER.")
        archive = target / done.stdout.strip().splitlines()[-1]
        with tarfile.open(archive) as tar:
            tar.extractall(target / "unpacked", filter="data")
        (target / "unpacked" / "package").rename(target / name.lstrip("@").replace("/", "-"))
        archive.unlink()


def build_data(packages: Path | None) -> None:
    """Write data/minisd/ingredients from `packages`, or from freshly fetched ones."""
    out = minisd_folder() / "ingredients"
    if packages is not None:
        count = build(packages, out)
    else:
        with tempfile.TemporaryDirectory() as folder:
            fetch_packages(Path(folder))
            count = build(Path(folder), out)
    print(f"{count} concepts in three renderings written to {out}")
