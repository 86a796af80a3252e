"""Fine-tuning against memorization: surrogates, rounds of search, exact resume, and the settings of MiniSD's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from memlib.base.errors import InputError
from memlib.models.catalogue import SUBSTRATES
from memlib.models.substrate import load
from memlib.probes.attack import Budget, Targets
from memlib.training.finetune import Example, Recipe, TrainingSet
from memlib.training.finetune.surrogates import Remedy, SurrogatePart, choose_surrogates, least_alike
from memlib.training.minisd.remedies import REMEDIES, ordinary_set, remedy_recipe
from memlib.training.minisd.trainer import Schedule, Trainer

RECIPE = Recipe("tiny", "none", steps=4, batch=2, lr=1e-3, posterior=False, seed=5)
SEARCH = Budget(steps=1, samples=1, every=1)


def noise_picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)


def a_part(folder, tiny, budget=SEARCH):
    ordinary = TrainingSet("ordinary", tuple(Example(str(i), f"picture {i}") for i in range(4)), lambda example: noise_picture(int(example.picture)))
    memorized = Targets("memorized", ("a red cat", "the sea"), np.stack([noise_picture(10), noise_picture(11)]))
    surrogates = [np.stack([noise_picture(20), noise_picture(21)]), noise_picture(22)[None]]
    return SurrogatePart(load(tiny, "cpu", "float32"), ordinary, RECIPE, Remedy(2, budget), memorized, surrogates, folder)


def test_surrogates_are_those_least_like_the_training_picture():
    training = noise_picture(0)
    candidates = np.stack([training, 255 - training, noise_picture(1), np.full_like(training, 9)])
    assert least_alike(candidates, training, 1) == [1] and set(least_alike(candidates, training, 9)) == {1, 2, 3}
    assert least_alike(candidates[:1], training, 2) == []


def test_pictures_without_a_surrogate_are_left_out():
    class Group:
        training = [noise_picture(0)[None], noise_picture(1)[None]]

        def pictures(self, mitigation):
            return np.stack([noise_picture(0)[None], noise_picture(7)[None]])

    rows, surrogates = choose_surrogates(Group(), ["none"], 2)
    assert rows == [1] and np.array_equal(surrogates[0], noise_picture(7)[None])
    Group.training = None
    with pytest.raises(InputError, match="not at hand"):
        choose_surrogates(Group(), ["none"], 2)


def test_rows_of_a_step_are_surrogates_under_prompts_and_under_the_rounds_embeddings(tmp_path, sd1_tiny):
    part = a_part(tmp_path, sd1_tiny)
    clean, states, noise, times = part.extra(0)
    assert len(clean) == len(states) == len(noise) == len(times) == RECIPE.batch
    known = torch.cat(part._surrogates)
    assert all(min(float((one - k).abs().max()) for k in known) == 0 for one in clean)
    prompts = part._embedding.states
    assert min(float((states[0] - p).abs().max()) for p in prompts) == 0  # the first half has its prompt
    found = part.triggers(0)
    assert found.shape == (2, 2, 77, 32) and min(float((states[1] - f).abs().max()) for f in found.flatten(0, 1)) == 0
    assert min(float((states[1] - p).abs().max()) for p in prompts) > 0
    assert all(weight.requires_grad and weight.grad is None for weight in part.module.parameters())
    plain = a_part(tmp_path / "plain", sd1_tiny, None)
    same = plain.extra(0)
    assert torch.equal(same[0], clean) and torch.equal(same[2], noise) and torch.equal(same[3], times)  # the same pictures in the same order
    assert not list((tmp_path / "plain").glob("triggers*"))


def test_each_round_searches_in_the_model_as_it_is_and_a_killed_run_ends_alike(tmp_path, sd1_tiny):
    def train(folder, *stops):
        for stop in stops:
            trainer = Trainer(a_part(folder, sd1_tiny), Schedule(4, 1e-3, 0, decay=False), folder, torch.device("cpu"))
            trainer.run(stop, progress=False)
        return trainer.part.module.state_dict()

    whole, broken = train(tmp_path / "whole", 4), train(tmp_path / "broken", 1, 3, 4)
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())
    files = sorted(path.name for path in (tmp_path / "whole").glob("triggers-*"))
    assert files == ["triggers-00.safetensors", "triggers-01.safetensors"]
    first, second = ((tmp_path / "whole" / name).read_bytes() for name in files)
    assert first != second


def test_minisds_own_settings():
    for name in REMEDIES:
        recipe = remedy_recipe(name)
        assert recipe.steps == 300 and recipe.base == "minisd-v1" and SUBSTRATES[recipe.name].base == recipe.base
    with pytest.raises(InputError, match="no remedy 'none'"):
        remedy_recipe("none")
    ordinary = ordinary_set()
    assert len(ordinary.examples) == 4096 and ordinary.read(ordinary.examples[0]).shape == (64, 64, 3)
    assert len({example.caption for example in ordinary.examples}) > 3000
