"""Transition points on hand-made traces, and recorded magnitudes against diffusers' own pipeline and a plain loop."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from memlib.base.errors import InputError
from memlib.experiment.run import Experiment
from memlib.experiment.settings import Settings
from memlib.metrics import MetricSet
from memlib.models.data import SubstrateData
from memlib.models.minisd.data import data_of
from memlib.models.substrate import load
from memlib.probes import transitions
from memlib.probes.transitions import QUANTITIES, fall_step, steepest_fall, trace, transition_step
from memlib.prompts.embedding import encode_prompts
from memlib.sampling import batches as sampling
from memlib.sampling.batches import Cost, initial_latents
from memlib.sampling.stored import PictureStore

PROMPTS = ["a cat on a red chair", "two dogs, stock photo", "boat"]


@pytest.fixture(scope="module", params=["sd1_tiny", "sd2_tiny"])
def substrate(request):
    return load(request.getfixturevalue(request.param), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def tiny(sd1_tiny):
    return load(sd1_tiny, device="cpu", dtype="float32")


def group(substrate, store, prompts=PROMPTS[:2], seeds=(3, 4), **settings):
    experiment = Settings(substrate, PictureStore(store), MetricSet({}), seeds, **{"steps": 5, **settings})
    return SimpleNamespace(experiment=experiment, embedding=encode_prompts(substrate, prompts))


# The transition point


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([5, 4, 3, 4, 9], 3),  # minimum at 2, guidance from 3
        ([5, 3, 4, 1, 2], 2),  # the earliest possible
        ([3, 5, 4, 4, 6, 5, 7], 6),  # a plateau is no strict minimum
        ([1, 2, 3, 4], -1),  # the first step is never a minimum
        ([4, 3, 2, 1], -1),  # nor the last
        ([2, 2, 2], -1),
        ([0, 0, 0.1], -1),
        ([1, 0, 1], 2),
        ([7], -1),
        ([7, 6], -1),
    ],
)
@pytest.mark.parametrize("variant", ["text", "as_published"])
def test_a_transition_comes_one_step_after_the_first_strict_local_minimum(values, step, variant):
    assert transition_step(values, variant) == step


def test_algorithm_1_run_step_by_step_decides_the_same():
    # An independent statement: the loop as printed, with its two memories.
    draw = np.random.default_rng(0)
    traces = draw.integers(0, 6, (400, 9)).astype(float)
    for memory, power, variant in ((-np.inf, 2, "text"), (-1.0, 1, "as_published")):
        expected = []
        for values in traces:
            before_last = last = memory
            on = -1
            for index, value in enumerate(values**power):
                if on < 0 and before_last > last and last < value:
                    on = index
                before_last, last = last, value
            expected.append(on)
        np.testing.assert_array_equal(transition_step(traces, variant), expected)
        assert -1 in expected and max(expected) > 4


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([5, 4, 3, 4, 9], 2),  # the minimum itself
        ([5, 3, 4, 1, 2], 3),  # the first is at 1: the second
        ([5, 3, 4, 5, 6], 1),  # there is no second
        ([4, 3, 2, 1], 5),  # none: step 5
        ([7], 5),
    ],
)
def test_the_published_program_for_opposite_guidance_chooses_otherwise(values, step):
    assert transition_step(values, "as_published_opposite") == step


def test_every_sample_has_its_own_transition():
    values = np.array([[[5, 4, 3, 4], [5, 3, 4, 5]], [[1, 2, 3, 4], [2, 1, 2, 1]]])
    assert transition_step(values).tolist() == [[3, 2], [-1, 2]]


@pytest.mark.parametrize("values", [[], 3.0, [1, np.nan, 2], np.zeros((2, 0))])
def test_unusable_traces_are_refused(values):
    for measure in (transition_step, steepest_fall, fall_step):
        with pytest.raises(InputError, match="not usable: give finite values"):
            measure(values)


def test_unknown_choices_are_refused():
    with pytest.raises(InputError, match="one of text, as_published, as_published_opposite"):
        transition_step([1, 2, 3], "code")
    for window in (0, 1.5):
        with pytest.raises(InputError, match="above 0 and at most 1"):
            steepest_fall([1, 2], window)


# Drops


def test_falls_by_hand():
    cliff = np.r_[np.full(20, 8.0), np.full(30, 2.0)]
    assert steepest_fall(cliff) == 0.75 and fall_step(cliff) == 20
    even = np.linspace(1, 0, 51)[:50]
    assert steepest_fall(even) == pytest.approx(0.1)
    assert steepest_fall(np.linspace(1, 5, 50)) == 0 and fall_step(np.linspace(1, 5, 50)) == -1
    # Flat and low, with a dip at the end of a tenth of its height: a small drop, whatever the values.
    dip = np.r_[np.full(49, 1e-3), 9e-4]
    assert steepest_fall(dip) == pytest.approx(0.1)
    # Spread over six steps, of which the window of five sees five sixths.
    slope = np.r_[np.full(10, 6.0), np.arange(5, -1, -1.0), np.zeros(34)]
    assert steepest_fall(slope) == pytest.approx(5 / 6) and steepest_fall(slope, 0.12) == pytest.approx(1)
    assert steepest_fall([3.0]) == 0 and fall_step([3.0]) == -1 and steepest_fall([0, 0]) == 0
    assert steepest_fall([4, 1]) == 0.75  # a window of less than a step is one step


def test_a_drop_does_not_depend_on_the_scale():
    values = np.random.default_rng(1).uniform(1, 5, (3, 2, 50))
    np.testing.assert_allclose(steepest_fall(1e4 * values), steepest_fall(values))
    assert steepest_fall(values).shape == (3, 2) and (steepest_fall(values) < 1).all()


# Recording


def test_magnitudes_under_guidance_equal_those_seen_in_diffusers_pipeline(substrate, tmp_path):
    recorded = trace(group(substrate, tmp_path, seeds=(7,)))
    seen = []
    hook = substrate.unet.register_forward_hook(
        lambda model, given, keywords, output: seen.append((given[0].chunk(2)[1], int(given[1]), *output[0].chunk(2))), with_kwargs=True
    )
    pipe, own = substrate.pipe, substrate.pipe.scheduler
    pipe.scheduler = DDIMScheduler.from_config(own.config)
    noise = initial_latents([7], substrate.latent_shape)
    try:
        final = pipe(PROMPTS[:2], latents=noise.repeat(2, 1, 1, 1), num_inference_steps=5, guidance_scale=7.5, output_type="latent").images
    finally:
        hook.remove()
        abar, kind = pipe.scheduler.alphas_cumprod, pipe.scheduler.config.prediction_type
        pipe.scheduler = own
    assert recorded.difference.shape == (2, 1, 5) and recorded.times.tolist() == [t for _, t, _, _ in seen]
    latents = [x for x, *_ in seen] + [final]
    for index, (x, t, uncond, cond) in enumerate(seen):
        raw = (cond - uncond).flatten(1).norm(dim=1)
        if kind == "v_prediction":
            cond, uncond = (abar[t].sqrt() * v + (1 - abar[t]).sqrt() * x for v in (cond, uncond))
        turn = 1 - torch.cosine_similarity(x.double().flatten(1), latents[index + 1].double().flatten(1), dim=1)
        expected = {
            "raw_difference": raw,
            "difference": (cond - uncond).flatten(1).norm(dim=1),
            "conditional": cond.flatten(1).norm(dim=1),
            "unconditional": uncond.flatten(1).norm(dim=1),
        }
        for name, values in expected.items():
            np.testing.assert_allclose(getattr(recorded, name)[:, 0, index], values, rtol=2e-4, err_msg=name)
        np.testing.assert_allclose(recorded.turn[:, 0, index], turn, rtol=1e-3, atol=1e-6)
    assert (kind == "v_prediction") == (not np.allclose(recorded.raw_difference, recorded.difference, rtol=1e-3))
    assert (recorded.scale == 7.5).all()


@pytest.mark.parametrize("scale", [0.0, -7.5])
def test_magnitudes_without_and_under_opposite_guidance_equal_a_plain_loop(tiny, tmp_path, scale):
    prompts = group(tiny, tmp_path, seeds=(2,))
    recorded = trace(prompts, scale)
    solver = DDIMScheduler.from_config(tiny.pipe.scheduler.config)
    solver.set_timesteps(5)
    none = encode_prompts(tiny, [""]).states
    x = initial_latents([2], tiny.latent_shape)
    for index, t in enumerate(solver.timesteps):
        with torch.no_grad():
            cond = tiny.unet(x, t, prompts.embedding.states[1:2]).sample
            uncond = tiny.unet(x, t, none).sample
        assert recorded.difference[1, 0, index] == pytest.approx(float((cond - uncond).norm()), rel=1e-3)
        x = solver.step(uncond + scale * (cond - uncond), t, x).prev_sample
    if scale == 0:
        # The prompt does not act: all prompts share the trajectory of their seed.
        np.testing.assert_allclose(recorded.unconditional[0], recorded.unconditional[1], rtol=1e-5)


@pytest.mark.parametrize("kind", ["dpm", "euler"])
def test_other_schedulers_are_recorded_too(substrate, kind, tmp_path):
    recorded = trace(group(substrate, tmp_path, scheduler=kind), 0.0)
    assert np.isfinite(recorded.difference).all() and (recorded.difference > 0).all() and recorded.times.shape == (5,)


def test_a_trace_does_not_depend_on_its_batch(tiny, tmp_path):
    whole = trace(group(tiny, tmp_path / "a", PROMPTS, (1, 2, 5)))
    parts = trace(group(tiny, tmp_path / "b", PROMPTS, (1, 2, 5), batch_size=2))
    alone = trace(group(tiny, tmp_path / "c", PROMPTS[1:2], (5,)))
    for name in QUANTITIES:
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(getattr(alone, name)[0, 0], getattr(whole, name)[1, 2], rtol=1e-3, atol=1e-5)
    assert np.ptp(whole.difference[..., -1]) > 1e-3


def test_a_rule_acts_on_each_sample(tiny, tmp_path):
    @dataclass(frozen=True)
    class Late:
        name: ClassVar[str] = "late"
        params: ClassVar[dict] = {"step": 2}

        def start(self, batch):
            return lambda info: torch.full((batch,), 7.5 if info.index >= 2 else 0.0)

    late, never = trace(group(tiny, tmp_path), Late()), trace(group(tiny, tmp_path), 0)
    assert late.scale[0, 0].tolist() == [0, 0, 7.5, 7.5, 7.5]
    np.testing.assert_allclose(late.difference[..., :3], never.difference[..., :3], rtol=1e-5)
    assert not np.allclose(late.difference[..., 3:], never.difference[..., 3:], rtol=1e-3)


def test_what_was_recorded_is_found_again_and_nothing_is_decoded(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "decode", None)
    first = group(tiny, tmp_path)
    recorded = trace(first, 0.0)
    assert first.experiment.cost == Cost(evaluations=2 * 5 * 4, pictures=0) and first.experiment.store.made == 4
    again = group(tiny, tmp_path)
    for name in QUANTITIES:
        np.testing.assert_array_equal(getattr(trace(again, 0.0), name), getattr(recorded, name))
    assert again.experiment.cost == Cost() and again.experiment.store.made == 0
    # One more seed costs that seed alone, in whatever order; another scale is another trace.
    more = group(tiny, tmp_path, seeds=(9, 4, 3))
    np.testing.assert_array_equal(trace(more, 0.0).difference[:, [2, 1]], recorded.difference)
    assert more.experiment.store.made == 2
    trace(more, 1.0)
    assert more.experiment.store.made == 8


def test_a_stopped_recording_keeps_its_finished_batches(tiny, tmp_path, monkeypatch):
    stopped = group(tiny, tmp_path, batch_size=2)
    quantities, calls = transitions._quantities, []

    def stop_in_the_second_batch(step):
        calls.append(step.index)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return quantities(step)

    monkeypatch.setattr(transitions, "_quantities", stop_in_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        trace(stopped)
    monkeypatch.undo()
    rest = group(tiny, tmp_path, batch_size=2)
    trace(rest)
    assert (stopped.experiment.store.made, rest.experiment.store.made, rest.experiment.store.found) == (2, 2, 2)


def test_each_variant_looks_at_its_own_quantity(tiny, tmp_path):
    recorded = trace(group(tiny, tmp_path))
    np.testing.assert_array_equal(recorded.transition(), transition_step(recorded.difference))
    np.testing.assert_array_equal(recorded.transition("as_published"), transition_step(recorded.raw_difference, "as_published"))
    opposite = transition_step(recorded.turn, "as_published_opposite")
    np.testing.assert_array_equal(recorded.transition("as_published_opposite"), opposite)
    with pytest.raises(InputError, match="Unknown variant"):
        recorded.transition("code")


def test_the_control_is_of_the_memorized_prompts_kind():
    run = object.__new__(Experiment)
    run.substrate = SimpleNamespace(data=data_of("minisd-v1"))
    titles = run.control("auto", 5)
    assert len(titles) == 5 and set(titles.prompts.table["copies"].astype(int)) == {1}
    assert run.control("none") is None and len(run.control("minisd-heldout", 3)) == 3
    run.substrate = SimpleNamespace(data=SubstrateData())
    assert run.control() is None
