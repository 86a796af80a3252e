"""What acts on one pipeline's calls leaves alone those of others that share its parts, and its own callbacks are heard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, StableDiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback

import memlib
from memlib.base.errors import InputError
from memlib.mitigations.pipeline_parts import standing_in
from memlib.models.substrate import Substrate, load
from memlib.prompts.embedding import encode_prompts
from memlib.sampling.batches import initial_latents, trajectory
from memlib.sampling.guidance import StepInfo
from memlib.sampling.rules import DynamicTransition

PROMPTS = ["a cat on a red chair", "two dogs"]
STEPS = 6


@pytest.fixture(scope="module")
def sd1(sd1_tiny) -> Substrate:
    return load(sd1_tiny, device="cpu", dtype="float32")


def another(substrate: Substrate, **parts: Any) -> StableDiffusionPipeline:
    """A pipeline of the same text encoder, U-Net and VAE with a scheduler of its own, as a server makes them."""
    scheduler = DDIMScheduler.from_config(substrate.scheduler("ddim", STEPS).config)
    pipe = StableDiffusionPipeline(**{**substrate.pipe.components, "scheduler": scheduler, **parts}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipes(sd1) -> Iterator[tuple[Any, Any]]:
    yield another(sd1), another(sd1)


def run(pipe: Any, prompts: Any = PROMPTS, **options: Any) -> torch.Tensor:
    noise = initial_latents([1, 2][: len(prompts) if isinstance(prompts, list) else 1], (4, 8, 8))
    return pipe(prompts, num_inference_steps=STEPS, latents=noise.clone(), output_type="latent", guidance_scale=7.5, **options).images


def nested(work: Callable[[], Any]) -> Any:
    return work()


def in_a_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@pytest.mark.parametrize("where", [nested, in_a_thread])
def test_another_pipeline_encodes_in_the_middle_of_a_mitigated_encoding(where, pipes):
    mitigated, plain = pipes
    expected, found = plain.encode_prompt(PROMPTS, "cpu", 1, False)[0], []

    def meanwhile(module, args, kwargs):
        if not found:
            found.append(None)  # the other pipeline's call comes here as well
            found.append(where(lambda: plain.encode_prompt(PROMPTS, "cpu", 1, False)[0]))

    with memlib.mitigate(mitigated, "pad-swap") as handle:
        alone = handle.embed(PROMPTS)
        hook = mitigated.text_encoder.register_forward_pre_hook(meanwhile, with_kwargs=True)
        try:
            got = mitigated.encode_prompt(PROMPTS, "cpu", 1, False)[0]
        finally:
            hook.remove()
    assert torch.equal(found[1], expected) and torch.equal(got, alone) and not torch.equal(got, expected)


@pytest.mark.parametrize("where", [nested, in_a_thread])
@pytest.mark.parametrize("other", [None, "annealed-guidance"])
def test_another_pipeline_samples_in_the_middle_of_a_mitigated_one(where, other, pipes):
    first, second = pipes
    expected = run(second)
    if other:
        with memlib.mitigate(second, other):
            expected = run(second)
    found = []

    def meanwhile(pipe, index, t, tensors):
        found.append(where(lambda: run(second)))
        return {}

    with memlib.mitigate(first, "static-transition", step=3):
        alone = run(first)
        handle = memlib.mitigate(second, other) if other else None
        got = run(first, callback_on_step_end=meanwhile)
        if handle is not None:
            handle.undo()
    assert len(found) == STEPS and all(torch.equal(one, expected) for one in found) and torch.equal(got, alone)
    assert first.unet is second.unet and not first.unet._forward_hooks


@dataclass(frozen=True)
class Told:
    """The scales of these steps, written down."""

    scales: tuple[float, ...]
    name: str = "told"

    @property
    def params(self) -> dict[str, Any]:
        return {"scales": list(self.scales)}

    def start(self, batch: int) -> Callable[[StepInfo], torch.Tensor]:
        return lambda info: torch.full((batch,), self.scales[info.index])


def by_hand(sd1: Substrate, scales: list[float], prompts: list[str] = PROMPTS) -> torch.Tensor:
    noise = initial_latents([1, 2][: len(prompts)], (4, 8, 8))
    *_, last = trajectory(sd1, encode_prompts(sd1, prompts).states, encode_prompts(sd1, [""]).states, noise, STEPS, Told(tuple(scales)), "ddim")
    return last.next_latents


def test_a_guidance_scale_that_a_callback_raises_is_used(sd1, pipes):
    def raised(pipe, index, t, tensors):
        pipe._guidance_scale = 12.0 if index >= 3 else pipe._guidance_scale
        return {}

    with memlib.mitigate(pipes[0], "static-transition", step=2):
        got = run(pipes[0], callback_on_step_end=raised)
    assert torch.allclose(got, by_hand(sd1, [0, 0, 7.5, 7.5, 12, 12]), rtol=1e-4, atol=2e-4)
    with memlib.mitigate(pipes[0], "annealed-guidance"):
        got = run(pipes[0], callback_on_step_end=raised)
    assert torch.allclose(got, by_hand(sd1, [1, 2.3, 3.6, 4.9, 1 + 4 / 5 * 11, 12]), rtol=1e-4, atol=2e-4)


def test_a_rule_that_remembers_keeps_its_memory_under_another_scale():
    scales = DynamicTransition(7.5).start(1)
    magnitudes = [3.0, 2.0, 1.0, 2.0, 1.0]
    infos = [SimpleNamespace(magnitude=torch.tensor([m])) for m in magnitudes]
    got = [float(scales(info)) for info in infos[:2]]
    scales.rule = DynamicTransition(12.0)
    assert got + [float(scales(info)) for info in infos[2:]] == [0, 0, 0, 12, 12] and scales.settled()


def test_guidance_that_a_callback_cuts_off(sd1, pipes):
    one = PROMPTS[:1]
    with memlib.mitigate(pipes[0], "static-transition", step=2):
        got = run(pipes[0], one, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=3))
        assert torch.allclose(got, by_hand(sd1, [0, 0, 7.5, 7.5, 1, 1], one), rtol=1e-4, atol=2e-4)
        with pytest.raises(InputError, match=r"switched guidance off before step 1, where static-transition still needs .* switch it off later"):
            run(pipes[0], one, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0))


def test_a_u_net_compiled_in_place(sd1_tiny):
    own = load(sd1_tiny, device="cpu", dtype="float32")
    pipe = another(own)
    with memlib.mitigate(pipe, "dynamic-transition"):
        expected = run(pipe)
    pipe.unet.compile(backend="eager")
    with memlib.mitigate(pipe, "dynamic-transition"):
        got = run(pipe)
    assert torch.allclose(got, expected, rtol=1e-4, atol=2e-4)


def test_videos_are_guided_as_pictures_are(sd1):
    motion = MotionAdapter(
        block_out_channels=(8, 8, 16, 16), motion_layers_per_block=1, motion_mid_block_layers_per_block=1, motion_num_attention_heads=2,
        motion_norm_num_groups=4, motion_max_seq_length=8,
    )  # fmt: skip
    scheduler = DDIMScheduler.from_config(sd1.scheduler("ddim", STEPS).config)
    parts = {name: sd1.pipe.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet")}
    pipe = AnimateDiffPipeline(**parts, motion_adapter=motion.eval(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)

    def made(prompts: list[str], scale: float) -> torch.Tensor:
        noise = torch.randn(len(prompts), 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        options = {"num_frames": 3, "height": 64, "width": 64, "num_inference_steps": 3, "output_type": "latent"}
        return pipe(prompts, latents=noise, guidance_scale=scale, **options).frames

    for prompts in (PROMPTS, [*PROMPTS, "a tree", "a boat"]):
        expected = made(prompts, 2.0)
        with memlib.mitigate(pipe, "static-transition", step=99, before=2.0):
            assert torch.allclose(made(prompts, 7.5), expected, rtol=1e-3, atol=1e-3)


def test_stand_ins_are_left_in_any_order_and_act_for_their_own_thread():
    pipe = SimpleNamespace(unet=lambda x: x)
    own = pipe.unet

    def adding(amount):
        return lambda part, x: part(x) + amount

    first, second, again = (standing_in(pipe, "unet", adding(amount)) for amount in (1, 10, 100))
    first.__enter__(), second.__enter__()
    assert pipe.unet(0) == 10  # a call within a call acts on the part
    with ThreadPoolExecutor(1) as other:
        assert other.submit(pipe.unet, 0).result() == 0
        other.submit(again.__enter__).result()
        assert other.submit(pipe.unet, 0).result() == 100 and pipe.unet(0) == 10
        first.__exit__(None, None, None)
        assert pipe.unet(0) == 10
        second.__exit__(None, None, None)
        assert pipe.unet(0) == 0 and other.submit(pipe.unet, 0).result() == 100
        other.submit(again.__exit__, None, None, None).result()
    assert pipe.unet is own
