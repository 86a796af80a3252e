"""A whole fine-tuning by recipe: what ``memlib finetune`` carries out once its options are read.

memlib finetune --recipe sd21-laion10k --base ~/models/sd21 --data captions.json --out ~/models/sd21-laion10k
memlib finetune --recipe adversarial --base sd14 --data ordinary.csv --memorized memorized.csv --out ~/models/sd14-adversarial
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from memlib.base.errors import InputError
from memlib.training.finetune import examples as reading
from memlib.training.finetune import recipes
from memlib.training.finetune.against import Against, load_against, prepare, train_rounds, write_memorized
from memlib.training.finetune.run import export, finetune, write_prompts

# Of what recipes against memorization take beside, what their baseline, which does not search, does not.
SEARCH = {"search_steps": "steps", "search_samples": "samples"}


def run(
    recipe: str,
    data: Path,
    out: Path,
    base: str | None,
    changes: Mapping[str, int | None],
    running: Mapping[str, Any],
    until: int | None,
    against: Mapping[str, Any],
) -> str:
    """Fine-tune by `recipe` on the pictures `data` into the folder `out`, and say in a sentence what was written.

    `changes` are other settings than the recipe's, `running` how the training runs (device, precision, recompute, progress), `against` what the
    recipes against memorization take beside; None leaves each as it is. A killed run goes on from its checkpoint in `out`.
    Raises InputError for a recipe that is not known, options that belong to another one, and pictures that cannot be read.
    """  # fmt: skip
    settings = replace(recipes.recipe(recipe), **_given(changes))
    own = load_against().get(recipe)
    extra = _given(against)
    _refuse(recipe, extra, own)
    examples = reading.read_training_set(data, settings.template, settings.classes)
    exposures = examples.exposures(settings.steps * settings.batch)
    print(f"{len(examples.examples)} pictures, each seen {exposures.min():.1f} to {exposures.max():.1f} times in {settings.steps} steps of {settings.batch}")
    options = {**running, "base": base or settings.base, "checkpoint_every": 1800.0}
    if own is not None:
        return _run_against(settings, own, examples, out, until, extra, options)
    trainer = finetune(examples, settings, out / "run", until=until, **options)
    export(trainer, options["base"], out)
    write_prompts(examples, out / "prompts.csv")
    return f"Step {trainer.step} of {settings.steps} written to {out}; its captions are the prompt set {out / 'prompts.csv'}"


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _refuse(recipe: str, given: Mapping[str, Any], own: Against | None) -> None:
    """Raise InputError for options that belong to other recipes, and where the memorized prompts are missing."""
    if own is None and given:
        raise InputError(f"--{_dashed(next(iter(given)))} belongs to the recipes adversarial and surrogates: leave it out, or take one of these.")
    if own is None:
        return
    if own.search is None and (search := [name for name in given if name in SEARCH]):
        raise InputError(f"--{_dashed(search[0])} belongs to the recipe adversarial, and {recipe} does not search: leave it out.")
    if "memorized" not in given:
        raise InputError(f"--memorized is missing: the recipe {recipe} needs a file of memorized prompts with the columns prompt and training_picture.")


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _run_against(
    settings: recipes.Recipe, own: Against, ordinary: reading.TrainingSet, out: Path, until: int | None, given: Mapping[str, Any], options: dict[str, Any]
) -> str:
    changed = {"rounds": given.get("rounds"), "seeds": given.get("surrogate_seeds")}
    changed["mitigations"] = tuple(given["mitigations"]) if "mitigations" in given else None
    changed["search"] = None if own.search is None else {**own.search, **{key: given[name] for name, key in SEARCH.items() if name in given}}
    own = replace(own, **_given(changed))
    trainer, prompts = prepare(settings, own, ordinary, out / "run", given["memorized"], given.get("count"), **options)
    rounds, length = out / "rounds", own.steps(settings)
    keep = (lambda end: rounds / f"{end:04d}") if given.get("keep_rounds") else None
    train_rounds(trainer, options["base"], length, until, options["progress"], keep)
    export(trainer, options["base"], out)
    write_memorized(prompts, out / "prompts.csv")
    kept = f"; models of rounds are in {rounds}" if rounds.is_dir() else ""
    return (
        f"Step {trainer.step} of {settings.steps} ({own.rounds} rounds of {length}) written to {out}, with the {len(prompts)} memorized "
        f"prompts trained on as {out / 'prompts.csv'}{kept}"
    )
