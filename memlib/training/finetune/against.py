"""Fine-tuning against memorization, for any checkpoint: adversarially, and plainly on the same surrogates.

MiniSD's own remedies (`memlib.training.minisd.remedies`) and the recipes `adversarial` and `surrogates` of data/finetune.yml are made here. Source: `dori`;
the procedure is recollected (see `memlib.training.finetune.surrogates`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.base.numbers import is_whole
from memlib.base.writing import replacing, replacing_folder, write_table
from memlib.experiment.group import Group
from memlib.experiment.run import Experiment
from memlib.mitigations import get
from memlib.models.devices import device_of
from memlib.models.substrate import load
from memlib.probes.attack.search import Budget
from memlib.probes.attack.targets import targets
from memlib.prompts.sets import PromptSet
from memlib.training.finetune.examples import TrainingSet
from memlib.training.finetune.recipes import Recipe, against_blocks
from memlib.training.finetune.run import export, half_precision, same_run, trainer_for
from memlib.training.finetune.surrogates import Remedy, SurrogatePart, choose_surrogates
from memlib.training.minisd.trainer import Trainer


@dataclass(frozen=True)
class Against:
    """What such a fine-tuning has beside a recipe, whose steps make `rounds` rounds of equal length.

    Surrogates are the `kept` least like the training picture among what a prompt gives under each of `mitigations` (registered names) and
    `seeds` seeds. `search` has the `steps`, the `samples` in each and the rate `lr` of a round's search; None is the baseline, without one.
    Raises InputError for values that cannot be used.
    """

    rounds: int
    mitigations: tuple[str, ...]
    seeds: int = 4
    kept: int = 4
    search: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, what in (("rounds", "rounds"), ("seeds", "seeds of surrogates"), ("kept", "surrogates of a picture")):
            value = getattr(self, name)
            if not is_whole(value, 1):
                raise InputError(f"Fine-tuning against memorization cannot have {value!r} {what}: use a whole number of at least 1.")
        if not self.mitigations:
            raise InputError("Surrogates are made under mitigations, and none is named: name at least one.")
        for name in self.mitigations:
            get(name)
        _ = self.budget

    @property
    def budget(self) -> Budget | None:
        """The budget of a round's search, which is not tested on its way; None where there is none."""
        if self.search is None:
            return None
        budget = Budget(**self.search, sampling_steps=1)
        return replace(budget, every=max(1, budget.steps))

    @property
    def settings(self) -> dict[str, Any]:
        """What changes the weights, as plain values."""
        return asdict(self)

    def steps(self, recipe: Recipe) -> int:
        """Return the steps of a round; raises InputError where the recipe's do not make rounds of equal length."""
        if recipe.steps % self.rounds:
            raise InputError(f"{recipe.steps} steps do not make {self.rounds} rounds of equal length: give a multiple of {self.rounds}.")
        return recipe.steps // self.rounds


def load_against() -> dict[str, Against]:
    """Return what the recipes against memorization in ``data/finetune.yml`` have beside a `Recipe`, by their names."""
    return {
        name: Against(block["rounds"], **block["surrogates"] | {"mitigations": tuple(block["surrogates"]["mitigations"])}, search=block["search"])
        for name, block in against_blocks().items()
    }


