"""The one table of scores: what every number on a page is computed from.

One row is one score: of a substrate and its training, a prompt of a prompt set and a seed, under a method with its parameters and a sampling
protocol. Rows live in Parquet files under ``data/scores``, one for each page and substrate; the file's metadata says for each run that wrote
rows its commit, hardware, versions and metrics. Nothing in them is typed or edited by hand.

`memlib.results.measure.measure` makes rows from a group of prompts, `append` and `read` keep them, `matrix`, `estimate` and `summarise` compute
from them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from memlib.base.errors import InputError
from memlib.base.paths import data_folder
from memlib.base.writing import replacing
from memlib.experiment.group import Group
from memlib.experiment.page import NOT_MEASURED, told
from memlib.experiment.settings import Edit
from memlib.judging.estimates import Estimate, mean_interval, paired_difference, relative_change
from memlib.mitigations import REGISTRY, Mitigation, get
from memlib.sampling.batches import SAMPLER_VERSION

SCORES = ("similarity to training", "similarity to original", "alignment with prompt", "quality", "diversity")
PROTOCOL = ("steps", "guidance", "scheduler")
KEYS = ("substrate", "training", "prompt_set", "prompt", "seed", "method", "params", *PROTOCOL, "metric", "n")
# By column its type: `seed` is absent where a score is taken over all seeds, and numbers the repetition where something else than noise is
# repeated; `params` is JSON; `n` counts what the value was taken over where that is more than one; `note` says why a method has no value;
# `run` describes the run as JSON, and in files stands for its entry in the metadata.
COLUMNS = {
    "substrate": "str", "training": "str", "prompt_set": "str", "prompt": "str", "seed": "Int64", "method": "str", "params": "str",
    "steps": "Int64", "guidance": "Float64", "scheduler": "str", "metric": "str", "value": "float64", "n": "Int64", "note": "str", "run": "str",
}  # fmt: skip
_METADATA = b"memlib"


def rows_of(group: Group, method: Edit, metric: str, values: Any, n: int | None = None, note: str = "") -> pd.DataFrame:
    """Return rows of any values of a group's prompts: [P, S] by prompt and seed, [P] over the seeds, or one number of the whole group."""
    x, values = group.experiment, np.asarray(values, float)
    prompts = prompt_names(group)
    shapes: dict[int, tuple[Any, Any]] = {0: ([None], [None]), 1: (prompts, [None]), 2: (prompts, list(x.seeds))}
    if values.shape not in ((), (len(prompts),), (len(prompts), len(x.seeds))):
        raise InputError(f"Values of {metric!r} have the shape {values.shape}: give [{len(prompts)}, {len(x.seeds)}], [{len(prompts)}] or one number.")
    index = pd.MultiIndex.from_product(shapes[values.ndim], names=["prompt", "seed"])
    name, params = name_of(method)
    return typed(index.to_frame(index=False).assign(
        substrate=x.substrate.name, training=x.substrate.weights_hash[:12], prompt_set=group.label, method=name, params=params, steps=x.steps,
        guidance=x.guidance, scheduler=x.scheduler, metric=metric, value=values.reshape(-1),
        n=n or (len(x.seeds) if values.ndim < 2 else None), note=note, run=run_of(group),
    ))  # fmt: skip


def prompt_names(group: Group) -> list[str]:
    """Return how the table calls a group's prompts: their texts, and one that comes again with its number."""
    texts = pd.Series(group.prompts.prompts)
    again = texts.groupby(texts).cumcount()
    return [text if not count else f"{text} #{count + 1}" for text, count in zip(texts, again, strict=True)]


