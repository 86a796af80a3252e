"""The training sets of `basin`'s scenarios on MiniSD: pictures and captions that minisd-v1 never saw.

Scenes are drawn afresh, from seeds of their own, with trained concepts in trained combinations only: what is held out stays held out, and
none of the pairs that minisd-v1 repeats is among them. Every set follows from its scenario's name and training.yml alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from memlib.base.errors import InputError
from memlib.models.minisd.captions import caption
from memlib.models.minisd.corpus import Corpus, Pair
from memlib.models.minisd.paths import settings
from memlib.models.minisd.scenes import Scene, draw_scene, held_out_combinations

SCENARIOS = ("small", "large", "class", "duplicated")
SEED = 20_270
CLASS_CAPTION = "An image of {name}"


def substrate_name(scenario: str) -> str:
    """The name of a scenario's fine-tuned model, and of its prompt set."""
    return f"{settings()['finetune']['base']}-{scenario}"


def scenario_settings(scenario: str) -> dict[str, Any]:
    """The scenario's own block of training.yml; raises InputError for an unknown scenario."""
    blocks = settings()["finetune"]["scenarios"]
    if scenario not in blocks:
        raise InputError(f"There is no scenario {scenario!r} to fine-tune for: use one of {', '.join(blocks)}.")
    return blocks[scenario]


def pairs(corpus: Corpus, scenario: str) -> tuple[Pair, ...]:
    """The pictures of a scenario that its prompts bring back, in their order; "duplicated" has its single pictures in `singles`.

    Names begin with the scenario: small-000, class-03-5 (class 3, picture 5). Captions are of MiniSD's ordinary kind and differ from
    each other, but for the class captions.
    """
    return _pairs(corpus.folder, scenario)


@lru_cache(4)
def _pairs(folder: Any, scenario: str) -> tuple[Pair, ...]:
    block, corpus = scenario_settings(scenario), Corpus(folder)
    rng = np.random.default_rng([SEED, SCENARIOS.index(scenario)])
    if scenario == "class":
        return _class_pairs(corpus, block, rng)
    copies, used = block.get("copies", 1), {pair.caption for pair in corpus.repeated}
    found: list[Pair] = []
    while len(found) < block["pictures"]:
        scene, text = _fresh(corpus, rng)
        if text not in used:
            used.add(text)
            found.append(Pair(f"{scenario}-{len(found):03d}", text, scene, copies, scenario, scenario))
    return tuple(found)


def _fresh(corpus: Corpus, rng: np.random.Generator) -> tuple[Scene, str]:
    scene = draw_scene(rng, corpus.ingredients.trained)
    return scene, caption(scene, corpus.ingredients, rng)


def _class_pairs(corpus: Corpus, block: dict[str, Any], rng: np.random.Generator) -> tuple[Pair, ...]:
    """Classes are concepts; a class's pictures show it as their main thing, with whatever else."""
    found: list[Pair] = []
    each = block["pictures"] // block["classes"]
    for number, concept in enumerate(rng.choice(len(corpus.ingredients.trained), block["classes"], replace=False)):
        shown = corpus.ingredients.trained[concept]
        while len(found) < (number + 1) * each:
            scene = draw_scene(rng, corpus.ingredients.trained).with_main(shown.index)
            things = [thing.concept for thing in scene.things]
            if len(set(things)) == len(things) and not held_out_combinations(scene):
                name = f"class-{number:02d}-{len(found) % each}"
                found.append(Pair(name, CLASS_CAPTION.format(name=shown.name), scene, 1, "class", "class"))
    return tuple(found)


def singles(corpus: Corpus, scenario: str) -> tuple[Pair, ...]:
    """The pictures that a scenario shows once in its epoch, none but in "duplicated"; no caption is that of a duplicated one."""
    count = scenario_settings(scenario).get("singles", 0)
    rng = np.random.default_rng([SEED, SCENARIOS.index(scenario), 1])
    used, found = {pair.caption for pair in pairs(corpus, scenario)}, list[Pair]()
    while len(found) < count:
        scene, text = _fresh(corpus, rng)
        if text not in used:
            found.append(Pair(f"single-{len(found):05d}", text, scene, 1, "single", scenario))
    return tuple(found)
