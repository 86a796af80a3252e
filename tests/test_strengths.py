"""What mitigations declare: families, strengths that act, and parameters that do what a published program does."""

import itertools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from toys import Toy, a_batch

from memlib.base.errors import InputError
from memlib.mitigations import REGISTRY, get, register, sail
from memlib.mitigations.base import FAMILIES, Difference, Mitigation
from memlib.models.substrate import load
from memlib.prompts.embedding import encode_prompts
from memlib.sampling import calibration
from memlib.sampling.batches import Cost
from memlib.sampling.calibration import published_applies
from memlib.sampling.guidance import StepInfo

SWEPT = [name for name, mitigation in REGISTRY.items() if mitigation.strengths is not None]
THRESHOLDS = {"wen-3": "threshold", "sail": "threshold_on", "han-sample": "target_on"}
ELSEWHERE = {"prss", "wanda"}  # They need a real U-Net.


@pytest.fixture(scope="module")
def sd1(sd1_tiny):
    return load(str(sd1_tiny), "cpu", "float32")


@pytest.mark.parametrize("name", REGISTRY)
def test_what_is_declared_can_be_made(name):
    mitigation = REGISTRY[name]
    assert mitigation.family in FAMILIES
    made = mitigation.sweep()
    assert len(set(made)) == len(made) and (mitigation in made) == bool(made) and len(made) <= 4
    others = [mitigation.with_params(**difference.params) for difference in mitigation.differences]
    every = {mitigation, *others, *made}
    assert mitigation not in others and len({str(one.key) for one in every}) == len(every)  # the store tells them apart
    assert all(difference.words and (not difference.point or 1 <= int(difference.point) <= 30) for difference in mitigation.differences)


def test_none_has_no_strength_and_every_family_has_a_method():
    assert get("none").sweep() == [] and {m.family for m in REGISTRY.values()} == set(FAMILIES)


def total_guidance(mitigation):
    """Sum of the scales over a run whose magnitude has its first minimum at the fifth of ten steps."""
    scales, total = mitigation.guidance(7.5).start(1), 0.0
    for index, magnitude in enumerate([5.0, 4.0, 3.0, 2.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]):
        zero = torch.zeros(1, 1, 1, 1)
        total += float(scales(StepInfo(index, 10, 950.0 - 100 * index, zero, zero, zero + magnitude)))
    return total


def effects(name, sd1, monkeypatch):
    """How much each strength of a mitigation changes what it acts on, from weak to strong."""
    made = REGISTRY[name].sweep()
    if name in THRESHOLDS:
        for module in (calibration, sail):  # where the name is looked up: by `target_of`, and by sail itself
            monkeypatch.setattr(module, "reference_quantile", lambda substrate, name, measure, quantile, *rest, **options: quantile)
        return [-getattr(m, THRESHOLDS[name])(Toy(), a_batch([1.0], [0])) for m in made]
    if name == "ren":
        return [float(m.rows(a_batch([1.0], [0]))[1].max()) for m in made]
    if name == "han-batch":
        noise, moved = a_batch([1.0], [0]).latents, []
        for m in made:
            with m.around(Toy(), a_batch([1.0], [0]), Cost()) as batch:
                moved.append(float((batch.latents - noise).norm()))
        return moved
    if REGISTRY[name].family == "guidance":
        return [-total_guidance(m) for m in made]
    if REGISTRY[name].rewrites:
        return [len(m.rewrite("a red cat", sd1.tokenizer)) for m in made]
    embedding = encode_prompts(sd1, ["a red cat"])
    return [float((m.apply(sd1, embedding).states - embedding.states).norm()) for m in made]


@pytest.mark.parametrize("name", [name for name in SWEPT if name not in ELSEWHERE])
def test_a_stronger_setting_acts_more(name, sd1, monkeypatch):
    found = effects(name, sd1, monkeypatch)
    assert len(found) > 1 and all(weak < strong for weak, strong in itertools.pairwise(found)), found


def test_another_quantile_is_taken_where_the_published_threshold_would_be():
    published = SimpleNamespace(latent_shape=(4, 64, 64), prediction_type="epsilon")
    small = SimpleNamespace(latent_shape=(4, 16, 16), prediction_type="epsilon")
    assert published_applies(published, get("wen-3")) and not published_applies(published, get("wen-3", quantile=0.5))
    assert published_applies(published, get("wen-1")) and not published_applies(small, get("wen-1"))
    assert get("wen-3").threshold(published, None) == 3.0 and get("wen-1").threshold(published, None) == 1.0


def declared(**attributes):
    """Register a mitigation with a parameter `amount` and these class attributes."""
    fields = {"name": "declared", "label": "l", "summary": "S.", "source": "clip", "amount": 1, **attributes}
    annotations = {"amount": int} | {name: ClassVar for name in fields if name != "amount"}
    return register(dataclass(frozen=True)(type("Declared", (Mitigation,), {"__annotations__": annotations, **fields})))


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"family": "colour"}, "of the family 'colour': use one of text, attention, guidance, noise"),
        ({"strengths": ("amount", (1,))}, "give two to four different values"),
        ({"strengths": ("amount", (2, 3))}, "with its default among them"),
        ({"strengths": ("amount", (1, 1))}, "give two to four different values"),
        ({"strengths": ("size", (1, 2))}, "give two to four different values"),
        ({"differences": (Difference("nothing", {"amount": 1}),)}, "has the default parameters"),
        ({"differences": (Difference("unknown", {"size": 1}),)}, "has no parameter 'size'"),
    ],
)
def test_mistakes_in_what_is_declared_are_refused_at_registration(attributes, sentence):
    with pytest.raises(InputError, match=sentence):
        declared(**attributes)
    assert "declared" not in REGISTRY
