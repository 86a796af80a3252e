"""Mitigations of the prompt, its embedding and the attention to it, against closed forms and models whose gradients are known."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

import memlib
from memlib.base.errors import InputError
from memlib.base.paths import data_folder
from memlib.mitigations import get
from memlib.mitigations.bright_ending import bright_masks
from memlib.mitigations.prss import ReAnchoring, search
from memlib.mitigations.ren import attention_edited
from memlib.mitigations.wen import optimize
from memlib.models.data import SubstrateData
from memlib.models.minisd.data import data_of
from memlib.models.speed import Speed, TextCache
from memlib.models.substrate import load
from memlib.prompts.embedding import Embedding, Tokens, encode_prompts, tokenize
from memlib.sampling import calibration
from memlib.sampling.attention.record import cross_attention_layers, edit, finest_down_layers
from memlib.sampling.batches import Batch, initial_latents, sample, uncond_states
from memlib.sampling.calibration import has_sd1_latents, reference_quantile, reference_values
from memlib.sampling.first_step import FirstStep, first_magnitudes, weighted
from memlib.sampling.guidance import constant
from memlib.sampling.loop import Cost, trajectory
from memlib.sampling.recipe import Recipe
from memlib.sampling.stored import PictureStore

PROMPTS = ["a cat on a red chair", "two dogs! stock photo of a long long street"]
WIDTH, SHAPE = 2, (1, 3, 3)
NUMBERS, TOKENS, REPEATED = get("random-number"), get("random-token"), get("repeated-word")


class LinearUNet(nn.Module):
    """Noise = sample / 2 + M vec(states), so that the difference of two predictions is M times the difference of the states."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        drawn = torch.randn(9, 77 * WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64) / 4
        self.matrix, self.dtype, self.calls = drawn, dtype, []

    def forward(self, sample, t, encoder_hidden_states, return_dict=False):
        assert sample.dtype == encoder_hidden_states.dtype == self.dtype
        self.calls.append(len(sample))
        return ((sample.flatten(1) / 2 + encoder_hidden_states.flatten(1) @ self.matrix.to(self.dtype).T).view_as(sample),)


def toy(dtype=torch.float32, prediction="epsilon", latent_shape=SHAPE):
    """A substrate around LinearUNet."""
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}

    def scheduler(kind, steps):
        made = DDIMScheduler(**schedule, set_alpha_to_one=False, prediction_type=prediction)
        made.set_timesteps(steps)
        return made

    return SimpleNamespace(
        name="toy", unet=LinearUNet(dtype), device=torch.device("cpu"), dtype=dtype, latent_shape=latent_shape,
        prediction_type=prediction, scheduler=scheduler, batch_size=lambda: 16, data=SubstrateData(), weights_hash="toy",
    )  # fmt: skip


def toy_batch(norms, seeds=None, rows=None, rule=7.5):
    """Samples whose magnitude at the first step under LinearUNet is each of `norms`; the unconditional states are zero."""
    seeds, rows = seeds or list(range(len(norms))), rows or list(range(len(norms)))
    draw = torch.randn(max(rows) + 1, 77, WIDTH, generator=torch.Generator().manual_seed(6))
    states = draw[rows] * torch.tensor(norms)[:, None, None]
    states = states / (states.flatten(1).double() @ LinearUNet().matrix.T).norm(dim=1)[:, None, None].float() * torch.tensor(norms)[:, None, None]
    count = len(norms)
    lengths = torch.full((count,), 5)
    tokens = Tokens(torch.zeros(count, 77, dtype=torch.long), tuple(f"prompt {row}" for row in rows), lengths, lengths < 0, 0)
    return Batch(rows, seeds, Embedding(states, tokens), torch.zeros(1, 77, WIDTH), initial_latents(seeds, SHAPE), 4, constant(rule), "ddim")


def adamw_by_hand(states, targets_norm, updates, lr=0.05, copies=1, hold_sot=True):
    """Loshchilov and Hutter's AdamW on sqrt(copies) ||M vec(states)||, written out; a list of states before each update and at the end."""
    matrix = LinearUNet().matrix.numpy()
    x = states.double().numpy().reshape(-1).copy()
    m, v, path = np.zeros_like(x), np.zeros_like(x), [x.copy()]
    for k in range(1, updates + 1):
        difference = matrix @ x
        if np.sqrt(copies) * np.linalg.norm(difference) <= targets_norm:
            break
        gradient = np.sqrt(copies) * matrix.T @ difference / np.linalg.norm(difference)
        gradient[:WIDTH] = 0
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        old_sot = x[:WIDTH].copy()
        x = x * (1 - lr * 0.01) - lr * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.999**k)) + 1e-8)
        if hold_sot:
            x[:WIDTH] = old_sot
        path.append(x.copy())
    return [torch.from_numpy(x.reshape(77, WIDTH)).float() for x in path]


