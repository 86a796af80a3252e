"""The main prompt set of `clip` (458 prompts), built by its own rules from the published lists.

    memlib prompts select --substrate sd14 --out clip-458.csv

Source: `clip` Section 3. All of Webster's matching-verbatim prompts (86); and of MemBench's prompts those that (1) name a single training picture
and (2) reproduce it with every one of 10 seeds, by SSCD (372). The text does not print the SSCD bound, only that it is the strictest of earlier
studies: 0.75 here. Training pictures are fetched from the lists' addresses as far as these still answer; prompts without one are counted and, of
MemBench's, left out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memlib.base.errors import InputError, NotMeasured
from memlib.experiment.run import Experiment
from memlib.prompts.sets import PromptSet, load_prompts
from memlib.prompts.training_pictures import Fetched, count_reasons, fetch_pictures, training_folder

BOUND = 0.75
REPORTED = {"verbatim": 86, "membench": 372, "together": 458}
AT_ONCE = 50  # Prompts whose pictures are held together.


@dataclass
class Selection:
    """The prompts found, one row each, and how many of each list went where."""

    table: pd.DataFrame
    counts: dict[str, int]

    def as_text(self) -> str:
        """The counts beside those of the text."""
        lines = [f"{name}: {count:,}" for name, count in self.counts.items()]
        kept = {"verbatim": int((self.table["origin"] == "webster").sum()), "membench": int((self.table["origin"] == "membench").sum())}
        kept["together"] = len(self.table)
        return "\n".join([*lines, "kept: " + ", ".join(f"{name} {kept[name]} (reported {REPORTED[name]})" for name in REPORTED)])


def addresses(cell: Any) -> list[str]:
    """The addresses in one cell of a list: a Python or JSON list as text, or addresses parted by blanks or bars; each once."""
    if isinstance(cell, (list, tuple)):
        found = list(cell)
    else:
        text = "" if cell is None or (isinstance(cell, float) and np.isnan(cell)) else str(cell).strip()
        try:
            value = ast.literal_eval(text) if text.startswith(("[", "(")) else None
        except (ValueError, SyntaxError):
            value = None
        # An address may hold blanks: one ends where the next begins.
        found = list(value) if isinstance(value, (list, tuple)) else re.split(r"[\s|]+(?=https?://)|\s*\|\s*", text)
    return list(dict.fromkeys(str(part).strip() for part in found if str(part).strip()))


def url_column(prompts: PromptSet) -> list[list[str]]:
    """The addresses of each prompt's training pictures; raises InputError for a list without a column of them."""
    column = next((name for name in prompts.table.columns if name.lower() in ("urls", "url")), None)
    if column is None:
        raise InputError(f"The prompt list {prompts.name!r} has no column 'url' or 'urls' with its training pictures: give one that has.")
    return [addresses(cell) for cell in prompts.table[column]]


def candidates(verbatim: PromptSet, known: PromptSet, found: PromptSet) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows (prompt, origin, url) to be judged, and counts: all of `verbatim`, and of `found` those that name a single training picture.

    Addresses of `verbatim` prompts come from `known`, which has them. A prompt that both lists have counts as `verbatim`.
    """
    by_prompt = dict(zip(known.prompts, url_column(known), strict=True))
    rows = [{"prompt": p, "origin": "webster", "url": (by_prompt.get(p) or [""])[0]} for p in dict.fromkeys(verbatim.prompts)]
    taken, several, twice = {row["prompt"] for row in rows}, 0, 0
    for prompt, urls in zip(found.prompts, url_column(found), strict=True):
        if prompt in taken:
            twice += 1
        elif len(urls) != 1:
            several += 1
        else:
            taken.add(prompt)
            rows.append({"prompt": prompt, "origin": "membench", "url": urls[0]})
    counts = {"matching-verbatim prompts": len(dict.fromkeys(verbatim.prompts)), "prompts of MemBench": len(found),
              "of these in both lists or twice": twice, "of these with several training pictures or none": several}  # fmt: skip
    return pd.DataFrame(rows, columns=["prompt", "origin", "url"]), counts


def with_pictures(table: pd.DataFrame, fetched: Mapping[str, Fetched], folder: Path) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows with the paths and hashes of their training pictures; those of MemBench without one are left out and counted."""
    answers = [fetched.get(url, Fetched(None, reason="no address")) for url in table["url"]]
    table = table.assign(
        training_picture=["" if answer.file is None else str((folder / answer.file).resolve()) for answer in answers],
        sha256=[answer.sha256 or "" for answer in answers],
    )
    # Servers answer with one picture for many that are gone. Two prompts with one address may well share a training picture.
    stand_in = table.groupby("sha256")["url"].transform("nunique").gt(1) & (table["sha256"] != "")
    table.loc[stand_in, ["training_picture", "sha256"]] = ""
    there = table["training_picture"] != ""
    counts = {
        "prompts whose addresses gave the same picture as another's, a stand-in (not taken for a training picture)": int(stand_in.sum()),
        "matching-verbatim prompts without a training picture (kept)": int((~there & (table["origin"] == "webster")).sum()),
        "prompts of MemBench without a training picture (left out)": int((~there & (table["origin"] == "membench")).sum()),
    }
    return table[there | (table["origin"] == "webster")].reset_index(drop=True), counts


