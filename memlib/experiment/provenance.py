"""Where figures come from: the line under every notebook, with commit, versions, hardware, day and duration."""

from __future__ import annotations

import html
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from memlib.models.devices import hardware


@dataclass(frozen=True)
class Provenance:
    """Names and values, shown as one quiet line."""

    facts: Mapping[str, str]

    def __str__(self) -> str:
        return "; ".join(f"{k}: {v}" for k, v in self.facts.items())

    def _repr_html_(self) -> str:
        items = " · ".join(f"<strong>{html.escape(k)}</strong> {html.escape(v)}" for k, v in self.facts.items())
        return f"<p class='memlib-provenance'><small>{items}</small></p>"


def provenance(facts: Mapping[str, str], started: float, device: Any = None) -> Provenance:
    """`facts` with what every run has: commit, versions, hardware, day and duration since `started` (time.monotonic)."""
    import diffusers
    import torch
    import transformers

    return Provenance(
        {
            **facts,
            "commit": _commit(),
            "versions": f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}",
            "hardware": hardware(device),
            "run": f"{time.strftime('%Y-%m-%d')}, {(time.monotonic() - started) / 60:.1f} minutes",
        }
    )


@cache
def commit_day(commit: str) -> str:
    """Return the day of a commit of this repository, "" for one that is not in it."""
    done = subprocess.run(["git", "show", "-s", "--format=%cs", commit.removesuffix("-dirty"), "--"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() or "not in a repository"