@pytest.fixture(scope="module")
def sd1(sd1_tiny):
    return load(sd1_tiny, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def sd2(sd2_tiny):
    return load(sd2_tiny, device="cpu", dtype="float32")


def real_batch(substrate, prompts=PROMPTS, seeds=(0, 1), steps=2, scheduler="ddim"):
    embedding = encode_prompts(substrate, list(prompts))
    latents = initial_latents(list(seeds), substrate.latent_shape)
    return Batch(list(range(len(seeds))), list(seeds), embedding, uncond_states(substrate), latents, steps, constant(7.5), scheduler)


def denoised(substrate, batch, mitigation=None, cost=None):
    """The last latents of a batch under a mitigation that acts while sampling."""
    cost = Cost() if cost is None else cost
    with (mitigation or get("none")).around(substrate, batch, cost) as b:
        *_, last = trajectory(substrate, b.embedding.states, b.uncond, b.latents, b.steps, b.rule, b.scheduler, cost=cost)
    return last.next_latents


def picked(batch, rows):
    return Batch(
        [batch.rows[i] for i in rows], [batch.seeds[i] for i in rows], batch.embedding.select(rows), batch.uncond, batch.latents[rows],
        batch.steps, batch.rule, batch.scheduler,
    )  # fmt: skip


# --- Wen et al.


def test_updates_are_adamw_on_the_norm_and_each_sample_ends_by_itself():
    batch, target = toy_batch([2.0, 1.05, 0.9]), 1.0
    got = get("wen-1", target=target, lr=0.002).optimized(toy(), batch, Cost())
    paths = [adamw_by_hand(states, target, 10, lr=0.002) for states in batch.embedding.states]
    lengths = [len(path) - 1 for path in paths]
    assert lengths[0] == 10 and 0 < lengths[1] < 10 and lengths[2] == 0, lengths
    torch.testing.assert_close(got, torch.stack([path[-1] for path in paths]), rtol=1e-4, atol=2e-5)
    assert torch.equal(got[:, 0], batch.embedding.states[:, 0]) and torch.equal(got[2], batch.embedding.states[2])


def test_the_first_update_is_a_signed_step_with_weight_decay():
    batch = toy_batch([2.0])
    x = batch.embedding.states[0].double()
    matrix = LinearUNet().matrix
    sign = (matrix.T @ (matrix @ x.flatten())).sign().view_as(x)
    got = get("wen-3", target=0.0, iterations=1, lr=0.1).optimized(toy(), batch, Cost())[0]
    torch.testing.assert_close(got[1:].double(), (x - 0.1 * (0.01 * x + sign))[1:], rtol=1e-5, atol=1e-5)


def test_a_sample_has_the_same_embedding_in_any_batch():
    batch, wen = toy_batch([2.0, 1.05, 1.5], rows=[0, 0, 1], seeds=[0, 5, 2]), get("wen-1", target=1.0, lr=0.002)
    together = wen.optimized(toy(), batch, Cost())
    for i in range(3):
        torch.testing.assert_close(wen.optimized(toy(), picked(batch, [i]), Cost())[0], together[i], rtol=1e-4, atol=2e-5)


def test_as_published_tests_the_norm_over_all_images_and_shrinks_sot():
    # Two pictures of magnitude 0.8: each is below the target of 1, the two together, 0.8 * sqrt(2), are above it.
    batch = toy_batch([0.8, 0.8], rows=[0, 0], seeds=[0, 1])
    own = get("wen-1", target=1.0, lr=0.002)
    assert torch.equal(own.optimized(toy(), batch, Cost()), batch.embedding.states)
    published = get("wen-1", target=1.0, lr=0.002, as_published=True, images=2)
    got = published.optimized(toy(), batch, Cost())
    path = adamw_by_hand(batch.embedding.states[0], 1.0, 10, lr=0.002, copies=2, hold_sot=False)
    assert len(path) > 2 and torch.equal(got[0], got[1])
    torch.testing.assert_close(got[0], path[-1], rtol=1e-4, atol=2e-5)
    shrunk = batch.embedding.states[0, 0] * (1 - 0.002 * 0.01) ** (len(path) - 1)
    torch.testing.assert_close(got[0, 0], shrunk, rtol=1e-6, atol=0)
    # The second picture alone: its block is the same.
    torch.testing.assert_close(published.optimized(toy(), picked(batch, [1]), Cost())[0], got[0], rtol=1e-4, atol=2e-5)
    # One picture at once is the case in which the norms agree.
    single = get("wen-1", target=1.0, as_published=True, images=1).optimized(toy(), batch, Cost())
    assert torch.equal(single, batch.embedding.states)


@pytest.mark.parametrize(("norm", "iterations", "rows"), [(2.0, 3, 1 + 3 * 2), (0.5, 3, 1 + 1)])
def test_u_net_rows_are_counted(norm, iterations, rows):
    cost, substrate = Cost(), toy()
    get("wen-1", target=1.0, iterations=iterations, lr=1e-4).optimized(substrate, toy_batch([norm]), cost)
    assert cost.evaluations == rows
    assert sum(substrate.unet.calls) == 1 + (iterations if norm > 1 else 1)  # backward passes are not calls


def test_the_loss_is_a_norm_of_noise_for_models_of_velocity():
    substrate = toy(prediction="v_prediction")
    schedule = substrate.scheduler("ddim", 4)
    signal = float(schedule.alphas_cumprod[int(schedule.timesteps[0])] ** 0.5)
    batch = toy_batch([2.0])
    torch.testing.assert_close(first_magnitudes(substrate, batch, Cost()), torch.tensor([2.0 * signal]), rtol=1e-4, atol=0)
    assert torch.equal(get("wen-1", target=2.01 * signal).optimized(substrate, batch, Cost()), batch.embedding.states)
    assert not torch.equal(get("wen-1", target=1.99 * signal).optimized(substrate, batch, Cost()), batch.embedding.states)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    batch, wen = toy_batch([2.0]), get("wen-1", target=0.0, iterations=3, lr=0.01)
    exact, got = wen.optimized(toy(), batch, Cost()), wen.optimized(toy(dtype), batch, Cost())
    assert got.dtype == torch.float32 and (got - exact).abs().mean() < 0.1 * (exact - batch.embedding.states).abs().mean()


def test_gradients_that_are_not_finite_end_in_a_sentence():
    with pytest.raises(InputError, match="not finite in this precision"):
        optimize(lambda states, which: states.flatten(1).sum(1) * float("inf"), torch.ones(1, 77, 2), 1.0)


def test_on_a_real_u_net_the_magnitude_falls_to_the_target(sd1):
    batch, cost = real_batch(sd1), Cost()
    before = first_magnitudes(sd1, batch, Cost())
    steps = trajectory(sd1, batch.embedding.states, batch.uncond, batch.latents, 2)
    torch.testing.assert_close(next(iter(steps)).magnitude, before, rtol=1e-3, atol=1e-5)
    target = 0.9 * float(before.min())
    with get("wen-3", target=target, lr=0.02, iterations=20).around(sd1, batch, cost) as moved:
        after = first_magnitudes(sd1, moved, Cost())
    assert (after <= target * 1.001).all() and torch.equal(moved.embedding.states[:, 0], batch.embedding.states[:, 0])
    pictures = sample(sd1, batch.embedding, [0], Recipe(2), around=get("wen-3", target=target).around)
    assert (pictures != sample(sd1, batch.embedding, [0], Recipe(2))).any()


# --- thresholds of other models


def test_published_targets_belong_to_latents_of_sd1():
    assert has_sd1_latents(toy(latent_shape=(4, 64, 64))) and not has_sd1_latents(toy())
    assert not has_sd1_latents(toy(prediction="v_prediction", latent_shape=(4, 64, 64)))
    large, batch = toy(latent_shape=(4, 64, 64)), toy_batch([1.0])
    assert [get(name).threshold(large, batch) for name in ("wen-3", "wen-1", "bright-ending", "prss")] == [3, 1, 1, 3]
    assert get("wen-3", target=0.4).threshold(toy(), batch) == 0.4


def test_elsewhere_they_are_quantiles_measured_once(sd1, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_STORE", str(tmp_path))
    monkeypatch.setattr(calibration, "reference_prompts", lambda substrate: tuple(PROMPTS))
    expected = []
    for prompt in PROMPTS:
        for seed in calibration.SEEDS:
            batch = real_batch(sd1, [prompt], [seed])
            first = next(iter(trajectory(sd1, batch.embedding.states, batch.uncond, batch.latents, 2)))
            expected.append(float(first.magnitude))
    batch = real_batch(sd1)
    assert get("wen-1").threshold(sd1, batch) == pytest.approx(np.quantile(expected, 0.5), rel=1e-3)
    monkeypatch.setattr(calibration, "Cost", lambda: pytest.fail("measured again"))
    assert get("wen-3").threshold(sd1, batch) == pytest.approx(np.quantile(expected, 0.99), rel=1e-3)
    assert reference_values(sd1, "first magnitude", None, "ddim", 2).shape == (2, 4)
    with pytest.raises(InputError, match="quantile of 1.5"):
        reference_quantile(sd1, "first magnitude", None, 1.5, steps=2)


def test_minisd_is_calibrated_on_titles_seen_once():
    prompts = calibration.reference_prompts(SimpleNamespace(data=data_of("minisd-v1")))
    with open(data_folder() / "minisd" / "prompts" / "minisd-duplicated.csv", encoding="utf-8", newline="") as file:
        once = [row["prompt"] for row in csv.DictReader(file) if row["copies"] == "1"]
    assert list(prompts) == once[:64] and len(prompts) > 20


@pytest.mark.parametrize(
    ("name", "params", "sentence"),
    [
        ("wen-3", {"target": -1}, "target of wen-3 is -1"),
        ("wen-3", {"target": float("nan")}, "target of wen-3 is nan"),
        ("wen-1", {"quantile": 2}, "quantile of wen-1 is 2"),
        ("wen-1", {"lr": 0}, "lr of wen-1 is 0"),
        ("wen-1", {"iterations": 0}, "iterations of wen-1 is 0"),
        ("random-token", {"count": -1}, "count of random-token is -1"),
        ("random-number", {"seed": 0.5}, "seed of random-number is 0.5"),
        ("embedding-noise", {"strength": -0.1}, "strength of embedding-noise is -0.1"),
        ("ren", {"scale": "1.25"}, "scale of ren is '1.25'"),
        ("ren", {"images": 0}, "images of ren is 0"),
        ("prss", {"full": 1}, "full of prss is 1: give a number above 1"),
        ("prss", {"paraphrases": None}, "paraphrases of prss is None"),
    ],
)
def test_bad_parameters_end_in_one_sentence(name, params, sentence):
    with pytest.raises(InputError, match=sentence):
        get(name, **params)


# --- Somepalli et al.


@pytest.mark.parametrize("mitigation", [NUMBERS, TOKENS, REPEATED], ids=lambda m: m.name)
def test_words_are_added_and_the_prompt_is_kept_in_order(mitigation, sd1):
    prompt = "one two  three"  # split at single spaces: the empty word counts as one
    fake = SimpleNamespace(vocab_size=49_408, decode=lambda ids: f"<{ids[0]}> ")
    for seed in range(20):
        words = mitigation.with_params(seed=seed).rewrite(prompt, fake).split(" ")
        left = iter(words)
        assert len(words) == 4 + 4 and all(word in left for word in prompt.split(" "))
    if mitigation is NUMBERS:
        added = [int(w) for w in words if w.isdigit()]
        assert len(added) == 4 and all(0 <= n < 100_000 for n in added)
    if mitigation is TOKENS:
        texts = [mitigation.with_params(seed=seed).rewrite(prompt, fake) for seed in range(200)]
        ids = [int(w[1:-1]) for text in texts for w in text.split(" ") if "<" in w]
        assert len(ids) == 800 and max(ids) < 49_400 and abs(np.mean(ids) / 24_700 - 1) < 0.1  # 5 standard errors
    if mitigation is REPEATED:
        assert set(words) == {"one", "two", "", "three"}
    assert mitigation.with_params(count=0).rewrite(prompt, fake) == prompt


def test_places_and_repeated_words_are_uniform():
    added = [get("random-number", count=1, seed=seed).rewrite("a b", None).split(" ") for seed in range(1500)]
    places = np.bincount([words.index(next(w for w in words if w.isdigit())) for words in added], minlength=3)
    repeated = [get("repeated-word", count=1, seed=seed).rewrite("a b c", None) for seed in range(1500)]
    repeats = np.bincount(["abc".index(max("abc", key=text.count)) for text in repeated])
    for found in (places, repeats):
        assert len(found) == 3 and ((found - 500) ** 2 / 500).sum() < 13.8  # chi-square with 2 degrees of freedom, 0.1 %


def test_what_is_drawn_belongs_to_prompt_and_seed(sd1):
    embedding = encode_prompts(sd1, PROMPTS)
    for mitigation in (NUMBERS, TOKENS, REPEATED):
        both, alone = mitigation.apply(sd1, embedding), mitigation.apply(sd1, embedding.select([1]))
        assert both.tokens.prompts[1:] == alone.tokens.prompts and both.tokens.prompts[1] != PROMPTS[1]
        torch.testing.assert_close(both.states[1:], alone.states, rtol=1e-4, atol=1e-5)
        texts = [mitigation.rewrite(prompt, sd1.tokenizer) for prompt in PROMPTS]
        torch.testing.assert_close(both.states, encode_prompts(sd1, texts).states, rtol=1e-4, atol=1e-5)
        assert (both.tokens.lengths > embedding.tokens.lengths).all()
        assert mitigation.with_params(seed=1).apply(sd1, embedding).tokens.prompts != both.tokens.prompts
    repadded = NUMBERS.apply(sd1, encode_prompts(sd1, PROMPTS, "!"))
    assert repadded.tokens.pad_id == 0 and (repadded.tokens.ids[repadded.tokens.pad] == 0).all()


def test_added_words_in_a_full_prompt_push_the_last_ones_out(sd1):
    full = " ".join(["cat"] * 75)
    tokens = NUMBERS.apply(sd1, encode_prompts(sd1, full)).tokens
    assert tokens.lengths.tolist() == [75] and tokens.truncated.tolist() == [True]
    assert not torch.equal(tokens.ids, tokenize(sd1.tokenizer, full).ids)


def test_a_pipeline_encodes_the_changed_text(sd1):
    pipe = sd1.pipe

    def run(prompt):
        generators = [torch.Generator().manual_seed(s) for s in range(1 if isinstance(prompt, str) else len(prompt))]
        return pipe(prompt, num_inference_steps=2, generator=generators, output_type="latent", negative_prompt=None).images

    changed = [NUMBERS.rewrite(prompt, pipe.tokenizer) for prompt in PROMPTS]
    plain, expected, one = run(PROMPTS), run(changed), run(changed[0])
    with memlib.mitigate(pipe, "random-number") as handle:
        torch.testing.assert_close(run(PROMPTS), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(run(PROMPTS[0]), one, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(handle.embed(PROMPTS), encode_prompts(sd1, changed).states, rtol=1e-4, atol=1e-5)
        with pytest.raises(InputError, match="changes the text of prompts and not given prompt_embeds"):
            handle.edit(handle.embed(PROMPTS), PROMPTS)
    assert not torch.equal(plain, expected) and torch.equal(run(PROMPTS), plain)


def test_noise_on_the_embedding():
    batch = toy_batch([1.0, 1.0], rows=[0, 1])
    states, tokens = batch.embedding.states, batch.embedding.tokens
    noise = (get("embedding-noise").edit(states, tokens) - states) / 0.1
    assert abs(float(noise.mean())) < 0.23 and abs(float(noise.std()) - 1) < 0.16  # 4 standard errors of 308 numbers
    alone = get("embedding-noise").edit(states[1:], tokens.select([1])) - states[1:]
    assert torch.equal(alone, get("embedding-noise").edit(states, tokens)[1:] - states[1:]) and not torch.equal(noise[0], noise[1])
    published = get("embedding-noise", as_published=True)
    assert published.sampled and not get("embedding-noise").sampled
    with published.around(toy(), batch, Cost()) as noisy:
        uncond = noisy.uncond / 0.1
    assert uncond.shape == (2, 77, WIDTH) and abs(float(uncond.std()) - 1) < 0.16 and torch.equal(noisy.embedding.states, states)
    assert not torch.allclose(uncond, noise, atol=0.1) and not torch.equal(uncond[0], uncond[1])
    assert not torch.equal(denoised(toy(), batch, published), denoised(toy(), batch))


# --- Ren et al.


def ren_by_logits(substrate, batch, factors, mask_eot=False, mask_uncond=True):
    """The last latents with both edits made on explicit logits."""
    ends = batch.embedding.tokens.lengths + (1 if mask_eot else 2)

    def change(logits, layer, step):
        count = len(batch.rows)
        for row in range(2 * count):
            if row >= count or mask_uncond:
                logits[row, ..., int(ends[row % count]) :] = float("-inf")
            logits[row, ..., 0] *= factors[row]
        return logits

    with edit(substrate, change, on="logits", half="both"):
        return denoised(substrate, batch)


@pytest.mark.parametrize("params", [{}, {"mask_eot": True, "scale": 1.6}, {"mask_uncond": False}], ids=str)
def test_attention_is_edited_as_on_explicit_logits(params, sd1, sd2):
    for substrate in (sd1, sd2):
        batch = real_batch(substrate)
        options = {k: v for k, v in params.items() if k != "scale"}
        expected = ren_by_logits(substrate, batch, [1, 1] + [params.get("scale", 1.25)] * 2, **options)
        got = denoised(substrate, batch, get("ren", **params))
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(got, denoised(substrate, batch), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("images", [1, 2, 3, 4])
def test_as_published_scales_every_second_row_of_the_doubled_batch(images):
    batch = toy_batch([1.0] * images, rows=[0] * images)
    factors = get("ren", scale=1.5, as_published=True, images=images).rows(batch)[1]
    expected = torch.ones(2 * images)
    expected[1::2] = 1.5
    assert torch.equal(factors, expected)
    last = get("ren", scale=1.5, as_published=True, images=images).rows(picked(batch, [images - 1]))[1]
    assert last.tolist() == [expected[images - 1], expected[-1]]
    if images == 1:
        assert torch.equal(factors, get("ren", scale=1.5).rows(batch)[1])


def test_as_published_two_equal_samples_come_out_different(sd1):
    one = real_batch(sd1, PROMPTS[:1], [0])
    twins = Batch([0, 0], [0, 1], one.embedding.select([0, 0]), one.uncond, one.latents.repeat(2, 1, 1, 1), 2, constant(7.5), "ddim")
    fair = denoised(sd1, twins, get("ren"))
    torch.testing.assert_close(fair[0], fair[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fair[:1], denoised(sd1, one, get("ren")), rtol=1e-4, atol=1e-4)
    published = denoised(sd1, twins, get("ren", as_published=True, images=2))
    assert not torch.allclose(published[0], published[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(published, ren_by_logits(sd1, twins, [1, 1.25, 1, 1.25]), rtol=1e-3, atol=1e-3)


def test_without_a_mask_the_start_token_alone_is_rescaled(sd1):
    batch = real_batch(sd1)
    keep, factors = get("ren", mask=False, scale=1.5).rows(batch)
    assert keep.all() and factors.tolist() == [1, 1, 1.5, 1.5]
    assert torch.equal(denoised(sd1, batch, get("ren", mask=False, scale=1.0)), denoised(sd1, batch))


def test_lengths_are_each_prompts_own(sd1):
    batch = real_batch(sd1)
    together = denoised(sd1, batch, get("ren"))
    for i in (0, 1):
        torch.testing.assert_close(denoised(sd1, picked(batch, [i]), get("ren"))[0], together[i], rtol=1e-4, atol=1e-4)


def test_keys_are_projected_once_a_trajectory_and_rescaled_every_time(sd1, monkeypatch):
    batch, layers = real_batch(sd1), cross_attention_layers(sd1).values()
    keys, calls, multiply = {id(layer.to_k) for layer in layers}, [], torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: (id(self) in keys and calls.append(x.shape[1]), multiply(self, x))[1])
    plain, cached = (replace(sd1, speed=Speed(cached_text=on)) for on in (False, True))
    expected = denoised(plain, batch, get("ren"))
    assert len(calls) == batch.steps * len(keys) and set(calls) == {int(batch.embedding.tokens.lengths.max()) + 2}
    calls.clear()
    assert torch.equal(denoised(cached, batch, get("ren")), expected) and len(calls) == len(keys)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad], ids=lambda c: c.__name__)
def test_another_text_is_projected_anew_under_the_edit(context, sd1):
    keep, factors = torch.arange(77)[None] < torch.tensor([[9], [6]]), torch.tensor([1.0, 1.25])
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 77, sd1.unet.config.cross_attention_dim, generator=generator) for _ in range(2))
    x = torch.randn(2, 4, sd1.unet.config.sample_size, sd1.unet.config.sample_size, generator=generator)

    def alone(text):
        with attention_edited(sd1.unet, keep, factors):
            return sd1.unet(x, 500, encoder_hidden_states=text, return_dict=False)[0]

    with context():
        expected = [alone(text) for text in (first, second, second + 1)]
        changed = second.clone()
        with attention_edited(sd1.unet, keep, factors), TextCache(sd1.unet).used():
            got = [sd1.unet(x, 500, encoder_hidden_states=text, return_dict=False)[0] for text in (first, first, changed)]
            got.append(sd1.unet(x, 500, changed.add_(1), return_dict=False)[0])
    torch.testing.assert_close(got, [expected[0], *expected], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], rtol=1e-3, atol=1e-3)


def test_the_u_net_is_as_before_also_after_an_exception(sd1):
    batch = real_batch(sd1)
    plain = denoised(sd1, batch)
    with pytest.raises(RuntimeError, match="stopped"), get("ren").around(sd1, batch, Cost()):
        raise RuntimeError("stopped")
    with pytest.raises(RuntimeError, match="stopped"), get("prss", search_target=0.0, target=1e-6).around(sd1, batch, Cost()):
        raise RuntimeError("stopped")
    layers = cross_attention_layers(sd1).values()
    assert not sd1.unet._forward_pre_hooks and not sd1.unet._forward_hooks and not any(layer.to_k._forward_hooks for layer in layers)
    assert all(type(layer.to_k) is type(layer.to_v) is torch.nn.Linear for layer in layers)
    assert torch.equal(denoised(sd1, batch), plain)
    full = real_batch(sd1, [" ".join(["cat"] * 75)], [0])
    assert torch.equal(denoised(sd1, full, get("ren", scale=1)), denoised(sd1, full))


@pytest.mark.parametrize("name", ["wen-3", "wen-1", "ren", "bright-ending", "prss"])
def test_what_acts_while_sampling_is_refused_on_a_pipeline(name, sd1):
    with pytest.raises(InputError, match=f"{name} acts while sampling"):
        memlib.mitigate(sd1.pipe, name)


# --- Chen et al.


def test_weights_of_re_anchoring():
    rule = ReAnchoring(7.5, 3.0, 5.0, (True,) * 5 + (False,))
    magnitudes = torch.tensor([2.0, 3.0 + 1e-5, 4.0, 5.0, 9.0, 9.0])
    # From 1 at the target to g = 7.5 at full, a straight line; so 4.25 in the middle.
    torch.testing.assert_close(rule.weights(magnitudes), torch.tensor([1, 1, 4.25, 7.5, 7.5, 1]), rtol=1e-4, atol=1e-4)


def test_re_anchored_guidance_is_the_published_combination():
    # LinearUNet's magnitude is the same at every step: below the target, between, beyond full; the last one's original is below.
    substrate, batch = toy(), toy_batch([0.5, 1.4, 3.0, 0.2])
    mitigation = get("prss", search_target=0.3, target=1.0, full=2.0)
    modified = toy_batch([0.5, 1.4, 3.0, 0.2]).embedding.states.flip(1)
    norms = (modified.flatten(1).double() @ substrate.unet.matrix.T).norm(dim=1).float()
    modified = modified * (torch.tensor([0.5, 1.4, 3.0, 0.2]) / norms)[:, None, None]
    modified[3] = batch.embedding.states[3]
    armed = torch.tensor([True, True, True, False])
    object.__setattr__(mitigation, "_modified", lambda *a: (modified, armed))
    cost = Cost()
    with mitigation.around(substrate, batch, cost) as b:
        steps = list(trajectory(substrate, b.embedding.states, b.uncond, b.latents, b.steps, b.rule, "ddim", cost=cost))
    latents, solver, g = batch.latents, substrate.scheduler("ddim", 4), 7.5
    for step, t in zip(steps, solver.timesteps, strict=True):
        u = latents / 2
        c_orig, c_mod = (u + (s.flatten(1) @ substrate.unet.matrix.float().T).view_as(u) for s in (batch.embedding.states, modified))
        guided = u + g * (c_mod - u)
        for i in (1, 2):
            magnitude = float((c_mod[i] - u[i]).norm())
            c = (g * 1.0 - 2.0) / (g - 1)
            w = min(g * (magnitude - c) / (2.0 - c), g)
            guided[i] = c_orig[i] + w * (c_mod[i] - c_orig[i]) + (g - w) * (c_mod[i] - u[i])
        latents = solver.step(guided, t, latents).prev_sample
        torch.testing.assert_close(step.next_latents, latents, rtol=1e-4, atol=1e-4)
    assert cost.evaluations == 4 * (2 * 4 + 2)  # a third row for the two samples above the target


def test_what_is_at_the_search_target_passes_untouched():
    batch = toy_batch([0.2, 2.0])
    mitigation = get("prss", search_target=0.3, target=1.0)
    got = denoised(toy(), batch, mitigation)
    torch.testing.assert_close(got[0], denoised(toy(), picked(batch, [0]))[0])
    assert not torch.allclose(got[1], denoised(toy(), picked(batch, [1]))[0])
    torch.testing.assert_close(got[1], denoised(toy(), picked(batch, [1]), mitigation)[0], rtol=1e-3, atol=1e-3)
    for rule in (1.0, 0.0):
        with pytest.raises(InputError, match="give it a number above 1"), mitigation.around(toy(), toy_batch([1.0], rule=rule), Cost()):
            pass


def test_re_anchoring_as_published_moves_the_start_token_too():
    batch = toy_batch([0.2, 2.0, 1.0])
    originals = batch.embedding.states
    plain, published = (get("prss", search_target=0.3, target=1.0, as_published=flag) for flag in (False, True))
    assert plain.key == get("prss", search_target=0.3, target=1.0).key != published.key
    (ours, armed), (theirs, same) = (method._modified(toy(), batch, Cost()) for method in (plain, published))
    assert armed.tolist() == same.tolist() == [False, True, True]
    assert torch.equal(ours[:, 0], originals[:, 0]) and torch.equal(theirs[0], originals[0])
    for row in (1, 2):
        # AdamW takes a fixed share of a weight without gradient at each update.
        moved = [originals[row, 0] * (1 - 0.05 * 0.01) ** updates for updates in range(1, 11)]
        assert originals[row, 0].any() and any(torch.allclose(theirs[row, 0], state, rtol=1e-6, atol=0) for state in moved)
        assert (theirs[row, 1:] != originals[row, 1:]).any()


def test_search_takes_the_first_below_the_target_or_the_smallest():
    batch, cost = toy_batch([0.5, 2.0, 2.0, 2.0]), Cost()
    first = FirstStep(toy(), batch, cost)
    direction = batch.embedding.states / torch.tensor([0.5, 2.0, 2.0, 2.0])[:, None, None]
    offers = [[0.1], [1.5, 0.9, 0.1], [1.8, 1.2, 1.6], []]
    candidates = [torch.stack([m * direction[i] for m in ms]) if ms else direction[:0] for i, ms in enumerate(offers)]
    states, armed = search(first, batch.embedding.states, candidates, 1.0)
    found = first.magnitudes(states, range(4))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.9, 1.2, 2.0]), rtol=1e-4, atol=1e-4)
    assert armed.tolist() == [False, True, True, True]