def prepare(
    recipe: Recipe,
    against: Against,
    ordinary: TrainingSet,
    folder: Path,
    memorized: str | PromptSet = "memorized",
    count: int | None = None,
    *,
    base: str | None = None,
    made_from: Mapping[str, Any] | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
    checkpoint_every: float = 120.0,
    recompute: bool = False,
) -> tuple[Trainer, PromptSet]:
    """Return a trainer, at the last checkpoint in `folder`, and the prompts whose pictures have surrogates.

    `memorized` is a role, a name, a file or a set, as for `Experiment.group`, at most `count` of it; training pictures come with it. `base` is by
    default the recipe's. Surrogates are sampled once and kept in `folder`. `made_from` says what the run is made from beside the base, the
    ordinary pictures and the recipe; by default that is `against` and the memorized prompts with their pictures. Raises InputError for prompts
    without training pictures, where no picture has a surrogate, for another resolution than the base's, and if `folder` holds a run that was
    made from something else.
    """
    base, place, length = base or recipe.base, device_of(device), against.steps(recipe)
    # Surrogates are sampled by a model of its own, whose weights are those of the base throughout.
    group = Experiment(base, n_seeds=against.seeds, device=device, progress=progress).group(memorized, count, "memorized")
    _check(group, recipe)
    substrate = load(base, place, "float32")
    if made_from is None:
        pictures = [training[0] for training in group.training or ()]
        made_from = against.settings | {"memorized": digest([list(group.prompts.prompts), pictures])}
    same_run(folder, digest([substrate.weights_hash, ordinary.fingerprint, recipe.settings, dict(made_from)]))
    rows, surrogates = _kept_surrogates(group, against, folder / "surrogates.npz")
    memories = targets(group)
    assert memories is not None  # `_check` has seen their pictures
    aims, prompts = memories.select(rows), group.prompts.select(rows)
    if progress:
        print(f"{len(aims)} memorized pictures with {sum(map(len, surrogates))} surrogates")
    del group
    if place.type == "cuda":
        torch.cuda.empty_cache()
    half = half_precision(place, precision)
    part = SurrogatePart(substrate, ordinary, recipe, Remedy(length, against.budget), aims, surrogates, folder, half, recompute)
    return trainer_for(part, recipe, folder, place, checkpoint_every), prompts


def _check(group: Group, recipe: Recipe) -> None:
    """Raise InputError, before anything is sampled, for a resolution that surrogates do not have and for missing training pictures."""
    s = group.experiment.substrate
    if recipe.resolution not in (None, s.resolution):
        raise InputError(
            f"Surrogates of {s.name} have {s.resolution} pixels, and the recipe asks for {recipe.resolution}: leave the resolution out, "
            "or take a base that has it."
        )
    if group.training is not None:
        return
    table = group.prompts.table
    there = int(table["training_picture"].fillna("").astype(bool).sum()) if "training_picture" in table else 0
    raise InputError(
        f"{len(group) - there} of the {len(group)} memorized prompts ({group.prompts.source}) have no training picture, which their surrogates "
        "must be unlike: give a CSV file with the columns prompt and training_picture, filled in every row."
    )


def _kept_surrogates(group: Group, against: Against, path: Path) -> tuple[list[int], list[np.ndarray]]:
    # Another machine would sample others, and a run that was moved there would no longer end alike.
    if not path.exists():
        rows, surrogates = choose_surrogates(group, list(against.mitigations), against.kept)
        with replacing(path) as partial, open(partial, "wb") as file:
            kept: dict[str, Any] = {f"row_{row}": pictures for row, pictures in zip(rows, surrogates, strict=True)}
            np.savez(file, rows=np.array(rows), **kept)
    with np.load(path) as found:
        rows = found["rows"].tolist()
        return rows, [found[f"row_{row}"] for row in rows]


def train_rounds(
    trainer: Trainer, base: str | Path, steps: int, until: int | None = None, progress: bool = True, keep: Callable[[int], Path] | None = None
) -> None:
    """Train to the end or `until` (0: not at all), in rounds of `steps` steps.

    Where `keep` gives a folder for a number of steps, the model stands there as it was at the end of that round. A checkpoint is written at each
    round's end before its model is kept, so that a run killed in between keeps the model when it goes on. Rounds that a run was through before
    models were kept have none.
    """
    for end in range(steps, trainer.schedule.steps + 1, steps):
        if trainer.step <= end and until != 0:
            trainer.run(end if until is None else min(end, until), progress)
        if keep is not None and trainer.step == end and not keep(end).exists():
            _keep(trainer, base, keep(end))


def _keep(trainer: Trainer, base: str | Path, folder: Path) -> None:
    # A folder counts as a kept model, so that it must not stand there half written.
    with replacing_folder(folder) as partial:
        export(trainer, base, partial)


def write_memorized(prompts: PromptSet, path: Path) -> None:
    """Write the memorized prompts that were trained on as a prompt set, with their training pictures' paths made absolute where they are files."""

    def absolute(entry: str) -> str:
        return " | ".join(str(Path(one).resolve()) if Path(one).exists() else one for one in entry.split(" | "))

    table = prompts.table[["prompt", "training_picture"]]
    write_table(path, table.assign(training_picture=table["training_picture"].map(absolute)))
