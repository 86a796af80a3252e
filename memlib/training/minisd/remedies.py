"""MiniSD fine-tuned against memorization: adversarially, and plainly on the same surrogates."""

from __future__ import annotations

from memlib.base.errors import InputError
from memlib.models.minisd.paths import runs_folder, settings
from memlib.models.minisd.prompt_sets import corpus
from memlib.training.finetune.against import Against, prepare
from memlib.training.finetune.examples import Example, TrainingSet
from memlib.training.finetune.recipes import Recipe, read_recipe
from memlib.training.minisd.finetune import keep
from memlib.training.minisd.remedy_rounds import measure_rounds, train_rounds
from memlib.training.minisd.trainer import Trainer

REMEDIES = ("adversarial", "surrogates")
OTHER_SETTINGS = ("rounds", "ordinary", "stream", "surrogates", "search")


def remedy_recipe(name: str) -> Recipe:
    """The hyper-parameters from training.yml; raises InputError for an unknown remedy."""
    if name not in REMEDIES:
        raise InputError(f"There is no remedy {name!r}: use one of {', '.join(REMEDIES)}.")
    block = settings()["remedies"]
    given = {k: v for k, v in block.items() if k not in OTHER_SETTINGS}
    return read_recipe(f"{block['base']}-{name}", given | {"steps": block["rounds"] * block["steps"]})


def remedy_settings(name: str) -> Against:
    """Rounds, surrogates and search from training.yml; the baseline has no search."""
    block = settings()["remedies"]
    made = block["surrogates"]
    search = block["search"] if name == "adversarial" else None
    return Against(block["rounds"], tuple(made["mitigations"]), made["seeds"], made["kept"], search)


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
    the models of the rounds in the runs folder, with what was measured of them (`memlib.training.minisd.remedy_rounds`).
    Raises InputError for an unknown remedy, and for a run with other settings in the same folder.
    """
    recipe, block = remedy_recipe(name), settings()["remedies"]
    # Both remedies of a run are made from all of these.
    made_from = {k: block[k] for k in OTHER_SETTINGS}
    trainer, _ = prepare(
        recipe, remedy_settings(name), ordinary_set(), runs_folder() / recipe.name, made_from=made_from, device=device, precision=precision,
        progress=progress,
    )  # fmt: skip
    if not export_only:
        train_rounds(trainer, recipe, block["steps"], until, progress)
    if trainer.step:
        print(f"{recipe.name}: {keep(trainer, recipe)}")
    measure_rounds(name, recipe, device)
    return trainer
