"""The training sets of `basin`'s scenarios on MiniSD: pictures and captions that minisd-v1 never saw.

Scenes are of trained concepts in trained combinations: what is held out stays held out, and no caption is one of training's repeated ones. Every
set follows from its scenario's name and training.yml alone.
"""

from __future__ import annotations

from functools import lru_cache
from random import Random
from typing import Any

from memlib.base.errors import InputError
from memlib.models.minisd.corpus import Pair
from memlib.models.minisd.scenes import Scene, held_out_combinations
from memlib.models.minisd2.corpus import Corpus
from memlib.models.minisd2.language import describe
from memlib.models.minisd2.paths import training_settings
from memlib.models.minisd2.scenes import concepts, draw_scene, trained_concepts

SCENARIOS = ("small", "large", "class", "duplicated")
CLASS_CAPTION = "An image of {name}"


def substrate_name(scenario: str) -> str:
    """The name of a scenario's fine-tuned model, and of its prompt set."""
    return f"{training_settings()['finetune']['base']}-{scenario}"


def scenario_settings(scenario: str) -> dict[str, Any]:
    """The scenario's own block of training.yml; raises InputError for an unknown scenario."""
    blocks = training_settings()["finetune"]["scenarios"]
    if scenario not in blocks:
        raise InputError(f"There is no scenario {scenario!r} to fine-tune for: use one of {', '.join(blocks)}.")
    return blocks[scenario]


@lru_cache(8)
def pairs(corpus: Corpus, scenario: str) -> tuple[Pair, ...]:
    """The pictures of a scenario that its prompts bring back; "duplicated" has its single pictures in `singles`.

    Names begin with the scenario: small-000, class-03-5 (class 3, picture 5). Captions are descriptions that differ from each other, but for the
    class captions.
    """
    block, rng = scenario_settings(scenario), Random(f"scenario {scenario}")
    if scenario == "class":
        return _class_pairs(block, rng)
    return _described(corpus, block["pictures"], rng, set(), f"{scenario}-", block.get("copies", 1), scenario)


def singles(corpus: Corpus, scenario: str) -> tuple[Pair, ...]:
    """The pictures that a scenario shows once in its epoch, none but in "duplicated"; no caption is that of a duplicated one."""
    count = scenario_settings(scenario).get("singles", 0)
    used = {pair.caption for pair in pairs(corpus, scenario)}
    return _described(corpus, count, Random(f"singles of {scenario}"), used, "single-", 1, "single")


def _described(corpus: Corpus, count: int, rng: Random, used: set[str], prefix: str, copies: int, length: str) -> tuple[Pair, ...]:
    """`count` scenes with descriptions that are neither in `used` nor training's."""
    digits, used = (5 if prefix == "single-" else 3), used | corpus.captions_of_repeated
    found: list[Pair] = []
    while len(found) < count:
        scene = draw_scene(rng, trained_concepts())
        text = describe(rng, scene)
        if text not in used:
            used.add(text)
            found.append(Pair(f"{prefix}{len(found):0{digits}d}", text, scene, copies, prefix.partition("-")[0], length))
    return tuple(found)


def _class_pairs(block: dict[str, Any], rng: Random) -> tuple[Pair, ...]:
    """Classes are concepts; a class's pictures show it as their main thing, with whatever else."""
    each = block["pictures"] // block["classes"]
    found: list[Pair] = []
    for number, concept in enumerate(rng.sample(trained_concepts(), block["classes"])):
        for picture in range(each):
            scene = _with_main(rng, concept)
            found.append(Pair(f"class-{number:02d}-{picture}", CLASS_CAPTION.format(name=concepts()[concept].name), scene, 1, "class", "class"))
    return tuple(found)


def _with_main(rng: Random, concept: int) -> Scene:
    while True:
        scene = draw_scene(rng, trained_concepts()).with_main(concept)
        if len({thing.concept for thing in scene.things}) == len(scene.things) and not held_out_combinations(scene):
            return scene