def typed(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with all columns of the table in their order and types; columns that are left out are empty. Raises InputError for others."""
    if unknown := set(rows) - set(COLUMNS):
        raise InputError(f"The table of scores has no column {', '.join(sorted(map(str, unknown)))}: it has {', '.join(COLUMNS)}.")
    made = {name: rows[name] if name in rows else pd.Series(None, index=rows.index, dtype=object) for name in COLUMNS}
    kinds: dict[str, Any] = COLUMNS
    columns = {name: column.where(column.notna(), "").astype(object) if kinds[name] == "str" else column.astype(kinds[name])
               for name, column in made.items()}  # fmt: skip
    return pd.DataFrame(columns)


def empty() -> pd.DataFrame:
    """Return the table without any row."""
    return typed(pd.DataFrame(columns=list(COLUMNS)))


def join(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of several tables; of rows with the same keys the last one's stays, at the place of the first."""
    tables = [table for table in tables if len(table)]
    if not tables:
        return empty()
    rows = pd.concat(tables, ignore_index=True)
    keys = list(KEYS)
    first = rows.groupby(keys, sort=False, dropna=False).ngroup()
    return rows.assign(place=first).drop_duplicates(keys, keep="last").sort_values("place", kind="stable").drop(columns="place").reset_index(drop=True)


def name_of(method: Edit) -> tuple[str, str]:
    """Return how the table names a method: its name, and version and parameters as JSON (those of an intervention are none)."""
    if not isinstance(method, Mitigation):
        return method, "{}"
    return method.name, json.dumps({key: value for key, value in method.key.items() if key != "mitigation"}, sort_keys=True)


def title_of(method: str, params: str) -> str:
    """Return how pages call a method of the table: its name, with the parameters that differ from the registered ones."""
    if method not in REGISTRY:
        return method
    known = REGISTRY[method].params
    return get(method, **{key: value for key, value in json.loads(params).items() if key in known}).title


def path_of(page: str, substrate: str) -> Path:
    """Return the file of a page's rows on a substrate, given by name or folder."""
    return data_folder() / "scores" / f"{page}-{Path(substrate).name}.parquet"


def read(path: Path) -> pd.DataFrame:
    """Return the rows of a file, no rows where there is none; raises InputError for one that cannot be read."""
    if not path.is_file():
        return empty()
    with reading(path, "table of scores"):
        found = pq.read_table(path)
        runs = json.loads(found.schema.metadata[_METADATA])
        rows = found.to_pandas()
        return typed(rows.assign(run=rows["run"].astype(object).map(lambda place: json.dumps(runs[place]))))


def kept(page: str) -> dict[str, pd.DataFrame]:
    """Return the rows of a page by substrate, of all for which there is a file."""
    return {path.stem.removeprefix(f"{page}-"): read(path) for path in sorted((data_folder() / "scores").glob(f"{page}-*.parquet"))}


def write(path: Path, rows: pd.DataFrame) -> None:
    """Write rows to a file, whole or not at all, in place of what is there."""
    rows = typed(rows)
    runs = list(dict.fromkeys(rows["run"]))
    places = {run: place for place, run in enumerate(runs)}
    found = pa.Table.from_pandas(rows.assign(run=rows["run"].map(places).astype("int32")), preserve_index=False)
    found = found.replace_schema_metadata({_METADATA: json.dumps([json.loads(run or "{}") for run in runs], ensure_ascii=False).encode()})
    with replacing(path) as temporary:
        pq.write_table(found, temporary, compression="zstd")


def append(path: Path, rows: pd.DataFrame) -> None:
    """Add rows to a file, in place of those with the same keys. One process at a time may append to a file."""
    write(path, join([read(path), rows]))


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Raise InputError in place of what a damaged file with kept numbers raises inside; `what` is what such a file holds."""
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, OSError, pa.ArrowException) as error:
        raise InputError(f"The {what} {path.name} cannot be read: restore it from the repository or delete it.") from error


def sources(rows: pd.DataFrame) -> list[str]:
    """Return a line on each run that rows come from: commit, versions, hardware and the like."""
    found = [json.loads(run) for run in dict.fromkeys(rows["run"]) if run]
    return ["; ".join(f"{key}: {value}" for key, value in facts.items() if isinstance(value, str)) for facts in found]


def matrix(rows: pd.DataFrame, metric: str, method: Edit | tuple[str, str] | None = None) -> np.ndarray | None:
    """Return a metric as an array [P, S], or [P] where it was taken over the seeds, in the order of the rows; None where there are none.

    `method` chooses among several, by name and parameters. Raises InputError where prompts and seeds do not form a whole array.
    """
    rows = rows[(rows["metric"] == metric) & rows["value"].notna()]
    if method is not None:
        name, params = method if isinstance(method, tuple) else name_of(method)
        rows = rows[(rows["method"] == name) & (rows["params"] == params)]
    if rows.empty:
        return None
    places = [pd.factorize(rows[key], use_na_sentinel=False) for key in ("prompt", "seed")]
    shape = [len(known) for _, known in places]
    values = np.full(shape, np.nan)
    values[tuple(codes for codes, _ in places)] = rows["value"]
    if len(rows) != values.size or np.isnan(values).any():
        raise InputError(f"Rows of {metric!r} are not one for each of {shape[0]} prompts and {shape[1]} seeds: choose one method, prompt set and training.")
    return values[:, 0] if rows["seed"].isna().all() else values


def estimate(rows: pd.DataFrame, metric: str, method: Edit | None = None, of: Callable[[np.ndarray], Estimate] = mean_interval) -> Estimate | None:
    """Return the mean of a metric, or another statistic `of` its array, with an interval; None where it was not measured."""
    values = matrix(rows, metric, method)
    return None if values is None else of(values)


def change(rows: pd.DataFrame, metric: str, method: Edit, baseline: Edit | None = None) -> Estimate | None:
    """Return the mean of a metric under a method minus under another (by default none), paired by prompt and seed.

    None where one of them was not measured.
    """
    values = [matrix(rows, metric, which) for which in (method, get("none") if baseline is None else baseline)]
    return None if values[0] is None or values[1] is None else paired_difference(values[0], values[1])


def relative(rows: pd.DataFrame, metric: str, method: Edit, of: pd.DataFrame | None = None) -> Estimate | None:
    """Return `change` from no mitigation as a share of the mean without it in these rows, or in the rows `of` (those of other prompts, say).

    None where one of them was not measured, or that mean is not above 0.
    """
    under, none, base = matrix(rows, metric, method), matrix(rows, metric, get("none")), matrix(rows if of is None else of, metric, get("none"))
    if under is None or none is None or base is None or base.mean() <= 0:
        return None
    return relative_change(under, none, float(base.mean()))


def summarise(rows: pd.DataFrame, columns: Mapping[str, tuple[str, Callable[[np.ndarray], Estimate]]] | Sequence[str], digits: int = 2) -> pd.DataFrame:
    """Return one line for each method: statistics with intervals as text, columns by title, each a metric or (metric, statistic).

    A method that could not be used has its note in the column "note".
    """
    named = columns if isinstance(columns, Mapping) else {name: (name, mean_interval) for name in columns}
    shown = {}
    for (name, params), own in rows.groupby(["method", "params"], sort=False):
        why = next((note for note in own["note"] if note), "")
        line = {"note": f"{NOT_MEASURED}: {why}"} if why else {title: told(estimate(own, metric, of=of), digits) for title, (metric, of) in named.items()}
        shown[title_of(str(name), str(params))] = line
    return pd.DataFrame(shown).T.fillna("")


def run_of(group: Group) -> str:
    """Return the run of a group as JSON: its provenance, without what differs while it goes on, the day, and sampler and metrics by version."""
    run: Any = group.experiment  # an `Experiment`, which knows where it comes from
    facts = {key: value for key, value in run.provenance().facts.items() if key not in ("pictures", "run", "seeds")}
    return json.dumps(facts | {"date": time.strftime("%Y-%m-%d"), "sampler version": SAMPLER_VERSION, "metrics": fingerprints(group)}, ensure_ascii=False)


def fingerprints(group: Group) -> dict[str, str]:
    """Return what identifies the metrics that are at hand, by role."""
    return {role: metric.fingerprint[:12] for role, metric in group.experiment.metrics.items() if metric.available}