def lowest_similarity(run: Any, table: pd.DataFrame) -> np.ndarray:
    """For each row the lowest copy similarity [N] of its pictures, over the seeds of `run` (an Experiment), to its training picture.

    NaN where there is no training picture. Raises NotMeasured if the copy metric is not at hand.
    """
    if not run.metrics.copy.available:
        raise NotMeasured(run.metrics.copy.reason)
    lowest = np.full(len(table), np.nan)
    rows = np.flatnonzero(table["training_picture"] != "")
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        some = table.iloc[part].reset_index(drop=True)
        group = run.group(PromptSet("selection", tuple(some["prompt"]), some, "published lists", "not stated"))
        lowest[part] = group.score("similarity to training").min(axis=1)
    return lowest


def select(table: pd.DataFrame, lowest: np.ndarray, bound: float = BOUND) -> Selection:
    """Keep Webster's prompts, and those of MemBench whose lowest similarity reaches `bound`."""
    if not 0 < bound <= 1:
        raise InputError(f"A similarity bound of {bound} is not possible: use a number above 0, up to 1.")
    consistent = np.nan_to_num(lowest, nan=-1) >= bound
    keep = (table["origin"] == "webster").to_numpy() | consistent
    verbatim = (table["origin"] == "webster").to_numpy()
    counts = {
        f"prompts of MemBench below {bound:g} with some seed": int((~consistent & ~verbatim).sum()),
        f"matching-verbatim prompts below {bound:g} with some seed (kept)": int((~consistent & verbatim & ~np.isnan(lowest)).sum()),
    }
    return Selection(table.assign(lowest_similarity=np.round(lowest, 4))[keep].reset_index(drop=True), counts)


def build(run: Any, sets: Sequence[PromptSet], folder: Path, bound: float = BOUND, retry: bool = False, progress: bool = False) -> Selection:
    """Carry out the whole protocol with the model of `run`; `sets` are the verbatim prompts, the list of their addresses, and MemBench."""
    table, counts = candidates(*sets)
    fetched = fetch_pictures([url for url in table["url"] if url], folder, retry, progress)
    table, without = with_pictures(table, fetched, folder)
    reasons = {f"addresses: {reason}": count for reason, count in count_reasons(fetched).most_common()}
    found = select(table, lowest_similarity(run, table), bound)
    return Selection(found.table, counts | reasons | without | found.counts)


def from_lists(
    substrate: str, lists: Sequence[str], count: int | None, seeds: int, bound: float, folder: Path | None, retry: bool, progress: bool = True
) -> Selection:
    """Carry out the whole protocol: `lists` are the verbatim prompts, the list of their addresses, and the further prompts (at most `count` of these).

    Raises InputError for a bound outside (0, 1], a list that is not at hand, and where the copy metric is not.
    """
    if not 0 < bound <= 1:
        raise InputError(f"A similarity bound of {bound} is not possible: use a number above 0, up to 1.")
    verbatim, known, found = (load_prompts(name) for name in lists)
    experiment = Experiment(substrate, n_seeds=seeds, progress=progress)
    if not experiment.metrics.copy.available:
        raise InputError(experiment.metrics.copy.reason)
    return build(experiment, (verbatim, known, found.first(count)), folder or training_folder(), bound, retry, progress)
