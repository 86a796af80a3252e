"""minisd-v1's replicates trained again under each training-time mitigation, and measured beside the plain ones.

A mitigated run has the data, initial weights, noise and order of the plain replicate with its seed (`memlib.training.minisd.replicates`), so that
the two differ in the mitigation alone. Weights stay in the runs folder; kept with the project are, in data/minisd:

- training_mitigations.csv: per run and repeated prompt, whether it is reproduced, as in replicates.csv;
- training_quality.csv: per run, the plain ones too, alignment and background on held-out prompts, with one seed;
- training_marks.csv: per run, on how many samples of each kind the mitigation acted;
- training_pictures/: a strip of pictures of the first seed's runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from PIL import Image

from memlib.base.errors import InputError
from memlib.base.store import Store
from memlib.metrics import metrics_for
from memlib.models.minisd.drawn import background_right
from memlib.models.minisd.paths import runs_folder, settings
from memlib.models.minisd.prompt_sets import held_out_pictures
from memlib.models.substrate import Substrate
from memlib.probes.reproduced import reproduced
from memlib.prompts.embedding import encode_prompts
from memlib.prompts.sets import load_prompts
from memlib.results.trainings import PLAIN, SHOWN_HELD_OUT, shown_prompts, strip_file, table_file
from memlib.training.minisd import replicates
from memlib.training.minisd.replicates import load_run
from memlib.training.minisd.run_tables import RunTable
from memlib.training.minisd.train import MARKS, train, variant
from memlib.training.minisd.mitigations import TRAINING_MITIGATIONS, get

KEY = ("mitigation", "training_seed", "steps")
COLUMNS = {
    "training_mitigations": ("mitigation", *replicates.COLUMNS),
    "training_quality": (*KEY, "prompt", "alignment", "alignment_of_real", "background_right"),
    "training_marks": (*KEY, "first_step", "last_step", "group", "copies", "seen", "marked"),
}
HELD_OUT_PROMPTS = 200


def table(name: str) -> RunTable:
    """One of the tables in COLUMNS, its runs in the order of seeds and then of the registry."""
    place = {mitigation: i for i, mitigation in enumerate((PLAIN, *TRAINING_MITIGATIONS))}
    return RunTable(table_file(name), COLUMNS[name], KEY,
                    lambda row: (int(row["training_seed"]), place.get(row["mitigation"], len(place))), runs_folder())  # fmt: skip


def run_name(mitigation: str, seed: int) -> str:
    """The run of minisd-v1's replicate with `seed` under `mitigation` ("none": the plain one), as `train` knows it."""
    return f"minisd-v1-s{seed}" if mitigation == PLAIN else f"minisd-v1-s{seed}-{mitigation}"


def design(mitigations: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> list[tuple[str, int]]:
    """Mitigation and seed of each run, seed by seed, so that a design that was stopped early is balanced as far as it goes.

    By default all mitigations that are registered and the seeds of the replicates. Raises InputError for others.
    """
    known = settings()["replicates"]["seeds"]
    for seed in seeds or ():
        if seed not in known:
            raise InputError(f"There is no replicate with seed {seed} to compare with: use some of {', '.join(map(str, known))}.")
    names = [get(name).name for name in mitigations or TRAINING_MITIGATIONS]
    return [(name, seed) for seed in seeds or known for name in names]


def run_mitigated(mitigations: Sequence[str] | None = None, seeds: Sequence[int] | None = None, device: str = "auto", progress: bool = True) -> None:
    """Train and measure every run of the design that the tables lack; a run that was stopped goes on where it was.

    Commands with other seeds, or other mitigations, may run side by side. Plain replicates are not trained here: where one
    is at hand, its quality is measured.
    """
    runs = design(mitigations, seeds)
    for seed in dict.fromkeys(seed for _, seed in runs):
        _measure_plain(seed)
    for name, seed in runs:
        run = {"mitigation": name, "training_seed": seed, "steps": variant(run_name(name, seed)).settings["steps"]}
        if table("training_mitigations").has(run):
            continue
        train(run_name(name, seed), device, "auto", None, progress)
        substrate = load_run(run_name(name, seed))
        marks = json.loads((runs_folder() / run_name(name, seed) / MARKS).read_text())
        table("training_marks").add([{**row, **run} for row in marks])
        _measure_quality(substrate, run)
        rows = reproduced(substrate, Store())
        # Last: its rows say that a run is done.
        table("training_mitigations").add([{**row, **run, "padding": "v1", "duplicated": 1} for row in rows])
        print(f"{run_name(name, seed)}: {sum(row['memorized'] for row in rows)} of {len(rows)} repeated prompts reproduced")


def _measure_plain(seed: int) -> None:
    name = run_name(PLAIN, seed)
    run = {"mitigation": PLAIN, "training_seed": seed, "steps": variant(name).settings["steps"]}
    if table("training_quality").has(run):
        return
    if not (runs_folder() / name / "pipeline" / "model_index.json").exists():
        print(f"{name} is not trained yet, so its quality is not measured: run python -m memlib.training.minisd replicates --padding v1, then this again.")
        return
    _measure_quality(load_run(name), run)


def _measure_quality(substrate: Substrate, run: dict) -> None:
    table("training_quality").add([{**row, **run} for row in quality_rows(Store(), substrate, metrics_for(substrate))])
    if run["training_seed"] == settings()["replicates"]["seeds"][0]:
        _keep_strip(substrate, run["mitigation"])


def quality_rows(store: Store, substrate: Substrate, metrics, count: int = HELD_OUT_PROMPTS) -> list[dict]:
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
    pictures = Store().pictures(substrate, encode_prompts(substrate, prompts), (0,))[:, 0]
    strip_file(mitigation).parent.mkdir(exist_ok=True)
    Image.fromarray(np.concatenate(list(pictures), 1)).save(strip_file(mitigation), optimize=True)
