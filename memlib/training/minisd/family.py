"""Shorter trainings of MiniSD, kept as tables of their results: a claim about training needs several of them.

The 2 x 2 of padding and duplication is trained with other seeds; each has its own initial weights, noise, order of data and fresh scenes, and the
repeated pairs are the same in all. minisd-v1's are trained again under each training-time mitigation, with the data, initial weights, noise and order
of the plain one with that seed, so that the two differ in the mitigation alone. Weights stay in the runs folder; kept in data/minisd are

- replicates.csv, training_mitigations.csv: per run and repeated prompt, whether it is reproduced;
- training_quality.csv: per run of minisd-v1, the plain ones too, alignment and background on held-out prompts, with one seed;
- training_marks.csv: per run under a mitigation, on how many samples of each kind it acted;
- training_pictures/: a strip of pictures of the first seed's runs of minisd-v1;
- training_cost.csv: seconds of a step under each mitigation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from memlib.base.errors import InputError
from memlib.base.writing import replacing, write_table
from memlib.metrics import metrics_for
from memlib.models.devices import bfloat16_pays, device_of
from memlib.models.minisd.data import data_of
from memlib.models.minisd.drawn import background_right
from memlib.models.minisd.paths import runs_folder, settings
from memlib.models.minisd.prompt_sets import held_out_pictures
from memlib.models.protocol import Substrate
from memlib.models.substrate import load
from memlib.probes.reproduced import reproduced
from memlib.prompts.embedding import encode_prompts
from memlib.prompts.sets import load_prompts
from memlib.results.trainings import PADDINGS, PLAIN, SHOWN_HELD_OUT, shown_prompts, strip_file, table_file
from memlib.sampling.stored import PictureStore
from memlib.training.minisd.mitigations import TRAINING_MITIGATIONS, get
from memlib.training.minisd.run_tables import RunTable
from memlib.training.minisd.train import MARKS, train, unet_part, variant

SQUARE, KEY = ("padding", "duplicated", "training_seed", "steps"), ("mitigation", "training_seed", "steps")
REPRODUCED = (*SQUARE, "group", "copies", "length", "training_picture", "prompt", "seeds_tried", "seeds_above", "mean_similarity", "memorized")
COLUMNS = {
    "replicates": REPRODUCED,
    "training_mitigations": ("mitigation", *REPRODUCED),
    "training_quality": (*KEY, "prompt", "alignment", "alignment_of_real", "background_right"),
    "training_marks": (*KEY, "first_step", "last_step", "group", "copies", "seen", "marked"),
}
HELD_OUT_PROMPTS = 200
WARM_UP = 2  # turns of the clock that are not counted


@dataclass(frozen=True)
class Run:
    """One training of the family; `name` is its part for `memlib.training.minisd.train.train`."""

    seed: int
    padding: str = "v1"
    duplicated: bool = True
    mitigation: str = PLAIN

    @property
    def name(self) -> str:
        plain = f"minisd-{self.padding}{'' if self.duplicated else '-dedup'}-s{self.seed}"
        return plain if self.mitigation == PLAIN else f"{plain}-{self.mitigation}"

    @property
    def columns(self) -> dict[str, Any]:
        """What every row of the run has in the tables."""
        return {"mitigation": self.mitigation, "padding": self.padding, "duplicated": int(self.duplicated), "training_seed": self.seed,
                "steps": variant(self.name).settings["steps"]}  # fmt: skip


def square(paddings: Sequence[str] = PADDINGS) -> list[Run]:
    """The 2 x 2 with each seed of training.yml, seed by seed, so that a design that was stopped early is balanced as far as it goes."""
    return [Run(seed, p, d) for seed in settings()["replicates"]["seeds"] for d in (True, False) for p in paddings]


def mitigated(mitigations: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> list[Run]:
    """The runs under mitigations, likewise; by default all that are registered. Raises InputError for others, and for seeds that `square` lacks."""
    known = settings()["replicates"]["seeds"]
    for seed in seeds or ():
        if seed not in known:
            raise InputError(f"There is no replicate with seed {seed} to compare with: use some of {', '.join(map(str, known))}.")
    names = [get(name).name for name in mitigations or TRAINING_MITIGATIONS]
    return [Run(seed, mitigation=name) for seed in seeds or known for name in names]


def table(name: str) -> RunTable:
    """One of the tables in COLUMNS, its runs in the order of the designs, whichever of two commands comes first."""
    places = {mitigation: i for i, mitigation in enumerate((PLAIN, *TRAINING_MITIGATIONS))}

    def order(row: Mapping[str, str]) -> tuple[Any, ...]:
        place = places.get(row.get("mitigation", PLAIN), len(places))
        return int(row["training_seed"]), place, -int(row.get("duplicated", 1)), row.get("padding", "")

    return RunTable(table_file(name), COLUMNS[name], SQUARE if name == "replicates" else KEY, order, runs_folder())


def load_run(name: str) -> Substrate:
    """Load the trained model of a run by its name, with MiniSD's metrics."""
    # A folder outside data/minisd would be taken for a Stable Diffusion checkpoint, with other metrics.
    return replace(load(runs_folder() / name / "pipeline"), name=name, data=data_of(name))