def test_paraphrases_come_from_a_file(sd1, tmp_path):
    path = tmp_path / "paraphrases.csv"
    path.write_text(f"prompt,paraphrase\n{PROMPTS[0]},a kitten in a crimson armchair\n{PROMPTS[0]},feline furniture\n")
    mitigation = get("prss", search_target=0.0, target=1e6, paraphrases=str(path))
    batch = real_batch(sd1)
    offers = encode_prompts(sd1, ["a kitten in a crimson armchair", "feline furniture"]).states
    first = FirstStep(sd1, batch, Cost())
    tried = [float(first.magnitudes(s[None], [0])[0]) for s in (batch.embedding.states[0], *offers)]
    with mitigation.around(sd1, batch, Cost()) as b:
        expected = [batch.embedding.states[0], *offers][int(np.argmin(tried))]
        torch.testing.assert_close(b.embedding.states[0], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(b.embedding.states[1], batch.embedding.states[1])
    before = mitigation.key
    path.write_text(f"prompt,paraphrase\n{PROMPTS[0]},something else\n")
    assert mitigation.key != before and "paraphrases" in get("prss").key
    path.write_text(f"prompt,other\n{PROMPTS[0]},x\n")
    with pytest.raises(InputError, match="no column paraphrase"):
        _ = mitigation.key


def test_masks_are_the_attention_to_eot_at_the_last_step(sd1):
    batch, seen = real_batch(sd1, steps=3), {}
    layers = cross_attention_layers(sd1)
    finest = finest_down_layers(layers)

    def watch(name):
        def hook(attn, args, kwargs):
            hidden, text = args[0], kwargs["encoder_hidden_states"]
            q, k = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (attn.to_q(hidden), attn.to_k(text)))
            seen[name] = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1).mean(1)[2:]  # heads; the conditional half

        return layers[name].register_forward_pre_hook(hook, with_kwargs=True)

    hooks = [watch(name) for name in finest]
    try:
        denoised(sd1, batch)
    finally:
        for hook in hooks:
            hook.remove()
    mean = torch.stack(list(seen.values())).mean(0)
    eot = batch.embedding.tokens.lengths + 1
    expected = torch.stack([mean[i, :, eot[i]].view(8, 8) for i in range(2)])
    cost = Cost()
    torch.testing.assert_close(bright_masks(sd1, batch, cost), expected, rtol=1e-3, atol=1e-6)
    assert cost.evaluations == 3 * 2 * 2


