"""Faster ways to sample give the pictures of the plain way, and touch nothing where somebody looks or edits."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from memlib.base.errors import InputError
from memlib.models.speed import Speed, TextCache, kernels, prepare, speed_of
from memlib.prompts.embedding import encode_prompts
from memlib.sampling.batches import Cost, decode, initial_latents, sample, sample_batches, trajectory, uncond_states
from memlib.sampling.guidance import constant
from memlib.sampling.recipe import Recipe
from memlib.sampling.rules import Annealed, DynamicTransition, LimitedInterval, StaticTransition

PLAIN = Speed(cached_text=False)


@pytest.fixture(scope="module", params=["sd1_tiny", "sd2_tiny"])
def tiny(request):
    from memlib.models.substrate import load

    return load(str(request.getfixturevalue(request.param)), device="cpu", dtype="float32", speed=PLAIN)


def drawn(substrate, speed, guidance=7.5, scheduler="ddim", **options):
    """Last latents of two prompts with two seeds, 3 steps, in batches of three, and the U-Net rows they took."""
    faster, cost = dataclasses.replace(substrate, speed=speed), Cost()
    embedding = encode_prompts(substrate, ["a cat", "two dogs & a bird"])
    batches = sample_batches(faster, embedding, [0, 1], Recipe(3, guidance, scheduler), batch_size=3, cost=cost, latents_only=True, **options)
    return np.concatenate([latents for _, _, latents in batches]), cost.evaluations


def test_projecting_the_text_once_changes_no_bit(tiny):
    plain, spent = drawn(tiny, PLAIN)
    cached, same = drawn(tiny, Speed(cached_text=True))
    assert np.array_equal(plain, cached) and spent == same == 4 * 3 * 2


def test_the_projections_save_the_products_that_they_stand_for(tiny, monkeypatch):
    layers = [m for n, m in tiny.unet.named_modules() if n.endswith("attn2")]
    texts = {id(projection) for layer in layers for projection in (layer.to_k, layer.to_v)}
    calls, multiply = [], torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: (id(self) in texts and calls.append(1), multiply(self, x))[1])
    made = []
    for options in ({"speed": PLAIN}, {"speed": Speed(cached_text=True)}, {"speed": Speed(cached_text=True), "keep": lambda *_: None}):
        calls.clear()
        drawn(tiny, **options)
        made.append(len(calls))
    assert made == [2 * 3 * len(texts), 2 * len(texts), 2 * len(texts)]  # two batches of three steps


def outputs(unet, calls):
    """The U-Net's outputs for texts, one call after the other."""
    x = torch.randn(2, 4, unet.config.sample_size, unet.config.sample_size, generator=torch.Generator().manual_seed(0))
    return [unet(x, 500, encoder_hidden_states=text(), return_dict=False)[0] for text in calls]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad], ids=lambda c: c.__name__)
def test_another_text_and_other_weights_are_projected_anew(context, tiny):
    generator = torch.Generator().manual_seed(1)
    layer = next(m for n, m in tiny.unet.named_modules() if n.endswith("attn2"))
    with context():
        first, second = (torch.randn(2, 77, tiny.unet.config.cross_attention_dim, generator=generator) for _ in range(2))
        longer = torch.cat([first, second])

        def weights(factor):
            with torch.no_grad():
                layer.to_v.weight.mul_(factor)
            return second

        calls = [lambda: first, lambda: first, lambda: second, lambda: second.mul_(2), lambda: second[:, :9], lambda: longer[:2], lambda: longer[2:],
                 lambda: weights(2.0), lambda: weights(0.5)]  # fmt: skip
        plain = outputs(tiny.unet, calls)
        second.mul_(0.5)
        cache = TextCache(tiny.unet)
        with cache.used():
            cached = outputs(tiny.unet, calls)
        second.mul_(0.5)
    torch.testing.assert_close(cached, plain, rtol=1e-5, atol=1e-5)
    others = [plain[i] for i in (0, 2, 3, 4, 7)]
    assert all(not torch.allclose(a, b, rtol=1e-4, atol=1e-4) for i, a in enumerate(others) for b in others[:i])


