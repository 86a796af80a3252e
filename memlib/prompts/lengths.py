"""Token lengths of the published prompt lists, by CLIP's tokenizer; no model is involved.

    memlib prompts lengths             the lists at hand (see memlib.prompts.published)
    memlib prompts lengths --fetch     the missing ones are fetched from their publishers first

The lists are not part of the repository; what is committed are their statistics, ``data/token_lengths.csv``: one row per
list and category, with the full histogram, so that every share and interval can be computed from it. Lengths count a
prompt's own tokens, without start and end and without truncation. Source: `clip` Section 1 and Appendix B, Table 9.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pooch import file_hash

from memlib.base.errors import InputError
from memlib.base.paths import data_folder
from memlib.models.tokenizer import CONTEXT_LENGTH, build_clip_tokenizer
from memlib.prompts.files import read_prompt_file
from memlib.prompts.published import Source, at_hand, cache_folder, load_sources
from memlib.prompts.sets import PromptSet, load_prompts

LIMIT = 40  # `clip`: memorized prompts have fewer tokens than this
ENOUGH_PADDING = 30  # `clip`: and leave more positions than this to padding
SPECIAL_TOKENS = 2  # <sot> and <eot>
POOLED = "memorized, distinct"
ALL = "all"
COLUMNS = (
    "list", "category", "kind", "n", "mean", "q05", "median", "q95", "longest", "at_least_40", "at_least_40_with_special",
    "share_below_40", "share_below_40_with_special", "padding_30_or_fewer", "at_least_40_unescaped", "histogram", "sha256", "url",
)  # fmt: skip


def token_counts(prompts: Sequence[str], tokenizer: Any = None) -> np.ndarray:
    """Return int[N]: the number of tokens of each prompt, without <sot>, <eot>, padding and truncation.

    `tokenizer` is CLIP's by default, the same for Stable Diffusion 1.x and 2.x.
    """
    if not len(prompts):
        raise InputError("There are no prompts to count tokens of: give at least one.")
    tokenizer = build_clip_tokenizer() if tokenizer is None else tokenizer
    ids = tokenizer(list(prompts), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return np.array([len(row) for row in ids])


def padding_left(counts: np.ndarray) -> np.ndarray:
    """Return how many of the 77 positions prompts of these lengths leave to padding, at least 0."""
    return np.maximum(CONTEXT_LENGTH - SPECIAL_TOKENS - np.asarray(counts), 0)


def summarise(counts: np.ndarray, unescaped: np.ndarray | None = None) -> dict[str, Any]:
    """Return the statistics of lengths int[N] as they stand in the table, ``n`` to ``histogram``.

    `unescaped` are the lengths after HTML entities were turned into characters, as older tokenizers did.
    """
    counts = np.asarray(counts)
    below, below_with_special = counts < LIMIT, counts + SPECIAL_TOKENS < LIMIT
    q05, median, q95 = np.quantile(counts, [0.05, 0.5, 0.95])
    return {
        "n": len(counts), "mean": round(float(counts.mean()), 3), "q05": q05, "median": median, "q95": q95,
        "longest": int(counts.max()), "at_least_40": int((~below).sum()), "at_least_40_with_special": int((~below_with_special).sum()),
        "share_below_40": round(float(below.mean()), 6), "share_below_40_with_special": round(float(below_with_special.mean()), 6),
        "padding_30_or_fewer": int((padding_left(counts) <= ENOUGH_PADDING).sum()),
        "at_least_40_unescaped": int((np.asarray(counts if unescaped is None else unescaped) >= LIMIT).sum()),
        "histogram": " ".join(f"{length}:{number}" for length, number in sorted(Counter(counts.tolist()).items())),
    }  # fmt: skip


def lengths(row: Mapping[Any, Any]) -> np.ndarray:
    """Return the lengths int[n] that the histogram of a row of the table stands for, shortest first."""
    pairs = [part.split(":") for part in row["histogram"].split()]
    return np.repeat([int(length) for length, _ in pairs], [int(number) for _, number in pairs])


def statistics(fetch: bool = False, labels: str | Path | None = None) -> pd.DataFrame:
    """Return the table of all published lists at hand, a row per list and category and one of all memorized prompts.

    With `fetch` the lists that are not at hand are fetched. `labels` is a file with Webster's labels (columns
    ``caption`` and ``overfit_type``), by which his RV and TV prompts are told apart. Raises InputError where no
    list is at hand, one cannot be fetched, or `labels` is not understood.
    """
    sources = {source.name: source for source in load_sources().values()}
    found = [source for source in sources.values() if fetch or at_hand(source)]
    if not found:
        raise InputError(
            f"None of the published prompt lists is in {cache_folder()}: run `memlib prompts fetch all`, or set MEMLIB_PROMPTS to the folder that holds them."
        )
    tokenizer, rows = build_clip_tokenizer(), []
    pooled: dict[str, tuple[int, int]] = {}
    sets = {source.name: load_prompts(source.name) for source in found}
    for source in found:
        prompts = sets[source.name]
        counts = token_counts(prompts.prompts, tokenizer)
        unescaped = token_counts([html.unescape(prompt) for prompt in prompts.prompts], tokenizer)
        if source.kind == "memorized":
            # Publishers trim captions differently, which changes no token.
            pooled |= dict(zip(map(str.strip, prompts.prompts), zip(counts, unescaped)))
        origin = {"sha256": file_hash(cache_folder() / source.file), "url": source.url}
        groups = {ALL: np.ones(len(prompts), dtype=bool)}
        named = _categories(source, prompts, sets, labels)
        if named is not None:
            groups |= {name: named == name for name in dict.fromkeys(named)}
        for category, mask in groups.items():
            facts = {"list": source.name, "category": category, "kind": source.kind}
            rows.append(facts | summarise(counts[mask], unescaped[mask]) | origin)
    if pooled:
        counts, unescaped = np.array(list(pooled.values())).T
        of = ", ".join(source.name for source in found if source.kind == "memorized")
        facts = {"list": POOLED, "category": of, "kind": "memorized"}
        rows.append(facts | summarise(counts, unescaped) | {"sha256": "", "url": ""})
    return pd.DataFrame(rows, columns=COLUMNS)


def statistics_file() -> Path:
    """Return the path of the committed statistics."""
    return data_folder() / "token_lengths.csv"


def read_statistics(path: str | Path | None = None) -> pd.DataFrame:
    """Return the committed statistics, or those of another file that the command wrote.

    Raises InputError where the file is missing, lacks a column, or a count does not follow from its histogram.
    """
    path = Path(path) if path is not None else statistics_file()
    try:
        table = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"The statistics {path} cannot be read: make them with `memlib prompts lengths`.") from error
    if absent := [name for name in COLUMNS if name not in table]:
        raise InputError(f"The statistics {path} lack {', '.join(absent)}: make them anew with `memlib prompts lengths`.")
    for row in table.to_dict("records"):
        derived = summarise(lengths(row))
        names = [name for name in derived if name != "at_least_40_unescaped" and derived[name] != row[name]]
        if names:
            raise InputError(
                f"In the statistics {path}, {', '.join(names)} of {row['list']} ({row['category']}) does not follow from the "
                f"histogram: make them anew with `memlib prompts lengths`."
            )
    return table


def _categories(source: Source, prompts: PromptSet, sets: Mapping[str, PromptSet], labels: str | Path | None) -> np.ndarray | None:
    """The category of each prompt, or None where the list has none."""
    if source.category is not None:
        return prompts.table[source.category].astype(str).to_numpy()
    if source.name not in ("webster500", "webster345"):
        return None
    if labels is not None:
        known = _read_labels(labels)
        return np.array([known.get(prompt.strip(), "N") for prompt in prompts.prompts])
    # Without Webster's own file: his MV captions and the 345 labelled ones are published as lists, RV and TV only together.
    if not {"webster345", "webster-mv86"} <= set(sets):
        return None
    verbatim, labelled = ({prompt.strip() for prompt in sets[name].prompts} for name in ("webster-mv86", "webster345"))
    return np.array(["MV" if p in verbatim else "RV or TV" if p in labelled else "N" for p in map(str.strip, prompts.prompts)])


def _read_labels(path: str | Path) -> dict[str, str]:
    table = read_prompt_file(path, "caption")
    if "overfit_type" not in table:
        raise InputError(f"The file of labels {path} has no column 'overfit_type': give Webster's ground truth for SD 1.")
    return {prompt.strip(): str(label) for prompt, label in zip(table["prompt"], table["overfit_type"])}
