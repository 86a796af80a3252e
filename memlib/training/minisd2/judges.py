"""How good the second miniature's judges are on pictures that no model was trained on, and the copy threshold that follows.

As for the first one (`memlib.training.minisd.calibrate`), but for what a copy is not: with one drawing a concept, another picture of the same
title is one with the same main thing on the same background and all else drawn anew.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import torch

from memlib.models.minisd.scenes import Scene
from memlib.models.minisd2.scenes import concepts, draw_background, draw_scene
from memlib.training.minisd.calibrate import descriptor_figures, evaluator_figures
from memlib.training.minisd.parts import ContrastivePart, DescriptorPart

KINDS = ("other background", "other things", "same title, drawn anew")


def near_misses(scene: Scene, rng: Random) -> list[Scene]:
    """What a copy is not, in the order of KINDS: the scene on another background, with other things in it, and another picture of its title."""
    background = draw_background(rng)
    while background == scene.background:
        background = draw_background(rng)
    others = [index for index in concepts() if index not in {thing.concept for thing in scene.things}]
    things = tuple(replace(thing, concept=index) for thing, index in zip(scene.things, rng.sample(others, len(scene.things))))
    anew = scene
    while anew == scene:
        anew = draw_scene(rng, others, "any", scene.background).with_main(scene.main.concept)
    return [replace(scene, background=background), replace(scene, things=things), anew]


def calibrate(part: DescriptorPart | ContrastivePart, device: torch.device) -> dict[str, Any]:
    """What goes into a judge's config.json beside its settings: figures on held-out pictures, and the threshold."""
    if isinstance(part, ContrastivePart):
        return evaluator_figures(part, device)
    rng = Random("near misses")
    return descriptor_figures(part, device, KINDS, lambda scene: near_misses(scene, rng))
