"""Guidance rules against closed forms, a toy U-Net with known magnitudes, and diffusers' own pipelines told what to do by callbacks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from scipy.signal import argrelmin

import memlib
from memlib.base.errors import InputError
from memlib.mitigations import REGISTRY, Mitigation, get
from memlib.models.substrate import load
from memlib.prompts.embedding import encode_prompts
from memlib.sampling.batches import Cost, initial_latents, trajectory
from memlib.sampling.guidance import Rule, StepInfo, constant
from memlib.sampling.rules import Annealed, DynamicTransition, LimitedInterval, StaticTransition

PROMPTS = ["a cat on a red chair", "two dogs, stock photo"]
CLASSES = {"ddim": DDIMScheduler, "dpm": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler}
RULES = [StaticTransition(), DynamicTransition(), Annealed(), LimitedInterval()]
OURS = ["static-transition", "static-transition-opposite", "dynamic-transition", "dynamic-transition-opposite", "annealed-guidance",
        "interval-guidance"]  # fmt: skip


@pytest.fixture(scope="module")
def sd1(sd1_tiny):
    return load(sd1_tiny, device="cpu", dtype="float32")


@pytest.fixture(scope="module", params=["sd1_tiny", "sd2_tiny"])
def substrate(request):
    return load(request.getfixturevalue(request.param), device="cpu", dtype="float32")


@pytest.fixture
def pipe(substrate):
    own = substrate.pipe.scheduler
    yield substrate.pipe
    substrate.pipe.scheduler = own
    assert not {"encode_prompt", "progress_bar"} & set(substrate.pipe.__dict__)
    assert not substrate.unet._forward_hooks


def follow(rule: Rule, magnitudes, times=None):
    """Scales [T, B] that a rule gives for magnitudes [T, B]; the noise has that length and nothing else."""
    magnitudes = torch.as_tensor(magnitudes, dtype=torch.float32)
    steps, batch = magnitudes.shape
    times = [1000 - 1000 * i / steps for i in range(steps)] if times is None else times
    scales, nothing = rule.start(batch), torch.zeros(batch, 2, 1, 1)
    used = []
    for index in range(steps):
        cond = nothing.clone()
        cond[:, 1, 0, 0] = magnitudes[index]
        used.append(scales(StepInfo(index, steps, times[index], nothing, nothing, cond)))
        assert used[-1].shape == (batch,) and used[-1].dtype == torch.float32
    return torch.stack(used)


# --- the rules by themselves


def test_a_static_transition_is_a_step_function():
    flat = np.ones((6, 2))
    assert follow(StaticTransition(7.5, 2), flat)[:, 0].tolist() == [0, 0, 7.5, 7.5, 7.5, 7.5]
    assert follow(StaticTransition(5.0, 1, before=-2.0), flat)[:, 1].tolist() == [-2, 5, 5, 5, 5, 5]
    assert follow(StaticTransition(5.0, 0, before=-2.0), flat).unique().tolist() == [5]
    assert follow(StaticTransition(5.0, 6), flat).unique().tolist() == [0]
    # From t <= t* on, the bound included, and times between the training steps as Euler has them.
    times = [981.0, 750.5, 500.0, 499.5, 250.0, 1.0]
    assert follow(StaticTransition(5.0, time=500), flat, times)[:, 0].tolist() == [0, 0, 5, 5, 5, 5]
    assert follow(StaticTransition(5.0, time=499.9), flat, times)[:, 0].tolist() == [0, 0, 0, 5, 5, 5]
    assert StaticTransition().params == {"scale": 7.5, "before": 0.0, "step": 10}
    assert StaticTransition(time=650, before=-2).params == {"scale": 7.5, "before": -2.0, "time": 650.0}


TRACES = {  # magnitudes and the index of the first step with guidance, None for never
    "the minimum at the third step": ([5, 4, 3, 4, 5, 6, 7], 3),
    "as early as can be": ([3, 1, 2, 2, 2, 2, 2], 2),
    "only the first counts, and it lasts": ([5, 4, 5, 1, 9, 1, 9], 2),
    "after a rise": ([2, 3, 4, 3, 2, 3, 4], 5),
    "rising": ([1, 2, 3, 4, 5, 6, 7], None),
    "falling": ([7, 6, 5, 4, 3, 2, 1], None),
    "a flat floor is no strict minimum": ([5, 4, 4, 5, 6, 7, 8], None),
    "a flat floor, then a minimum": ([5, 4, 4, 5, 3, 4, 5], 5),
    "the last step comes too late": ([7, 6, 5, 4, 3, 2, 3], 6),
}


@pytest.mark.parametrize("variant", ["text", "as_published"])
def test_a_dynamic_transition_comes_one_step_after_the_first_local_minimum(variant):
    traces = np.array([trace for trace, _ in TRACES.values()]).T
    before = {"text": 0.0, "as_published": 1.0}[variant]
    together = follow(DynamicTransition(7.5, variant=variant), traces)
    for column, (name, (trace, start)) in enumerate(TRACES.items()):
        start = len(trace) if start is None else start
        expected = [before] * start + [7.5] * (len(trace) - start)
        assert together[:, column].tolist() == expected, name
        # A sample switches at the same step whatever its batch.
        assert follow(DynamicTransition(7.5, variant=variant), traces[:, [column]])[:, 0].tolist() == expected, name


def test_the_first_local_minimum_is_that_of_scipy():
    traces = np.random.default_rng(0).lognormal(size=(40, 200)).cumsum(0).clip(max=30) + np.random.default_rng(1).normal(size=(40, 200))
    traces = np.abs(traces).astype(np.float32)
    used = follow(DynamicTransition(7.5, before=-7.5), traces).numpy()
    assert set(np.unique(used)) == {-7.5, 7.5}
    for column in range(200):
        minima = argrelmin(traces[:, column])[0]
        start = minima[0] + 1 if len(minima) else 40
        assert (used[:start, column] == -7.5).all() and (used[start:, column] == 7.5).all()


def test_each_trajectory_begins_anew():
    rule, trace = DynamicTransition(), np.array([[3.0], [1.0], [2.0], [5.0]])
    assert torch.equal(follow(rule, trace), follow(rule, trace))
    assert follow(rule, trace[1:]).unique().tolist() == [0]


def test_rising_and_limited_guidance_have_a_closed_form():
    flat = np.ones((5, 2))
    torch.testing.assert_close(follow(Annealed(9.0), flat)[:, 0], torch.tensor([1.0, 3, 5, 7, 9]))
    cosine = torch.tensor([2 + 3 * (1 - math.cos(math.pi * i / 4)) for i in range(5)])
    torch.testing.assert_close(follow(Annealed(8.0, before=2.0, shape="cosine"), flat)[:, 1], cosine)
    assert follow(Annealed(9.0), flat[:1]).tolist() == [[1.0, 1.0]]
    times = [981.0, 812.0, 400.0, 72.0, 1.0]
    assert follow(LimitedInterval(), flat, times)[:, 0].tolist() == [1, 7.5, 7.5, 1, 1]
    assert follow(LimitedInterval(3.0, high=500, low=0, outside=0.0), flat, times)[:, 0].tolist() == [0, 0, 3, 3, 3]


def test_a_rule_is_known_by_name_and_numbers():
    described = [str({"rule": rule.name, **rule.params}) for rule in [*RULES, StaticTransition(time=500), DynamicTransition(before=-7.5),
                 DynamicTransition(variant="as_published"), Annealed(shape="cosine"), constant(7.5)]]  # fmt: skip
    assert len(set(described)) == len(described)
    assert all(isinstance(rule, Rule) and hash(rule) is not None for rule in RULES)
    # Written as a whole number or not, a rule gives the same key.
    assert str(StaticTransition(7, 2, 0).params) == str(StaticTransition(7.0, 2, 0.0).params)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: StaticTransition("7"), "scale of static-transition is '7'"),
        (lambda: StaticTransition(before=math.nan), "before of static-transition is nan"),
        (lambda: StaticTransition(step=2.5), "step of static-transition is 2.5: give a whole number"),
        (lambda: StaticTransition(step=-1), "whole number from 0"),
        (lambda: StaticTransition(step=True), "step of static-transition is True"),
        (lambda: StaticTransition(time="late"), "time of static-transition is 'late'"),
        (lambda: StaticTransition(step=3, time=500), "a step or a time, not both"),
        (lambda: DynamicTransition(variant="code"), "'code' of dynamic-transition: use one of text, as_published"),
        (lambda: DynamicTransition(math.inf), "scale of dynamic-transition is inf"),
        (lambda: DynamicTransition(before=-7.5, variant="as_published"), "does not run: use variant 'text'"),
        (lambda: Annealed(shape="square"), "'square' of annealed: use one of linear, cosine"),
        (lambda: LimitedInterval(high=10, low=10), "give a high time above the low one"),
        (lambda: LimitedInterval(outside=None), "outside of limited-interval is None"),
        (lambda: get("static-transition", step=-3), "whole number from 0"),
        (lambda: get("static-transition", time=None), "time of static-transition is None"),
        (lambda: get("dynamic-transition", variant="soon"), "use one of text, as_published"),
        (lambda: get("dynamic-transition-opposite", strength=-1), "number from 0 on"),
        (lambda: get("dynamic-transition-opposite", strength="full"), "strength of dynamic-transition-opposite is 'full'"),
        (lambda: get("interval-guidance", low=900), "give a high time above the low one"),
        (lambda: get("static-transition").guidance(StaticTransition()), "give it a number as guidance, not a rule"),
    ],
)  # fmt: skip
def test_bad_parameters_end_in_one_sentence(make, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        make()
    assert str(caught.value).count(". ") == 0 and str(caught.value).endswith(".")


# --- in the sampling loop


class ToyUNet:
    """Predicts no noise without text, and with the text of sample i noise of the length `magnitudes[step, i]`; counts its calls."""

    def __init__(self, magnitudes, times):
        self.magnitudes, self.times, self.calls, self.rows = magnitudes, [float(t) for t in times], 0, 0

    def __call__(self, sample, t, encoder_hidden_states, return_dict):
        self.calls, self.rows = self.calls + 1, self.rows + len(sample)
        who = encoder_hidden_states[:, 0, 0].long()
        length = torch.cat([torch.as_tensor(self.magnitudes[self.times.index(float(t))], dtype=torch.float32), torch.zeros(1)])[who]
        noise = torch.zeros_like(sample)
        noise[:, 0, 0, 0] = length
        return (noise,)


def toy(magnitudes):
    solver = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    solver.set_timesteps(len(magnitudes))
    return SimpleNamespace(
        name="toy", latent_shape=(1, 2, 2), device=torch.device("cpu"), dtype=torch.float32,
        unet=ToyUNet(np.asarray(magnitudes), solver.timesteps), scheduler=lambda kind, steps: solver,
    )  # fmt: skip


def text(rows):
    return torch.tensor(rows, dtype=torch.float32)[:, None, None].expand(-1, 77, 4)


def test_in_one_batch_every_sample_switches_at_its_own_step():
    traces = np.array([trace for trace, _ in TRACES.values()], dtype=float).T
    samples, steps = traces.shape[1], len(traces)
    latents = torch.randn(samples, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    for rule in (DynamicTransition(), DynamicTransition(before=-7.5)):
        substrate, cost = toy(traces), Cost()
        run = list(trajectory(substrate, text(range(samples)), text([-1]), latents, steps, rule, cost=cost))
        for i, (_, start) in enumerate(TRACES.values()):
            start = steps if start is None else start
            assert [float(step.guidance[i]) for step in run] == [rule.before] * start + [7.5] * (steps - start)
        assert (substrate.unet.calls, cost.evaluations) == (steps, 2 * samples * steps)
        # The guided noise is what the scheduler got: with all of it in one entry of the latents the others end alike.
        plain = list(trajectory(toy(traces), text(range(samples)), text([-1]), latents, steps, 7.5))
        assert torch.equal(run[-1].next_latents[:, 0, 1], plain[-1].next_latents[:, 0, 1])
        assert not torch.allclose(run[-1].next_latents[:, 0, 0, 0], plain[-1].next_latents[:, 0, 0, 0])


@pytest.mark.parametrize("rule", [*RULES, DynamicTransition(before=-7.5), StaticTransition(time=650, before=-2)], ids=str)
def test_no_rule_adds_evaluations_and_none_looks_at_its_batch(rule, substrate):
    embedding = encode_prompts(substrate, [*PROMPTS, PROMPTS[0]])
    uncond = encode_prompts(substrate, [""]).states
    latents, cost = initial_latents([3, 4, 5], substrate.latent_shape), Cost()
    together = list(trajectory(substrate, embedding.states, uncond, latents, 12, rule, cost=cost))
    assert cost.evaluations == 2 * 3 * 12
    alone = list(trajectory(substrate, embedding.states[1:2], uncond, latents[1:2], 12, rule))
    assert [float(s.guidance[1]) for s in together] == [float(s.guidance[0]) for s in alone]
    torch.testing.assert_close(together[-1].next_latents[1:2], alone[-1].next_latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", CLASSES)
def test_constant_guidance_is_bit_equal_to_the_plain_loop(kind, substrate):
    embedding, uncond = encode_prompts(substrate, PROMPTS).states, encode_prompts(substrate, [""]).states
    noise = initial_latents([1, 2], substrate.latent_shape)
    solver = substrate.scheduler(kind, 5)
    latents = noise * float(solver.init_noise_sigma)
    both = torch.cat([uncond.expand(2, -1, -1), embedding])
    with torch.no_grad():
        for t in solver.timesteps:
            model_input = solver.scale_model_input(latents, t)
            u, c = substrate.unet(torch.cat([model_input] * 2), t, encoder_hidden_states=both, return_dict=False)[0].chunk(2)
            latents = solver.step(u + 7.5 * (c - u), t, latents, return_dict=False)[0]
    for rule in (7.5, constant(7.5), StaticTransition(7.5, 0), StaticTransition(7.5, time=1000), LimitedInterval(7.5, 1001, -1)):
        *_, last = trajectory(substrate, embedding, uncond, noise, 5, rule, kind)
        assert torch.equal(last.next_latents, latents)


@pytest.mark.parametrize("kind", ["ddim", "euler"])
def test_a_trajectory_started_later_is_the_rest_of_the_whole_one(kind, substrate):
    embedding, uncond = encode_prompts(substrate, PROMPTS).states, encode_prompts(substrate, [""]).states
    noise = initial_latents([1, 2], substrate.latent_shape)
    rule = StaticTransition(7.5, 3)
    whole = list(trajectory(substrate, embedding, uncond, noise, 6, rule, kind))
    for k in (1, 4):
        cost = Cost()
        rest = list(trajectory(substrate, embedding, uncond, whole[k].latents, 6, rule, kind, cost=cost, start=k))
        assert [step.index for step in rest] == list(range(k, 6)) and {step.steps for step in rest} == {6}
        assert [step.t for step in rest] == [step.t for step in whole[k:]] and cost.evaluations == 4 * (6 - k)
        assert torch.equal(rest[0].latents, whole[k].latents) and torch.equal(rest[-1].next_latents, whole[-1].next_latents)
    same = list(trajectory(substrate, embedding, uncond, noise, 6, rule, kind, start=0))
    assert torch.equal(same[-1].next_latents, whole[-1].next_latents)


@pytest.mark.parametrize(
    ("start", "kind", "sentence"),
    [(6, "ddim", "from 0 to 5"), (-1, "ddim", "from 0 to 5"), (1.0, "ddim", "from 0 to 5"), (True, "ddim", "from 0 to 5"),
     (2, "dpm", "'dpm' needs the steps before step 2.*use one of ddim, euler")],
)  # fmt: skip
def test_a_start_that_cannot_be_is_named(start, kind, sentence, sd1):
    states = encode_prompts(sd1, PROMPTS).states
    with pytest.raises(InputError, match=sentence):
        list(trajectory(sd1, states, states[:1], initial_latents([1, 2], sd1.latent_shape), 6, 7.5, kind, start=start))


# --- in diffusers' pipelines


@dataclass(frozen=True)
class Spy(Mitigation):
    """Leaves guidance alone, or sets it to zero, and notes what its rule sees."""

    zero: bool = False
    name: ClassVar[str] = "spy"
    seen: ClassVar[list] = []

    def guidance(self, scale):
        assert scale == 7.5
        mitigation = self

        class Noting:
            name, params = "noting", {}

            def start(self, batch):
                Spy.seen.append([])

                def scales(info):
                    Spy.seen[-1].append(info)
                    return torch.full((batch,), 0.0 if mitigation.zero else 7.5)

                return scales

        return Noting()


@pytest.fixture
def spied():
    Spy.seen.clear()
    return Spy.seen


def run(pipe, latents, prompts=PROMPTS, steps=6, **options):
    told = {"prompt": prompts} if isinstance(prompts, (str, list)) else {"prompt_embeds": prompts}
    return pipe(**told, num_inference_steps=steps, latents=latents.clone(), output_type="latent", guidance_scale=7.5, **options).images


def told_by_callback(pipe, k, before, cond, uncond, **options):
    """The pipeline with guidance `before` for its first k steps of this call and 7.5 then, by means of its own callback alone.

    Scale 0 is the unconditional embedding in both halves. Scale 1 - g is scale g with the two halves exchanged.
    """
    first, second, scale = {0.0: (uncond, uncond, 7.5), 2.0: (uncond, cond, 2.0), -2.0: (cond, uncond, 3.0)}[before]

    def switch(pipe, i, t, tensors):
        if i == k - 1:
            pipe._guidance_scale = 7.5
            return {"prompt_embeds": torch.cat([uncond, cond])}
        return {}

    return pipe(
        prompt_embeds=second, negative_prompt_embeds=first, guidance_scale=scale, output_type="latent", callback_on_step_end=switch,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"], **options,
    ).images  # fmt: skip


def close(first, second):
    return torch.allclose(first, second, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("before", [0.0, -2.0, 2.0])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_static_transition_equals_the_own_loop_and_a_pipeline_told_by_its_callback(kind, before, substrate, pipe):
    pipe.scheduler = CLASSES[kind].from_config(substrate.scheduler(kind, 6).config)
    cond, uncond = (encode_prompts(substrate, texts).states for texts in (PROMPTS, ["", ""]))
    latents = initial_latents([1, 2], substrate.latent_shape)
    plain = run(pipe, latents)
    with memlib.mitigate(pipe, "static-transition", step=3, before=before):
        got, again = run(pipe, latents), run(pipe, latents)
    *_, last = trajectory(substrate, cond, uncond, latents, 6, StaticTransition(7.5, 3, before), kind)
    expected = told_by_callback(pipe, 3, before, cond, uncond, num_inference_steps=6, latents=latents.clone())
    assert close(got, last.next_latents) and close(got, expected) and not close(got, plain)
    assert torch.equal(got, again) and torch.equal(run(pipe, latents), plain)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_rule_sees_what_it_sees_in_the_own_loop(kind, substrate, pipe, spied):
    pipe.scheduler = CLASSES[kind].from_config(substrate.scheduler(kind, 6).config)
    cond, uncond = (encode_prompts(substrate, texts).states for texts in (PROMPTS, ["", ""]))
    latents = initial_latents([1, 2], substrate.latent_shape)
    plain = run(pipe, latents)
    with memlib.mitigate(pipe, Spy()):
        assert torch.equal(run(pipe, latents), plain)  # the scale asked for is the pipeline's own: not one bit differs
    own = list(trajectory(substrate, cond, uncond, latents, 6, 7.5, kind))
    assert [[i.index for i in call] for call in spied] == [list(range(6))] and {i.steps for i in spied[0]} == {6}
    for seen, step in zip(spied[0], own):
        assert seen.t == step.t
        torch.testing.assert_close(seen.latents, step.latents, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(seen.epsilon_cond, step.epsilon_cond, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(seen.magnitude, step.magnitude, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", OURS)
def test_every_mitigation_equals_its_rule_in_the_own_loop(name, substrate, pipe):
    pipe.scheduler = DDIMScheduler.from_config(substrate.scheduler("ddim", 12).config)
    prompts, seeds = [p for p in PROMPTS for _ in range(2)], [1, 2, 3, 4]
    embedding, latents = encode_prompts(substrate, prompts), initial_latents(seeds, substrate.latent_shape)
    rule = REGISTRY[name].guidance(7.5)
    steps = list(trajectory(substrate, embedding.states, encode_prompts(substrate, [""]).states, latents, 12, rule))
    with memlib.mitigate(pipe, name) as handle:
        assert handle.remark == ""
        assert close(run(pipe, latents, steps=12, num_images_per_prompt=2), steps[-1].next_latents)
        given = encode_prompts(substrate, prompts).states
        assert close(run(pipe, latents, given, steps=12), steps[-1].next_latents)  # embeddings are left alone, so any may be given
    assert torch.equal(REGISTRY[name].apply(substrate, embedding).states, embedding.states)


def test_in_a_pipeline_too_every_picture_switches_at_its_own_step(sd1, monkeypatch):
    # The magnitudes of a random model need not have a minimum: these do, at a step of each sample's own.
    from memlib.mitigations import pipeline_guidance

    minima = [1, 3, 2, 8]  # the index of the minimum; the last one lies behind the end
    lengths = torch.tensor([[abs(i - m) + 1.0 for m in minima] for i in range(6)])

    class Told(StepInfo):
        @property
        def magnitude(self):
            return lengths[self.index]

    monkeypatch.setattr(pipeline_guidance, "StepInfo", Told)
    prompts = [p for p in PROMPTS for _ in range(2)]
    latents = initial_latents([1, 2, 3, 4], sd1.latent_shape)
    with memlib.mitigate(sd1.pipe, "dynamic-transition"):
        pipe, own = sd1.pipe, sd1.pipe.scheduler
        pipe.scheduler = DDIMScheduler.from_config(sd1.scheduler("ddim", 6).config)
        try:
            got = run(pipe, latents, num_images_per_prompt=2)
        finally:
            pipe.scheduler = own
    cond, uncond = encode_prompts(sd1, prompts).states, encode_prompts(sd1, [""]).states
    for row, minimum in enumerate(minima):
        *_, last = trajectory(sd1, cond[row : row + 1], uncond, latents[row : row + 1], 6, StaticTransition(7.5, minimum + 1))
        assert close(got[row : row + 1], last.next_latents)


def test_repeated_times_are_steps_of_their_own(sd1, spied):
    pipe, own = sd1.pipe, sd1.pipe.scheduler
    pipe.scheduler = PNDMScheduler.from_config(own.config)
    latents = initial_latents([1, 2], sd1.latent_shape)
    cond, uncond = (encode_prompts(sd1, texts).states for texts in (PROMPTS, ["", ""]))
    try:
        with memlib.mitigate(pipe, Spy()):
            run(pipe, latents)
        assert [i.index for i in spied[0]] == list(range(7)) and spied[0][1].t == spied[0][2].t
        with memlib.mitigate(pipe, "static-transition", step=2):
            got = run(pipe, latents)
        assert close(got, told_by_callback(pipe, 2, 0.0, cond, uncond, num_inference_steps=6, latents=latents.clone()))
    finally:
        pipe.scheduler = own


@pytest.mark.parametrize("kind", ["img2img", "inpaint", "inpaint of nine channels"])
def test_pictures_from_pictures_begin_later_in_the_schedule(kind, sd1, spied):
    parts = dict(sd1.pipe.components)
    parts["scheduler"] = DDIMScheduler.from_config(sd1.scheduler("ddim", 10).config)
    if kind.endswith("channels"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            parts["unet"] = UNet2DConditionModel.from_config({**sd1.unet.config, "in_channels": 9}).eval()
    pipe = (StableDiffusionImg2ImgPipeline if kind == "img2img" else StableDiffusionInpaintPipeline)(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    draw = np.random.default_rng(0)
    more = {"image": Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "strength": 0.8, "num_inference_steps": 10}
    if kind != "img2img":
        more |= {"mask_image": Image.fromarray(np.triu(np.full((64, 64), 255, np.uint8))), "height": 64, "width": 64}

    def made(**options):
        return pipe(prompt=PROMPTS[:1], guidance_scale=7.5, output_type="latent", generator=torch.Generator().manual_seed(2), **more,
                    **options).images  # fmt: skip

    plain = made()
    with memlib.mitigate(pipe, Spy()):
        assert torch.equal(made(), plain)
    assert [i.index for i in spied[0]] == list(range(2, 10)) and {i.steps for i in spied[0]} == {10}
    assert spied[0][0].latents.shape == (1, 4, 8, 8)
    with memlib.mitigate(pipe, "static-transition", step=5):
        got = made()
        assert "progress_bar" not in sd1.pipe.__dict__ and not sd1.unet._forward_hooks
    cond, uncond = (encode_prompts(sd1, texts).states for texts in (PROMPTS[:1], [""]))
    expected = told_by_callback(pipe, 3, 0.0, cond, uncond, generator=torch.Generator().manual_seed(2), **more)
    assert close(got, expected) and not close(got, plain) and torch.equal(made(), plain)


def test_undone_exactly_also_after_an_exception(substrate, pipe):
    latents = initial_latents([1, 2], substrate.latent_shape)
    plain = run(pipe, latents)

    def stop(*args):
        raise RuntimeError("stopped by the caller")

    with memlib.mitigate(pipe, "dynamic-transition-opposite") as handle:
        with pytest.raises(RuntimeError, match="stopped"):
            run(pipe, latents, callback_on_step_end=stop)
        assert not pipe.unet._forward_hooks
        first = run(pipe, latents)  # a call that was broken off leaves nothing behind for the next one
        assert torch.equal(run(pipe, latents), first)
    handle.undo()
    assert torch.equal(run(pipe, latents), plain)
    with pytest.raises(RuntimeError, match="stopped"), memlib.mitigate(pipe, "static-transition"):
        run(pipe, latents, callback_on_step_end=stop)
    assert torch.equal(run(pipe, latents), plain)

    handle = memlib.mitigate(pipe, "static-transition")
    with pytest.raises(InputError, match="mitigated by 'static-transition' already"):
        memlib.mitigate(pipe, "pad-swap")
    ours, pipe.progress_bar = pipe.progress_bar, lambda *a, **k: ours(*a, **k)
    with pytest.raises(InputError, match="progress_bar of this pipeline was replaced after .* undo the later replacement first"):
        handle.undo()
    pipe.progress_bar = ours
    handle.undo()


def test_half_precision_and_dictionaries_as_output(sd1_tiny):
    pipe = load(sd1_tiny, device="cpu", dtype="bfloat16").pipe
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    latents = initial_latents([1, 2], (4, 8, 8)).bfloat16()
    seen = []
    with memlib.mitigate(pipe, "static-transition", step=3):
        run(pipe, latents, callback_on_step_end=lambda pipe, i, t, tensors: seen.append(tensors["latents"].dtype) or {})
    assert seen == [torch.bfloat16] * 6
    states = pipe.encode_prompt(PROMPTS[0], "cpu", 1, True)
    both = torch.cat([states[1], states[0]])
    with memlib.mitigate(pipe, "static-transition", step=3), pipe.progress_bar(total=1), torch.no_grad():
        output = pipe.unet(torch.cat([latents[:1]] * 2), pipe.scheduler.timesteps[0], encoder_hidden_states=both)
    assert torch.equal(output.sample[0], output.sample[1])


def test_what_cannot_be_guided_is_refused_in_one_sentence(sd1):
    pipe, latents = sd1.pipe, initial_latents([1], sd1.latent_shape)
    with memlib.mitigate(pipe, "dynamic-transition"):
        with pytest.raises(InputError, match="With guidance_scale 1.0 the pipeline makes no unconditional .* use a guidance_scale above 1"):
            pipe(PROMPTS[0], num_inference_steps=2, guidance_scale=1.0, latents=latents)
        run(pipe, latents, PROMPTS[0], steps=2)
        states = encode_prompts(sd1, ["", PROMPTS[0]]).states
        with pytest.raises(InputError, match="once per step of the schedule"), pipe.progress_bar(total=2), torch.no_grad():
            for _ in range(2):  # the same time twice, as for several views of one picture
                pipe.unet(torch.cat([latents] * 2), pipe.scheduler.timesteps[0], encoder_hidden_states=states)
        with pytest.raises(InputError, match="on the same latents"), pipe.progress_bar(total=2), torch.no_grad():
            pipe.unet(torch.cat([latents, -latents]), pipe.scheduler.timesteps[0], encoder_hidden_states=states)
    assert not pipe.unet._forward_hooks

    class Edits(type(pipe)):
        image_guidance_scale = 1.5

    other = Edits(**pipe.components, requires_safety_checker=False)
    with pytest.raises(InputError, match="Edits does not guide as Stable Diffusion"):
        memlib.mitigate(other, "dynamic-transition")
    assert not {"encode_prompt", "progress_bar"} & set(other.__dict__)