def test_hooks_of_a_projection_are_called_every_time(tiny):
    layer = next(m for n, m in tiny.unet.named_modules() if n.endswith("attn2"))
    text, seen = encode_prompts(tiny, ["a cat", "a dog"]).states, []
    hook = layer.to_k.register_forward_hook(lambda module, args, output: seen.append(1) or output * len(seen))
    try:
        with torch.no_grad(), TextCache(tiny.unet).used():
            first, second = outputs(tiny.unet, [lambda: text] * 2)
    finally:
        hook.remove()
    assert len(seen) == 2 and not torch.allclose(first, second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheduler", ["ddim", "dpm", "euler"])
def test_unused_halves_are_left_out_where_the_scale_is_known(tiny, scheduler):
    lean = Speed(skip_unused=True)
    late = StaticTransition(7.5, step=2)  # two steps without the prompt, one with it
    times = [float(t) for t in tiny.scheduler(scheduler, 3).timesteps]
    middle = 4 * sum(2 if 100 < t <= 700 else 1 for t in times)
    assert 12 < middle < 24
    for rule, rows in ((late, 4 * (1 + 1 + 2)), (0.0, 4 * 3), (1.0, 4 * 3), (LimitedInterval(7.5, 700.0, 100.0), middle),
                       (Annealed(7.5), 4 * (1 + 2 + 2)), (7.5, 24), (DynamicTransition(7.5), 24)):  # fmt: skip
        plain, everything = drawn(tiny, PLAIN, rule, scheduler)
        fast, spent = drawn(tiny, lean, rule, scheduler)
        assert everything == 24 and spent == rows, rule
        np.testing.assert_allclose(fast, plain, atol=2e-4, rtol=1e-4)
    # The condition is not empty: with the prompt throughout the latents are others.
    assert np.abs(drawn(tiny, PLAIN, 7.5, scheduler)[0] - drawn(tiny, lean, 0.0, scheduler)[0]).max() > 1e-2


def test_nothing_is_left_out_where_somebody_looks(tiny):
    lean = Speed(skip_unused=True)
    seen = []
    _, spent = drawn(tiny, lean, 0.0, keep=lambda rows, seeds, step: seen.append(step.epsilon_cond.shape))
    assert spent == 24 and len(seen) == 2 * 3
    hook = tiny.unet.register_forward_pre_hook(lambda *_: None)
    try:
        assert drawn(tiny, lean, 0.0)[1] == 24
    finally:
        hook.remove()
    faster = dataclasses.replace(tiny, speed=lean)
    states, uncond = encode_prompts(tiny, ["a cat"]).states, uncond_states(tiny)
    steps = list(trajectory(faster, states, uncond, initial_latents([0], tiny.latent_shape), 2, 0.0))
    assert all(step.epsilon_cond is not None for step in steps)
    steps = list(trajectory(faster, states, uncond, initial_latents([0], tiny.latent_shape), 2, 0.0, lean=True))
    assert all(step.epsilon_cond is None and step.noise_cond is None and step.guidance.tolist() == [0.0] for step in steps)
    assert torch.is_grad_enabled()


def test_recorded_attention_is_the_same(tiny):
    from memlib.sampling.attention.record import record

    plain, cached = [], []
    for speed, kept in ((PLAIN, plain), (Speed(cached_text=True), cached)):
        with record(tiny, steps=3) as recording:
            drawn(tiny, speed)
        kept.append(recording.attention.cond)
    assert np.array_equal(plain[0], cached[0])


def test_projections_are_back_after_an_exception_with_what_others_put_there(tiny):
    layer = next(m for n, m in tiny.unet.named_modules() if n.endswith("attn2"))
    own, theirs = layer.to_v.forward, lambda text: own(text)
    layer.to_v.forward = theirs
    try:
        with pytest.raises(RuntimeError, match="stopped"), TextCache(tiny.unet).used():
            assert "forward" in vars(layer.to_k) and layer.to_v.forward is not theirs
            raise RuntimeError("stopped")
        assert "forward" not in vars(layer.to_k) and layer.to_v.forward is theirs
    finally:
        del layer.to_v.forward


def test_projections_are_used_in_any_order_of_leaving_and_by_one_thread_alone(tiny):
    layer = next(m for n, m in tiny.unet.named_modules() if n.endswith("attn2"))
    text, called = encode_prompts(tiny, ["a cat"]).states, []
    plain = layer.to_k(text)
    hook = layer.to_k.register_forward_hook(lambda *_: called.append(1))
    first, second = TextCache(tiny.unet), TextCache(tiny.unet)
    try:
        with torch.no_grad():
            outer, inner, again = first.used(), second.used(), second.used()
            for context in (outer, inner, again):
                context.__enter__()
            with ThreadPoolExecutor(1) as other:
                assert torch.equal(other.submit(layer.to_k.forward, text).result(), plain) and not first._seen and not second._seen
            for context in (outer, again):
                context.__exit__(None, None, None)
            assert torch.equal(layer.to_k(text), plain) and layer.to_k in second._seen and layer.to_k not in first._seen
            inner.__exit__(None, None, None)
        assert not any("forward" in vars(module) for module in tiny.unet.modules()) and called
    finally:
        hook.remove()


def test_kernels_are_chosen_as_before_in_any_order_of_leaving():
    before, timed, gpu = torch.backends.cudnn.benchmark, Speed(benchmark=True), torch.device("cuda")
    first, second = kernels(timed, gpu), kernels(timed, gpu)
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    assert torch.backends.cudnn.benchmark
    second.__exit__(None, None, None)
    assert torch.backends.cudnn.benchmark is before is False


def test_layouts_and_fused_products_give_the_same_latents(sd1_tiny):
    from memlib.models.substrate import load

    plain = load(str(sd1_tiny), device="cpu", dtype="float32", speed=PLAIN)
    faster = load(str(sd1_tiny), device="cpu", dtype="float32", speed=Speed(channels_last=True, fused_qkv=True, decode_batch=1))
    assert faster.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert any("Fused" in type(p).__name__ for p in faster.unet.attn_processors.values())
    a, b = drawn(plain, PLAIN)[0], drawn(faster, faster.speed)[0]
    np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4)
    latents = torch.from_numpy(a)
    assert np.abs(decode(plain, latents).astype(int) - decode(faster, latents)).max() <= 1


