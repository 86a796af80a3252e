"""MiniSD fine-tuned against memorization: adversarially, and plainly on the same surrogates."""

from __future__ import annotations

from typing import Any

from memlib.attack.search import Budget
from memlib.devices import bfloat16_pays, device_of
from memlib.errors import InputError
from memlib.experiment import Experiment
from memlib.finetune.examples import Example, TrainingSet
from memlib.finetune.recipes import Recipe, read_recipe
from memlib.finetune.run import same_run
from memlib.finetune.surrogates import Remedy, SurrogatePart, find_surrogates
from memlib.keys import digest
from memlib.minisd.finetune import keep
from memlib.minisd.paths import runs_folder, settings
from memlib.minisd.prompt_sets import corpus
from memlib.minisd.remedy_rounds import measure_rounds, train_rounds
from memlib.minisd.trainer import Schedule, Trainer
from memlib.substrates import load

REMEDIES = ("adversarial", "surrogates")
OTHER_SETTINGS = ("rounds", "ordinary", "stream", "surrogates", "search")


def remedy_recipe(name: str) -> Recipe:
    """The hyper-parameters from training.yml; raises InputError for an unknown remedy."""
    if name not in REMEDIES:
        raise InputError(f"There is no remedy {name!r}: use one of {', '.join(REMEDIES)}.")
    block = settings()["remedies"]
    given = {k: v for k, v in block.items() if k not in OTHER_SETTINGS}
    return read_recipe(f"{block['base']}-{name}", given | {"steps": block["rounds"] * block["steps"]})


def ordinary_set() -> TrainingSet:
    """Fresh scenes with varied captions, from a stream of their own; drawn when they are read."""
    block = settings()["remedies"]
    found = list(corpus().fresh_scenes(block["stream"], 0, block["ordinary"]))
    scenes = {f"ordinary-{number:05d}": scene for number, (scene, _) in enumerate(found)}
    examples = tuple(Example(name, text) for name, (_, text) in zip(scenes, found, strict=True))
    return TrainingSet("ordinary", examples, lambda example: corpus().picture(scenes[example.picture]))


def finetune_remedy(
    name: str, device: str = "auto", precision: str = "auto", until: int | None = None, progress: bool = True, export_only: bool = False
) -> Trainer:
    """Fine-tune to the end (or `until`; 0 trains nothing) and export; a second call goes on from the last checkpoint.

    What is written is the same as for the scenarios: a pipeline in the runs folder, the difference and the training record in data/minisd; and
    the models of the rounds in the runs folder, with what was measured of them (`memlib.minisd.remedy_rounds`).
    Raises InputError for an unknown remedy, and for a run with other settings in the same folder.
    """
    recipe, block = remedy_recipe(name), settings()["remedies"]
    place = device_of(device)
    half = bfloat16_pays(place) if precision == "auto" else precision == "bfloat16"
    base = load(recipe.base, place, "float32")
    folder = runs_folder() / recipe.name
    ordinary = ordinary_set()
    same_run(folder, digest([base.weights_hash, ordinary.fingerprint, recipe.settings, {k: block[k] for k in OTHER_SETTINGS}]))
    memorized, surrogates = _surrogates(recipe.base, block["surrogates"], device)
    if progress:
        print(f"{len(memorized)} memorized pictures with {sum(map(len, surrogates))} surrogates")
    budget = Budget(**block["search"], every=block["search"]["steps"], sampling_steps=1) if name == "adversarial" else None
    part = SurrogatePart(base, ordinary, recipe, Remedy(block["steps"], budget), memorized, surrogates, folder, half)
    schedule = Schedule(recipe.steps, recipe.lr, recipe.warmup, recipe.ema, recipe.weight_decay, decay=False, betas=recipe.betas)
    trainer = Trainer(part, schedule, folder, place)
    if not export_only:
        train_rounds(trainer, recipe, block["steps"], until, progress)
    if trainer.step:
        print(f"{recipe.name}: {keep(trainer, recipe)}")
    measure_rounds(name, recipe, device)
    return trainer


def _surrogates(base: str, block: dict[str, Any], device: str) -> Any:
    """Surrogates are sampled by a model of its own, whose weights are those of the base throughout."""
    run = Experiment(base, n_seeds=block["seeds"], device=device, progress=True)
    return find_surrogates(run.group("memorized"), list(block["mitigations"]), block["kept"])
