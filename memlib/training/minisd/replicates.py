"""The 2 x 2 of padding and duplication trained again with other seeds: shorter runs, kept as a table of their results.

A claim about training needs several trainings. Each replicate has its own initial weights, noise, order of data and fresh
scenes; the repeated pairs are the same in all. Weights stay in the runs folder; what is kept with the project is one row per
prompt and replicate in data/minisd/replicates.csv.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memlib.base.store import Store
from memlib.models.minisd.paths import runs_folder, settings
from memlib.models.substrate import Substrate, load
from memlib.probes.reproduced import reproduced
from memlib.results.trainings import table_file
from memlib.training.minisd.run_tables import RunTable
from memlib.training.minisd.train import train, variant

COLUMNS = ("padding", "duplicated", "training_seed", "steps", "group", "copies", "length", "training_picture", "prompt",
           "seeds_tried", "seeds_above", "mean_similarity", "memorized")  # fmt: skip


@dataclass(frozen=True)
class Replicate:
    """One training of the design; `name` is its part for `python -m memlib.training.minisd train`."""

    padding: str
    duplicated: bool
    seed: int

    @property
    def name(self) -> str:
        return f"minisd-{self.padding}{'' if self.duplicated else '-dedup'}-s{self.seed}"


def design(paddings: Sequence[str] = ("v1", "v2")) -> list[Replicate]:
    """All replicates of training.yml, seed by seed, so that a design that was stopped early is balanced as far as it goes."""
    return [Replicate(p, d, seed) for seed in settings()["replicates"]["seeds"] for d in (True, False) for p in paddings]


def _table() -> RunTable:
    # In the order of the design, whichever of two commands comes first.
    return RunTable(table_file("replicates"), COLUMNS, ("padding", "duplicated", "training_seed", "steps"),
                    lambda row: (int(row["training_seed"]), -int(row["duplicated"]), row["padding"]), runs_folder())  # fmt: skip


def load_run(name: str) -> Substrate:
    """Load the trained model of a run by its name, with MiniSD's metrics."""
    # A folder outside data/minisd would be taken for a Stable Diffusion checkpoint, with that family's metrics.
    return replace(load(runs_folder() / name / "pipeline"), name=name, family="minisd")


def run_replicates(device: str = "auto", paddings: Sequence[str] = ("v1", "v2"), progress: bool = True) -> None:
    """Train and measure every replicate with these paddings that the table lacks; a run that was stopped goes on where it was.

    Two commands, one for each padding, may run side by side.
    """
    for replicate in design(paddings):
        steps = variant(replicate.name).settings["steps"]
        shared = {"padding": replicate.padding, "duplicated": int(replicate.duplicated), "training_seed": replicate.seed, "steps": steps}
        if _table().has(shared):
            continue
        train(replicate.name, device, "auto", None, progress)
        rows = reproduced(load_run(replicate.name), Store())
        _table().add([{**row, **shared} for row in rows])
        print(f"{replicate.name}: {sum(row['memorized'] for row in rows)} of {len(rows)} repeated prompts reproduced")
