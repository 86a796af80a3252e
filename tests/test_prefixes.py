"""Unguided beginnings that prompts and methods share: the same latents as without, the same cost, and nothing shared where it would show."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from counting import Counter, counting
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from toys import count_rows

from memlib.experiment.run import Experiment
from memlib.mitigations import get
from memlib.mitigations.weights import WeightSet, pruned
from memlib.models.speed import Speed
from memlib.probes.switch_on import sweep
from memlib.prompts.embedding import encode_prompts
from memlib.results.timed import Sampler
from memlib.sampling import prefix as prefixes
from memlib.sampling.attention.record import record
from memlib.sampling.batches import Cost, sample_batches, uncond_states
from memlib.sampling.guidance import as_rule
from memlib.sampling.prefix import begun, forget, unguided_steps, unshared
from memlib.sampling.recipe import Recipe
from memlib.sampling.rules import Annealed, DynamicTransition, LimitedInterval, StaticTransition

STEPS = 4
ALONE, SHARED = Speed(skip_unused=True), Speed(skip_unused=True, shared_prefix=True)
PROMPTS = ["a cat", "two dogs & a bird"]
CLOSE = {"atol": 2e-4, "rtol": 1e-4}


@pytest.fixture(scope="module", params=["sd1_tiny", "sd2_tiny"])
def both(request):
    from memlib.models.substrate import load

    return load(str(request.getfixturevalue(request.param)), device="cpu", dtype="float32", speed=SHARED)


@pytest.fixture(scope="module")
def loaded(sd1_tiny):
    from memlib.models.substrate import load

    return load(str(sd1_tiny), device="cpu", dtype="float32", speed=SHARED)


@pytest.fixture
def tiny(loaded):
    forget(loaded)
    yield loaded
    forget(loaded)


def drawn(substrate, guidance, scheduler="ddim", prompts=PROMPTS, seeds=(0, 1), steps=STEPS, batch_size=4, **options):
    """Last latents of prompts x seeds, and the U-Net rows that were counted."""
    cost, embedding = Cost(), encode_prompts(substrate, prompts)
    batches = sample_batches(substrate, embedding, seeds, Recipe(steps, guidance, scheduler), batch_size=batch_size, cost=cost, latents_only=True, **options)
    return np.concatenate([latents for _, _, latents in batches]), cost.evaluations


def kept(substrate):
    """Steps kept by seed."""
    found = prefixes._KEPT.get(substrate.unet)
    return {} if found is None else {seed: len(latents) for (_, seed), latents in found.passed.items()}


RULES = [
    (StaticTransition(7.5, step=2), 2), (StaticTransition(3.0, step=1), 1), (StaticTransition(7.5, time=400.0), 2), (0.0, 4),
    (StaticTransition(7.5, step=9), 4), (StaticTransition(7.5, step=3, before=-0.0), 3), (LimitedInterval(7.5, 600.0, 100.0, outside=0.0), 1),
]  # fmt: skip
GUIDED = [7.5, 1.0, StaticTransition(7.5, step=2, before=-2.0), StaticTransition(7.5, step=0), Annealed(7.5), LimitedInterval(), DynamicTransition()]


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_latents_are_the_same_to_the_bit_in_the_same_batches(both, scheduler):
    """One prompt and its seeds: the batch before the transition is the one without sharing. Rules go on from, or stop short of, earlier ones."""
    alone = dataclasses.replace(both, speed=ALONE)
    forget(both)
    for rule, _ in [*RULES, *reversed(RULES)]:
        shared, spent = drawn(both, rule, scheduler, PROMPTS[:1])
        expected, same = drawn(alone, rule, scheduler, PROMPTS[:1])
        assert np.array_equal(shared, expected) and spent == same, rule
    assert kept(both) == {0: STEPS, 1: STEPS}


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_prompts_share_and_the_cost_stays_that_of_pictures_made_alone(both, scheduler, monkeypatch):
    alone, plain, rows = dataclasses.replace(both, speed=ALONE), dataclasses.replace(both, speed=Speed()), []
    forget(both)
    count_rows(monkeypatch, both, rows)
    before = drawn(both, StaticTransition(7.5, step=2), scheduler, batch_size=3)
    assert sum(rows) == 2 * 2 + 4 * 2 * 2 and before[1] == 4 * (2 + 2 * 2)  # two seeds' beginnings, four pictures' ends
    rows.clear()
    later = drawn(both, StaticTransition(7.5, step=3), scheduler, batch_size=3)
    assert sum(rows) == 2 * 1 + 4 * 2 * 1 and later[1] == 4 * (3 + 2 * 1)  # one step further
    rows.clear()
    again = drawn(both, StaticTransition(5.0, step=1), scheduler, batch_size=3)
    assert sum(rows) == 4 * 2 * 3  # nothing new before the transition
    for (found, spent), scale, step in ((before, 7.5, 2), (later, 7.5, 3), (again, 5.0, 1)):
        rule = StaticTransition(scale, step=step)
        expected, same = drawn(alone, rule, scheduler, batch_size=3)
        np.testing.assert_allclose(found, expected, **CLOSE)
        np.testing.assert_allclose(found, drawn(plain, rule, scheduler, batch_size=3)[0], **CLOSE)
        assert spent == same
    assert np.abs(before[0] - later[0]).max() > 1e-3  # which the comparison above would notice


def test_steps_before_guidance_are_counted_from_the_rule(tiny):
    solver = tiny.scheduler("ddim", STEPS)
    assert [unguided_steps(as_rule(rule), solver) for rule, _ in RULES] == [steps for _, steps in RULES]
    assert all(unguided_steps(as_rule(rule), solver) == 0 for rule in GUIDED)


@pytest.mark.parametrize("rule", GUIDED)
def test_what_is_guided_from_the_first_step_is_left_alone(tiny, rule):
    assert np.array_equal(drawn(tiny, rule)[0], drawn(dataclasses.replace(tiny, speed=ALONE), rule)[0]) and not kept(tiny)


def test_beginnings_of_other_runs_are_not_taken(tiny):
    """Kept latents of one run, then runs that differ in one thing each."""
    rule, alone = StaticTransition(7.5, step=2), dataclasses.replace(tiny, speed=ALONE)
    drawn(tiny, rule)
    other = encode_prompts(tiny, ["something else to move away from"])
    for change in ({"steps": 3}, {"scheduler": "euler"}, {"seeds": (1, 7)}, {"uncond": other}):
        np.testing.assert_allclose(drawn(tiny, rule, **change)[0], drawn(alone, rule, **change)[0], **CLOSE)
        assert np.abs(drawn(alone, rule, **change)[0] - drawn(alone, rule)[0]).max() > 1e-3


def test_other_weights_begin_anew(tiny):
    rule, alone = StaticTransition(7.5, step=3), dataclasses.replace(tiny, speed=ALONE)
    first = drawn(tiny, rule)[0]
    name, layer = "time_embedding.linear_2", tiny.unet.time_embedding.linear_2
    for places in (range(layer.weight.numel()), range(layer.weight.numel() // 2)):
        with pruned(tiny, WeightSet({name: list(places)})):
            changed = drawn(tiny, rule)[0]
            np.testing.assert_allclose(changed, drawn(alone, rule)[0], **CLOSE)
        assert np.abs(changed - first).max() > 1e-3
    assert np.array_equal(drawn(tiny, rule)[0], first)
    weight = tiny.unet.conv_in.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(1.5)
        np.testing.assert_allclose(drawn(tiny, rule)[0], drawn(alone, rule)[0], **CLOSE)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert np.array_equal(drawn(tiny, rule)[0], first)


def test_nothing_is_shared_where_somebody_looks_edits_or_counts(tiny):
    rule, seen = StaticTransition(7.5, step=2), []
    drawn(tiny, rule, keep=lambda rows, seeds, step: seen.append(step.index))
    assert seen == [0, 1, 2, 3] and not kept(tiny)

    @contextmanager
    def around(substrate, batch, cost):
        yield dataclasses.replace(batch, latents=batch.latents * 1.01)

    moved = drawn(tiny, rule, around=around)[0]
    assert np.array_equal(moved, drawn(dataclasses.replace(tiny, speed=ALONE), rule, around=around)[0]) and not kept(tiny)
    assert drawn(tiny, rule, "dpm")[1] == 4 * (2 + 4) and not kept(tiny)
    calls = []
    for part in (tiny.unet, tiny.unet.mid_block.resnets[0]):
        hook = part.register_forward_hook(lambda *_: calls.append(1))
        try:
            drawn(tiny, rule)
        finally:
            hook.remove()
    assert len(calls) == 2 * STEPS and not kept(tiny)
    with record(tiny) as recording:
        drawn(tiny, rule)
    assert len(recording.attention.timesteps) == STEPS and not kept(tiny)
    try:
        tiny.unet.set_attn_processor(AttnProcessor())
        drawn(tiny, rule)
    finally:
        tiny.unet.set_attn_processor(AttnProcessor2_0())
    assert not kept(tiny)
    counter = Counter()
    with counting(tiny, counter):
        drawn(tiny, rule)
        drawn(tiny, rule)
    assert counter.rows == 2 * 4 * (2 + 2 * 2) and not kept(tiny)
    drawn(tiny, rule)
    assert kept(tiny) == {0: 2, 1: 2}  # with all of them gone


def test_methods_are_timed_alone(tiny):
    assert not unshared(tiny).speed.shared_prefix and unshared(tiny).unet is tiny.unet
    plain = dataclasses.replace(tiny, speed=Speed())
    assert unshared(plain) is plain
    cost = Sampler(tiny, STEPS)(get("static-transition", step=2), "a cat", 0, uncond_states(tiny))
    assert cost.evaluations == 2 + 2 * 2 and not kept(tiny)


def test_memory_is_bounded_by_what_was_used_longest_ago(tiny, monkeypatch):
    each = 4 * int(np.prod(tiny.latent_shape)) * 2
    monkeypatch.setattr(prefixes, "KEPT_BYTES", 2 * each)
    rule, alone = StaticTransition(7.5, step=2), dataclasses.replace(tiny, speed=ALONE)
    for seeds in ((0, 1, 2), (3,), (2, 4)):
        np.testing.assert_allclose(drawn(tiny, rule, seeds=seeds)[0], drawn(alone, rule, seeds=seeds)[0], **CLOSE)
        assert sum(latents.nbytes for latents in prefixes._KEPT[tiny.unet].passed.values()) <= 2 * each
    assert list(kept(tiny)) == [2, 4]


def test_batches_of_a_compiled_model_have_one_size(tiny, monkeypatch):
    rows, rule = [], StaticTransition(7.5, step=2)
    expected = drawn(tiny, rule, batch_size=3)[0]
    forget(tiny)
    count_rows(monkeypatch, tiny, rows)
    compiled = dataclasses.replace(tiny, speed=dataclasses.replace(SHARED, compile="default"))
    found, spent = drawn(compiled, rule, batch_size=3)
    assert set(rows) == {3, 6} and rows.count(3) == 2 and spent == 2 * 3 * (2 + 2 * 2)
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_a_step_at_the_end_ends_the_trajectory(tiny):
    batch = SimpleNamespace(rows=[0], seeds=[5], uncond=uncond_states(tiny), latents=torch.zeros(1, *tiny.latent_shape), steps=STEPS,
                            rule=StaticTransition(7.5, step=STEPS), scheduler="ddim")  # fmt: skip
    cost = Cost()
    step, latents = begun(tiny, batch, cost)
    assert step == STEPS == cost.evaluations and latents.shape == (1, *tiny.latent_shape)
    assert begun(dataclasses.replace(tiny, speed=ALONE), batch, cost)[0] == 0 and cost.evaluations == STEPS


def test_a_sweep_through_the_store_has_the_keys_pictures_and_costs_of_one_without(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    monkeypatch.setenv("MEMLIB_METRICS", str(tmp_path))
    made = []
    for speed in (ALONE, SHARED):
        substrate = dataclasses.replace(tiny, speed=speed)
        run = Experiment("tiny", n_seeds=2, steps=STEPS, store=tmp_path / str(speed.shared_prefix), loaded=substrate)
        pictures = sweep(run.group("figures", 2), [1, 2, STEPS])
        names = sorted(path.name for path in run.store.root.rglob("*.png"))
        made.append((pictures.astype(int), names, run.cost))
    (alone, names, cost), (shared, same_names, same_cost) = made
    assert np.abs(shared - alone).max() <= 1 and names == same_names and cost == same_cost and len(names) == 2 * 2 * 3
    assert (shared[0, :, 2] == shared[1, :, 2]).all()  # without guidance both prompts give the picture of the seed