def test_weighted_differences():
    difference, masks = torch.ones(2, 1, 2, 2), torch.tensor([[[4.0, 0], [0, 0]], [[1.0, 1], [1, 1]]])
    # Own means 1 and 1: the first keeps one pixel at 4. Both together have the mean 1 as well; doubling one mask tells them apart.
    torch.testing.assert_close(weighted(difference, masks).flatten(1).norm(dim=1), torch.tensor([4.0, 2.0]))
    masks[1] *= 3
    torch.testing.assert_close(weighted(difference, masks).flatten(1).norm(dim=1), torch.tensor([4.0, 2.0]))
    torch.testing.assert_close(weighted(difference, masks, over_batch=True).flatten(1).norm(dim=1), torch.tensor([2.0, 3.0]))
    assert torch.equal(weighted(difference, None), difference)


def test_bright_ending_optimizes_the_masked_magnitude(sd1):
    batch, cost = real_batch(sd1), Cost()
    masks = bright_masks(sd1, batch, Cost())
    first = FirstStep(sd1, batch, Cost())
    before = first.magnitudes(batch.embedding.states, [0, 1], masks)
    target = 0.9 * float(before.min())
    states = get("bright-ending", target=target, lr=0.02, iterations=20).optimized(sd1, batch, cost)
    assert (first.magnitudes(states, [0, 1], masks) <= target * 1.001).all()
    assert cost.evaluations > 2 * 2 * 2 + 2
    alone = get("bright-ending", target=target, lr=0.02, iterations=20).optimized(sd1, picked(batch, [1]), Cost())
    torch.testing.assert_close(alone[0], states[1], rtol=1e-2, atol=1e-3)