def test_batches_of_a_compiled_model_have_one_size(tiny):
    sizes = []

    class Compiled:
        """Refuses another size than the first, as static shapes would compile again for it."""

        def __init__(self, unet):
            self._unet = unet

        def __getattr__(self, name):
            return getattr(self._unet, name)

        def __call__(self, sample, *arguments, **named):
            sizes.append(len(sample))
            return self._unet(sample, *arguments, **named)

    plain, _ = drawn(tiny, PLAIN)
    pipe = type("Pipe", (), {**{name: getattr(tiny.pipe, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler")},
                             "unet": Compiled(tiny.unet)})()  # fmt: skip
    filled, rows = drawn(dataclasses.replace(tiny, pipe=pipe), Speed(cached_text=False, compile="default"))
    assert set(sizes) == {6} and rows == 2 * 3 * 6
    np.testing.assert_allclose(filled, plain, atol=2e-4, rtol=1e-4)


def test_compiling_is_asked_of_the_unet_alone(tiny):
    asked = []
    unet = type("UNet", (), {"compile": lambda self, **options: asked.append(options)})()
    prepare(unet, None, Speed(compile="max-autotune-no-cudagraphs"))
    assert asked == [{"mode": "max-autotune-no-cudagraphs", "dynamic": False}]


def test_defaults_leave_the_cpu_as_it_is_and_bad_values_are_refused():
    assert Speed.on(torch.device("cpu")) == Speed() and not Speed().skip_unused and not Speed().channels_last
    assert not Speed().shared_prefix
    fast = Speed.on(torch.device("cuda"))
    assert fast.skip_unused and fast.shared_prefix and fast.channels_last
    assert speed_of(object()) == PLAIN
    for wrong in ({"compile": "fast"}, {"decode_batch": 0}, {"decode_batch": True}, {"shared_prefix": True}):
        with pytest.raises(InputError):
            Speed(**wrong)
    assert constant(2.0).ahead(0, 50, 981.0) == 2.0


def test_sampling_through_the_public_function_is_unchanged_by_default(tiny):
    embedding = encode_prompts(tiny, ["a cat"])
    plain = sample(tiny, embedding, [0], Recipe(2))
    assert np.array_equal(sample(dataclasses.replace(tiny, speed=Speed()), embedding, [0], Recipe(2)), plain)
