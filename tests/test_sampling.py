"""The sampling loop against diffusers' own `StableDiffusionPipeline`, on tiny random checkpoints."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from checkpoints import build_sd1
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler

from memlib.base.errors import InputError
from memlib.models.substrate import SUBSTRATES, data_folder, load
from memlib.prompts.embedding import encode_prompts
from memlib.prompts.interventions import apply
from memlib.sampling.batches import Cost, decode, initial_latents, sample, sample_batches, to_epsilon, trajectory
from memlib.sampling.guidance import as_rule, constant
from memlib.sampling.recipe import Recipe

PROMPTS = ["a cat on a red chair", "two dogs, stock photo"]
CLASSES = {"ddim": DDIMScheduler, "dpm": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler, "pndm": PNDMScheduler}


@pytest.fixture(scope="module", params=["sd1_tiny", "sd2_tiny"])
def substrate(request):
    return load(request.getfixturevalue(request.param), device="cpu", dtype="float32")


def final(steps):
    *_, last = steps
    return last.next_latents


def reference(substrate, kind, embedding, latents, steps, guidance, output_type, **options):
    pipe = substrate.pipe
    own = pipe.scheduler
    pipe.scheduler = CLASSES[kind].from_config(own.config)
    try:
        return pipe(
            prompt_embeds=embedding.states,
            negative_prompt_embeds=encode_prompts(substrate, [""] * len(embedding)).states,
            latents=latents, num_inference_steps=steps, guidance_scale=guidance, output_type=output_type,
            **options,
        ).images  # fmt: skip
    finally:
        pipe.scheduler = own


@pytest.mark.parametrize(("kind", "guidance"), [("ddim", 7.5), ("dpm", 7.5), ("euler", 7.5), ("pndm", 7.5), ("ddim", 1.0)])
def test_latents_equal_the_pipelines(substrate, kind, guidance):
    embedding = encode_prompts(substrate, PROMPTS)
    latents = initial_latents([3, 4], substrate.latent_shape)
    uncond = encode_prompts(substrate, [""]).states
    ours = final(trajectory(substrate, embedding.states, uncond, latents, 8, guidance, kind))
    theirs = reference(substrate, kind, embedding, latents, 8, guidance, "latent")
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (ours - latents).abs().max() > 0.1


def test_pictures_equal_the_pipelines(substrate):
    embedding = apply("e", encode_prompts(substrate, PROMPTS))
    latents = initial_latents([11, 11], substrate.latent_shape)
    theirs = reference(substrate, "ddim", embedding, latents, 8, 7.5, "np")
    ours = sample(substrate, embedding, [11], Recipe(8))[:, 0]
    assert ours.shape == (2, 64, 64, 3) and ours.dtype == np.uint8
    assert np.abs(ours / 255 - theirs).max() <= 0.5 / 255 + 1e-3


def test_prompt_text_goes_the_same_way(substrate):
    pipe = substrate.pipe
    own, pipe.scheduler = pipe.scheduler, substrate.scheduler("dpm", 6)
    try:
        generator = [torch.Generator().manual_seed(5)]
        theirs = pipe(PROMPTS[0], num_inference_steps=6, generator=generator, output_type="np").images[0]
    finally:
        pipe.scheduler = own
    ours = sample(substrate, encode_prompts(substrate, PROMPTS[:1]), [5], Recipe(6, scheduler="dpm"))[0, 0]
    assert np.abs(ours / 255 - theirs).max() <= 0.5 / 255 + 1e-3


def test_stochastic_ddim_equals_the_pipelines(substrate):
    embedding = encode_prompts(substrate, PROMPTS)
    latents = initial_latents([1, 2], substrate.latent_shape)

    def noise():
        return [torch.Generator().manual_seed(seed) for seed in (7, 8)]

    theirs = reference(substrate, "ddim", embedding, latents, 8, 7.5, "latent", eta=0.8, generator=noise())
    uncond = encode_prompts(substrate, [""]).states
    ours = final(trajectory(substrate, embedding.states, uncond, latents, 8, eta=0.8, generators=noise()))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_seed_gives_the_same_picture_in_any_batch(substrate):
    embedding = encode_prompts(substrate, [*PROMPTS, ""])
    seeds = [5, 6, 7]
    whole = sample(substrate, embedding, seeds, Recipe(3), batch_size=9)
    parts = sample(substrate, embedding, seeds, Recipe(3), batch_size=4)
    assert np.abs(whole.astype(int) - parts).max() <= 1
    alone = sample(substrate, embedding.select([1]), [6], Recipe(3))
    assert np.abs(whole[1, 1].astype(int) - alone[0, 0]).max() <= 1
    assert np.abs(whole[1, 1].astype(int) - whole[1, 2]).max() > 10


def test_pairs_restrict_the_work(substrate):
    embedding = encode_prompts(substrate, PROMPTS)
    full = sample(substrate, embedding, [0, 1, 2], Recipe(3))
    cost = Cost()
    seen = []
    batches = sample_batches(
        substrate,
        embedding,
        [],
        Recipe(3),
        batch_size=2,
        pairs=[(1, 2), (0, 0), (1, 0)],
        cost=cost,
        keep=lambda rows, seeds, step: seen.append((rows, seeds, step.index)),
    )
    got = [entry for rows, seeds, part in batches for entry in zip(rows, seeds, part)]
    assert [(row, seed) for row, seed, _ in got] == [(1, 2), (0, 0), (1, 0)]
    for row, seed, picture in got:
        assert np.abs(full[row, seed].astype(int) - picture).max() <= 1
    assert cost == Cost(evaluations=3 * 2 * 3, pictures=3)
    assert [index for _, _, index in seen] == [0, 1, 2, 0, 1, 2] and seen[0][:2] == ([1, 0], [2, 0])


def test_steps_hang_together(substrate):
    embedding = encode_prompts(substrate, PROMPTS)
    uncond = encode_prompts(substrate, [""]).states
    latents = initial_latents([0, 1], substrate.latent_shape)
    steps = list(trajectory(substrate, embedding.states, uncond, latents, 6, 2.5))
    assert [step.index for step in steps] == list(range(6))
    assert torch.equal(steps[0].latents, latents)
    for before, after in itertools.pairwise(steps):
        assert torch.equal(before.next_latents, after.latents) and before.t > after.t
    for step in steps:
        assert step.guidance.tolist() == [2.5, 2.5]
        direct = substrate.unet(step.latents[1:], step.t, encoder_hidden_states=embedding.states[1:], return_dict=False)[0]
        torch.testing.assert_close(step.noise_cond[1:], direct, rtol=1e-4, atol=1e-5)
        by_hand = [float(np.linalg.norm((step.epsilon_cond[i] - step.epsilon_uncond[i]).numpy())) for i in (0, 1)]
        np.testing.assert_allclose(step.magnitude.numpy(), by_hand, rtol=1e-5)


@pytest.mark.parametrize("kind", CLASSES)
def test_velocity_becomes_the_noise_it_was_made_of(sd2_tiny, kind):
    # Forward process with known noise; velocity as defined by Salimans and Ho.
    substrate = load(sd2_tiny, device="cpu", dtype="float32")
    scheduler = substrate.scheduler(kind, 10)
    clean, noise = initial_latents([1, 2], (2, 4, 8, 8)).double()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abars = torch.cumprod(1 - betas, 0)
    for t in scheduler.timesteps[:-1]:
        low = int(t)
        abar, above = abars[low], abars[min(low + 1, 999)]
        if float(t) != low:
            # Euler interpolates sigma linearly between training steps.
            sigma = torch.lerp(((1 - abar) / abar).sqrt(), ((1 - above) / above).sqrt(), float(t) - low)
            abar = 1 / (1 + sigma**2)
        noised = abar.sqrt() * clean + (1 - abar).sqrt() * noise
        velocity = abar.sqrt() * noise - (1 - abar).sqrt() * clean
        latents = noised / abar.sqrt() if kind == "euler" else noised
        torch.testing.assert_close(to_epsilon(velocity, latents, t, scheduler), noise, rtol=1e-3, atol=1e-3)


@dataclass(frozen=True)
class LateStart:
    """Zero for the first steps, and only for even samples: a rule that differs by sample and step."""

    first: int
    name: ClassVar[str] = "late-start"

    @property
    def params(self):
        return {"first": self.first}

    def start(self, batch):
        seen = []

        def scales(info):
            seen.append(info.index)
            assert seen == list(range(len(seen))) and info.magnitude.shape == (batch,)
            scale = torch.full((batch,), 5.0)
            if info.index < self.first:
                scale[::2] = 0.0
            return scale

        return scales


def test_a_rule_acts_per_sample_and_step(substrate):
    embedding = encode_prompts(substrate, [PROMPTS[0]] * 2)
    uncond = encode_prompts(substrate, [""]).states
    latents = initial_latents([4, 4], substrate.latent_shape)
    steps = list(trajectory(substrate, embedding.states, uncond, latents, 6, LateStart(3)))
    assert [step.guidance.tolist() for step in steps] == [[0.0, 5.0]] * 3 + [[5.0, 5.0]] * 3
    plain = final(trajectory(substrate, embedding.states[:1], uncond, latents[:1], 6, 5.0))
    torch.testing.assert_close(steps[-1].next_latents[1:], plain, rtol=1e-4, atol=1e-4)
    # Scale 0 ignores the prompt: three steps with the empty prompt's embedding give the same latents.
    blind = list(trajectory(substrate, uncond, uncond, latents[:1], 6, 1.0))
    torch.testing.assert_close(steps[2].next_latents[:1], blind[2].next_latents, rtol=1e-4, atol=1e-4)


def test_noise_is_the_seeds_own():
    both = initial_latents([3, 9], (4, 8, 8))
    assert torch.equal(both[1:], initial_latents([9], (4, 8, 8)))
    assert torch.equal(both[0], torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3)))


def test_other_channel_counts_and_shift(tmp_path):
    folder = build_sd1(tmp_path / "wide", latent_channels=6, vae_options={"scaling_factor": 0.5, "shift_factor": 0.3})
    substrate = load(folder, device="cpu", dtype="float32")
    assert substrate.latent_shape == (6, 8, 8)
    embedding = encode_prompts(substrate, PROMPTS)
    assert sample(substrate, embedding, [1], Recipe(2)).shape == (2, 1, 64, 64, 3)
    latents = initial_latents([1], substrate.latent_shape)
    with torch.no_grad():
        decoded = substrate.vae.decode(latents / 0.5 + 0.3).sample[0]
    by_hand = (127.5 * (decoded + 1)).clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(decode(substrate, latents)[0] - by_hand).max() <= 0.51


def test_half_precision_stays_close(sd1_tiny):
    exact, half = (load(sd1_tiny, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    latents = initial_latents([1], exact.latent_shape)
    ends = []
    for substrate in (exact, half):
        states = encode_prompts(exact, [PROMPTS[0], ""]).states
        steps = list(trajectory(substrate, states[:1], states[1:], latents, 5, 2.0))
        assert steps[0].noise_cond.dtype == steps[-1].next_latents.dtype == torch.float32
        ends.append(steps[-1].next_latents)
    assert (ends[0] - ends[1]).norm() < 0.05 * ends[0].norm()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seeds": []}, "no seeds"),
        ({"seeds": [-1]}, "Seed -1"),
        ({"seeds": [1, 1]}, "Seeds repeat"),
        ({"seeds": [1.5]}, "Seed 1.5"),
        ({"steps": 0}, "0 sampling steps"),
        ({"steps": 1001}, "from 1 to 999"),
        ({"steps": 2.5}, "2.5 sampling steps"),
        ({"guidance": float("nan")}, "Guidance nan"),
        ({"guidance": "strong"}, "Guidance 'strong'"),
        ({"scheduler": "plms"}, "Unknown scheduler 'plms'"),
        ({"batch_size": 0}, "Batch size 0"),
    ],
)
def test_bad_input_is_named(substrate, options, sentence):
    embedding = encode_prompts(substrate, PROMPTS)
    with pytest.raises(InputError, match=sentence):
        given = {"seeds": [1], "steps": 2, **options}
        recipe = Recipe(**{name: given.pop(name) for name in ("steps", "guidance", "scheduler") if name in given})
        sample(substrate, embedding, recipe=recipe, **given)


def test_zero_prompts_and_wrong_shapes_are_named(substrate):
    embedding = encode_prompts(substrate, PROMPTS)
    with pytest.raises(InputError, match="no prompts"):
        sample(substrate, embedding.select([]), [1])
    latents = initial_latents([1, 2, 3], substrate.latent_shape)
    with pytest.raises(InputError, match="do not fit 3 latents"):
        trajectory(substrate, embedding.states, embedding.states[:1], latents)
    with pytest.raises(InputError, match=r"use \[samples, 4, 8, 8\]"):
        trajectory(substrate, embedding.states, embedding.states[:1], latents[:2, :, :4])
    with pytest.raises(InputError, match="outside 0 to 1"):
        sample_batches(substrate, embedding, [1], pairs=[(2, 1)])


def test_the_longest_schedule_runs(substrate):
    assert len(substrate.scheduler("ddim", 999).timesteps) == 999


def test_constant_rule_is_named_for_the_store():
    rule = as_rule(7)
    assert rule == constant(7.0) and (rule.name, rule.params) == ("constant", {"scale": 7.0})
    assert as_rule(rule) is rule


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, source in SUBSTRATES.items() if not source.hub])
def test_own_models_equal_the_pipeline(name):
    if not (data_folder() / "minisd" / "models" / name / "model_index.json").is_file():
        pytest.skip(f"{name} has not been trained yet")
    substrate = load(name, device="cpu", dtype="float32")
    embedding = encode_prompts(substrate, PROMPTS)
    latents = initial_latents([3, 4], substrate.latent_shape)
    uncond = encode_prompts(substrate, [""]).states
    for kind in ("ddim", "dpm"):
        ours = final(trajectory(substrate, embedding.states, uncond, latents, 10, 7.5, kind))
        theirs = reference(substrate, kind, embedding, latents, 10, 7.5, "latent")
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_latents_only_are_those_that_would_be_decoded(substrate):
    embedding = encode_prompts(substrate, PROMPTS)
    cost = Cost()
    ((rows, seeds, latents),) = sample_batches(substrate, embedding, [3], Recipe(3), cost=cost, latents_only=True)
    assert (rows, seeds) == ([0, 1], [3, 3]) and cost == Cost(evaluations=3 * 2 * 2, pictures=0)
    np.testing.assert_array_equal(decode(substrate, torch.from_numpy(latents)), sample(substrate, embedding, [3], Recipe(3))[:, 0])