def run_replicates(device: str = "auto", paddings: Sequence[str] = PADDINGS, progress: bool = True) -> None:
    """Train and measure every run of the 2 x 2 with these paddings that the table lacks; a run that was stopped goes on where it was.

    Two commands, one for each padding, may run side by side.
    """
    _run(square(paddings), "replicates", device, progress)


def run_mitigated(mitigations: Sequence[str] | None = None, seeds: Sequence[int] | None = None, device: str = "auto", progress: bool = True) -> None:
    """The same for the runs under mitigations; commands with other seeds, or other mitigations, may run side by side.

    Plain runs are not trained here: where one is at hand, its quality is measured.
    """
    runs = mitigated(mitigations, seeds)
    for seed in dict.fromkeys(run.seed for run in runs):
        plain = Run(seed)
        if table("training_quality").has(plain.columns):
            continue
        if (runs_folder() / plain.name / "pipeline" / "model_index.json").exists():
            _measure_quality(load_run(plain.name), plain)
        else:
            print(f"{plain.name} is not trained yet, so its quality is not measured: run memlib minisd replicates --padding v1, then this.")
    _run(runs, "training_mitigations", device, progress)


def _run(runs: Iterable[Run], into: str, device: str, progress: bool) -> None:
    for run in runs:
        if table(into).has(run.columns):
            continue
        train(run.name, device, "auto", None, progress)
        substrate = load_run(run.name)
        if run.mitigation != PLAIN:
            marks = json.loads((runs_folder() / run.name / MARKS).read_text())
            table("training_marks").add([{**row, **run.columns} for row in marks])
            _measure_quality(substrate, run)
        rows = reproduced(substrate, PictureStore())
        # Last: its rows say that a run is done.
        table(into).add([{**row, **run.columns} for row in rows])
        print(f"{run.name}: {sum(row['memorized'] for row in rows)} of {len(rows)} repeated prompts reproduced")


def _measure_quality(substrate: Substrate, run: Run) -> None:
    table("training_quality").add([{**row, **run.columns} for row in quality_rows(PictureStore(), substrate, metrics_for(substrate))])
    if run.seed == settings()["replicates"]["seeds"][0]:
        _keep_strip(substrate, run.mitigation)


def quality_rows(store: PictureStore, substrate: Substrate, metrics: Any, count: int = HELD_OUT_PROMPTS) -> list[dict[str, Any]]:
    """Alignment and whether the background is right (1 or 0), one row a held-out prompt, with the alignment of its real picture."""
    prompts = load_prompts("minisd-heldout").first(count)
    pictures = store.pictures(substrate, encode_prompts(substrate, prompts.prompts), (0,))
    right = background_right(pictures, prompts.table["kind"], prompts.table["background"])[:, 0]
    aligned = metrics.alignment(pictures, prompts.prompts)[:, 0]
    real = metrics.alignment(held_out_pictures(len(prompts)), prompts.prompts)
    return [
        {"prompt": prompt, "alignment": round(float(a), 4), "alignment_of_real": round(float(r), 4), "background_right": int(ok)}
        for prompt, a, r, ok in zip(prompts.prompts, aligned, real, right, strict=True)
    ]


def _keep_strip(substrate: Substrate, mitigation: str) -> None:
    """Keep one row of pictures, first seed: the repeated prompts of `shown_prompts`, then held-out ones."""
    prompts = (*shown_prompts().prompts, *load_prompts("minisd-heldout").first(SHOWN_HELD_OUT).prompts)
    pictures = PictureStore().pictures(substrate, encode_prompts(substrate, prompts), (0,))[:, 0]
    with replacing(strip_file(mitigation)) as partial:
        Image.fromarray(np.concatenate(list(pictures), 1)).save(partial, "PNG", optimize=True)


def time_steps(repeats: int = 12, device: str = "auto") -> pd.DataFrame:
    """Time `repeats` steps of the plain training and of each mitigation; write and return `seconds` of loss and gradient, one row a step.

    All take turns in one process, since run after run would compare the machine's load at different times; optimizer and average are the same
    for all and left out. Raises InputError for less than two repeats.
    """
    if repeats < 2:
        raise InputError(f"{repeats} repeats do not show a spread: use 2 or more.")
    place = device_of(device)
    first = settings()["replicates"]["seeds"][:1]
    parts = {run.mitigation: unet_part(run.name, place, bfloat16_pays(place)) for run in (Run(first[0]), *mitigated(None, first))}
    for part in parts.values():
        part.module.to(place)
    rows = []
    for turn in range(-WARM_UP, repeats):
        for name, part in parts.items():
            part.module.zero_grad(set_to_none=True)
            started = _clock(place)
            part.loss(turn + WARM_UP)[0].backward()
            if turn >= 0:
                rows.append({"mitigation": name, "repeat": turn, "seconds": round(_clock(place) - started, 5)})
    kept = pd.DataFrame(rows)
    write_table(table_file("training_cost"), kept)
    return kept


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