def test_the_store_keeps_them_apart(sd1, tmp_path):
    store, embedding = PictureStore(tmp_path), encode_prompts(sd1, PROMPTS[:1])
    store.pictures(sd1, embedding, [0], Recipe(2), mitigation=get("ren"))
    store.pictures(sd1, embedding, [0], Recipe(2), mitigation=get("ren", as_published=True, images=2))
    assert store.made == 2


@pytest.fixture(scope="module")
def without_signal(sd2_tiny, tmp_path_factory):
    """Velocity under a schedule of zero terminal SNR, which begins at its last time."""
    folder = tmp_path_factory.mktemp("zsnr") / "sd2"
    shutil.copytree(sd2_tiny, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}))
    return load(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("name", ["wen-1", "prss", "bright-ending", "han-batch", "han-sample", "sail", "nemo"])
def test_without_signal_at_the_first_step_a_sentence_says_so(name, without_signal, monkeypatch):
    assert "zero terminal SNR" in get(name).missing(without_signal)
    batch = real_batch(without_signal)
    monkeypatch.setattr(calibration, "reference_values", lambda *a, **k: pytest.fail("looked up first"))
    with pytest.raises(InputError, match=r"begins without any signal \(zero terminal SNR\)"), get(name).around(without_signal, batch, Cost()):
        pass


def test_other_mitigations_need_no_signal_at_the_first_step(without_signal, sd1):
    assert not any(get(name).missing(without_signal) for name in ("none", "pad-swap", "ren", "static-transition", "wanda"))
    assert get("wen-1").missing(sd1) == ""
    assert torch.isfinite(denoised(without_signal, real_batch(without_signal), get("ren"))).all()
