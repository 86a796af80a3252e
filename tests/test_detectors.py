"""Each detector against an independent statement of it: closed forms, autograd, diffusers' schedulers, hand-made pictures."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from memlib.base.errors import InputError, NotMeasured
from memlib.experiment.run import Experiment
from memlib.probes.detectors import REGISTRY, Detector, Scores, describe, get, register
from memlib.probes.detectors import anisotropy as anisotropy_module
from memlib.probes.detectors.agreement import agreement_distance, largest_group, tile_distances
from memlib.probes.detectors.attention import chosen_layer, combined_entropy
from memlib.probes.detectors.evaluation import evaluate, evaluate_all, measure_all, table
from memlib.probes.detectors.onestep import edges_of, one_step, shared_edges
from memlib.probes.detectors.runs import magnitudes, masked_magnitude, per_sample, whole_run
from memlib.probes.detectors.sharpness import differentiable, product_norm
from memlib.probes.token_significance import token_significance
from memlib.prompts.embedding import encode_prompts
from memlib.prompts.sets import load_prompts
from memlib.results.detection import detected, kept_scores
from memlib.results.evidence import Evidence
from memlib.sampling.attention.positions import eot_masks
from memlib.sampling.attention.record import cross_attention_layers
from memlib.sampling.batches import Batch, initial_latents, uncond_states
from memlib.sampling.guidance import constant
from memlib.sampling.loop import Cost
from memlib.sampling.stored import PictureStore

PROMPTS = ["a red boat", "Eight Rules of Sandrovar", "!"]
SEEDS, STEPS = 2, 3


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "three.csv"
    path.write_text("prompt\n" + "\n".join(f'"{p}"' for p in PROMPTS) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def loaded(sd1_tiny, sd2_tiny, tmp_path_factory):
    """Experiments on both kinds of checkpoint, float32, metrics without weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMLIB_OFFLINE", "1")
        patch.setenv("MEMLIB_METRICS", str(tmp_path_factory.mktemp("metrics")))
        folder = tmp_path_factory.mktemp("stores")
        return {
            name: Experiment(str(path), n_seeds=SEEDS, steps=STEPS, dtype="float32", device="cpu", store=folder / name)
            for name, path in (("sd1", sd1_tiny), ("sd2", sd2_tiny))
        }


@pytest.fixture
def fresh(loaded, tmp_path, prompt_file):
    """Return a group of the three prompts on a checkpoint, with a store of its own and nothing spent."""

    def make(name="sd1", store=None, **changes):
        import copy

        run = copy.copy(loaded[name])
        run.store, run.cost = PictureStore(store or tmp_path / "store"), Cost()
        for field, value in changes.items():
            setattr(run, field, value)
        return run.group(load_prompts(prompt_file))

    return make


def batch_of(substrate, prompts=PROMPTS[:2], seed=0, steps=STEPS, guidance=7.5):
    latents = initial_latents([seed], substrate.latent_shape).expand(len(prompts), -1, -1, -1)
    embedding = encode_prompts(substrate, prompts)
    return Batch(list(range(len(prompts))), [seed] * len(prompts), embedding, uncond_states(substrate), latents, steps, constant(guidance), "ddim")


def raw_pair(substrate, batch, latents, t):
    """The U-Net's raw outputs for unconditional and conditional states, one call each."""
    with torch.no_grad():
        uncond = substrate.unet(latents, t, encoder_hidden_states=batch.uncond.expand(len(latents), -1, -1)).sample
        return uncond, substrate.unet(latents, t, encoder_hidden_states=batch.embedding.states).sample


# The registry.


def test_every_detector_says_what_it_is():
    wanted = {"magnitude", "attention-entropy", "bright-ending", "sharpness", "anisotropy", "one-step", "tile-agreement", "prompt-length"}
    assert wanted <= set(REGISTRY)
    for name, detector in REGISTRY.items():
        assert detector.name == name and detector.title == name and detector.sign in (1, -1)
        assert all(len(text) > 3 for text in (detector.label, detector.summary, detector.source))
    assert [row["detector"] for row in describe()] == list(REGISTRY)
    assert len({d.label for d in REGISTRY.values()}) == len(REGISTRY)


def test_parameters_show_in_the_title_and_bad_ones_are_refused(fresh):
    assert get("magnitude", steps=5).title == "magnitude (steps 5)"
    for bad, words in (({"steps": -1}, "a whole number from 0 on"), ({"step": 1}, "it has steps")):
        with pytest.raises(InputError, match=words):
            get("magnitude", **bad)
    with pytest.raises(InputError, match="Unknown detector 'wen'"):
        get("wen")
    with pytest.raises(InputError, match="There is a detector 'magnitude' already"):
        register(type(REGISTRY["magnitude"]))
    wrong = [("magnitude", {"steps": float("nan")}), ("tile-agreement", {"size": float("nan")}), ("tile-agreement", {"size": 1}),
             ("sharpness", {"as_published": "x"}), ("tile-clique", {"threshold": -0.1}), ("anisotropy", {"cosine_weight": "0.1"}),
             ("one-step-edges", {"seeds": 0}), ("one-step", {"guidance": float("inf")}), ("attention-entropy-first", {"layer": -2})]  # fmt: skip
    for name, bad in wrong:
        with pytest.raises(InputError, match=f"The {next(iter(bad))} of {name} is .*: give "):
            get(name, **bad)
    with pytest.raises(InputError, match="layer 99"):
        get("attention-entropy-first", layer=99).measure(fresh())


def test_scores_come_back_from_rows_as_they_were_measured(fresh):
    group, chosen = fresh(), [get("magnitude"), get("magnitude", steps=2), get("prompt-length"), get("seed-similarity")]
    direct = measure_all([group], chosen)
    found = kept_scores(Evidence({}, {"some": detected(group, chosen)}, ""), ["some", "some"], chosen)
    for detector in chosen[:3]:
        (expected,) = direct[detector]
        for own in found[detector]:
            assert np.array_equal(own.values, expected.values) and (own.evaluations, own.n_seeds) == (expected.evaluations, expected.n_seeds)
    assert found[chosen[3]] == direct[chosen[3]] and "descriptor" in found[chosen[3]]


@pytest.mark.parametrize("name", list(REGISTRY))
def test_scores_price_and_store_of_every_detector(name, fresh, tmp_path):
    group, detector = fresh(), REGISTRY[name]
    if name == "seed-similarity":
        with pytest.raises(NotMeasured, match="descriptor"):
            detector.measure(group)
        return
    found = detector.measure(group)
    assert found.values.shape in ((3,), (3, SEEDS)) and np.isfinite(found.values).all()
    spent = group.experiment.cost.evaluations
    assert spent == 3 * found.evaluations and (spent > 0) == (detector.needs != "prompt alone")
    again = fresh(store=tmp_path / "store")
    np.testing.assert_array_equal(detector.measure(again).values, found.values)
    assert again.experiment.cost.evaluations == 0


@pytest.mark.parametrize(
    ("name", "rows"),
    [("magnitude", 2), ("magnitude-all", 2 * STEPS), ("attention-entropy-first", 1), ("bright-ending-first", 2 * STEPS),
     ("sharpness", 6), ("anisotropy", 4), ("one-step", 2)],
)  # fmt: skip
def test_price_per_seed(name, rows, fresh):
    found = REGISTRY[name].measure(fresh())
    assert found.evaluations == rows * SEEDS and found.n_seeds == SEEDS
    assert found.first(1).evaluations == rows and found.first(1).values.shape == (3, 1)


# One run serves several.


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_magnitudes_are_those_of_a_plain_loop_with_diffusers_scheduler(name, fresh):
    group = fresh(name)
    x = group.experiment.substrate
    ours = magnitudes(group, STEPS)
    scheduler = DDIMScheduler.from_config(x.pipe.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(STEPS)
    batch = batch_of(x, PROMPTS, seed=1)
    latents = batch.latents
    for step, t in enumerate(scheduler.timesteps):
        uncond, cond = raw_pair(x, batch, latents, t)
        # For velocity the two noises differ by sqrt(abar) times the outputs' difference.
        factor = float(scheduler.alphas_cumprod[t]) ** 0.5 if name == "sd2" else 1.0
        expected = factor * (cond - uncond).flatten(1).norm(dim=1)
        np.testing.assert_allclose(ours["magnitude"][:, 1, step], expected, rtol=2e-4)
        latents = scheduler.step(uncond + 7.5 * (cond - uncond), t, latents).prev_sample
    np.testing.assert_allclose(get("magnitude", steps=2).scores(group), ours["magnitude"][..., :2].mean(-1), rtol=1e-5)


def test_a_longer_run_in_the_store_serves_shorter_ones_and_batches_do_not_matter(fresh):
    group = fresh()
    whole = whole_run(group)
    spent = group.experiment.cost.evaluations
    short = magnitudes(group, 1)
    assert group.experiment.cost.evaluations == spent == 3 * SEEDS * 2 * STEPS
    np.testing.assert_array_equal(short["magnitude"], whole["magnitude"][..., :1])
    assert (short["evaluations"] == 2).all()
    group.experiment.store = PictureStore(group.experiment.store.root / "other")
    group.experiment.batch_size = 1
    alone = whole_run(group)
    for part in ("magnitude", "entropy", "entropy_end", "masked"):
        np.testing.assert_allclose(alone[part], whole[part], rtol=2e-3)
    assert whole["entropy_layers"].shape == (3, SEEDS, len(cross_attention_layers(group.experiment.substrate)), STEPS)


def test_measuring_all_computes_the_whole_run_once(fresh, tmp_path):
    group = fresh()
    names = ("tile-agreement", "magnitude", "magnitude-ten", "magnitude-all", "attention-entropy", "bright-ending", "bright-ending-first")
    found = measure_all([group], [REGISTRY[name] for name in names])
    cost = group.experiment.cost
    assert (cost.evaluations, cost.pictures) == (3 * SEEDS * 2 * STEPS, 3 * SEEDS)
    assert [d.name for d in found] == list(names)
    # The pictures of that run are those that sampling gives.
    other = fresh(store=tmp_path / "other")
    np.testing.assert_array_equal(group.pictures(), other.pictures())
    assert cost.pictures == 3 * SEEDS == other.experiment.cost.pictures


def test_work_is_kept_batch_by_batch(fresh):
    group, calls = fresh(batch_size=2), []

    def compute(substrate, batch, cost):
        calls.append(batch.rows)
        if batch.rows[0] == 2 and len(calls) < 4:
            raise RuntimeError("stopped")
        cost.evaluations += 5 * len(batch.rows)
        return {"row": np.array(batch.rows), "seed": np.array(batch.seeds)}

    with pytest.raises(RuntimeError, match="stopped"):
        per_sample(group, {"measure": "toy"}, compute)
    calls.append("again")
    found = per_sample(group, {"measure": "toy"}, compute)
    assert calls == [[0, 0], [1, 1], [2, 2], "again", [2, 2]]
    np.testing.assert_array_equal(found["row"], [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(found["seed"], [[0, 1]] * 3)
    assert (found["evaluations"] == 5).all()


# Attention.


def test_combined_entropy_by_hand():
    whole = np.arange(10.0)  # The last fifth: steps 8 and 9.
    end = np.array([3.0] + [0.0] * 7 + [1.0, 1.5])
    assert combined_entropy(whole, end) == pytest.approx(8.5 + 1.25 - 3)
    assert combined_entropy(whole, end, absolute=True) == pytest.approx(8.5 + 1.75)


def test_the_published_layer_is_number_three_of_stable_diffusion_1():
    part = "transformer_blocks.0.attn2"
    sd1 = [f"down_blocks.{b}.attentions.{a}.{part}" for b in range(3) for a in range(2)] + [f"mid_block.attentions.0.{part}"]
    assert chosen_layer(sd1, -1) == sd1[3] == chosen_layer(sd1, 3)
    assert chosen_layer([f"down_blocks.1.attentions.0.{part}"], -1).startswith("down_blocks.1")


def test_entropy_of_the_first_step_is_that_of_the_whole_run(fresh):
    # Computed from the conditional rows alone there, and from a guided run with all layers here.
    group = fresh()
    layers = list(cross_attention_layers(group.experiment.substrate))
    whole = whole_run(group)["entropy_layers"]
    for layer in (0, 2):
        np.testing.assert_allclose(get("attention-entropy-first", layer=layer).scores(group), whole[:, :, layer, 0], rtol=1e-4)
    assert whole.min() > 0 and whole.max() < np.log(77) + 1e-6 and len(layers) == whole.shape[2]


# Bright ending.


def test_masks_are_the_attention_to_eot_and_weigh_the_difference():
    maps = torch.zeros(2, 4, 4, 77)
    maps[0, 1, 2, 5], maps[1, :, :, 9] = 1.0, 0.5
    masks = eot_masks(maps, torch.tensor([5, 9]), (4, 4))
    difference = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ours = masked_magnitude(difference, masks)
    # One pixel of sixteen: its norm, divided by a mean of 1/16. An even mask cancels.
    assert float(ours[0]) == pytest.approx(16 * float(difference[0, :, 1, 2].norm()), rel=1e-5)
    assert float(ours[1]) == pytest.approx(float(difference[1].norm()), rel=1e-5)
    assert eot_masks(maps, torch.tensor([5, 9]), (8, 8)).shape == (2, 8, 8)
    assert torch.allclose(eot_masks(maps, torch.tensor([5, 9]), (8, 8))[1], torch.full((8, 8), 0.5))


# Sharpness.


def test_product_of_a_toy_unet_in_closed_form():
    def unet(x, t, encoder_hidden_states, return_dict):
        return (encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1) * x**2,)

    text = torch.cat([torch.full((2, 77, 3), 1.0), torch.full((2, 77, 3), 3.0)])
    generator = torch.Generator().manual_seed(1)
    x, d = (torch.randn(2, 4, 2, 2, generator=generator) for _ in range(2))
    expected = (2 * (3 - 1) * x * d).flatten(1).norm(dim=1)
    torch.testing.assert_close(product_norm(unet, text, x, 0, d), expected)


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_sharpness_agrees_with_double_backward_through_the_true_score(name, fresh):
    group = fresh(name)
    x, batch = group.experiment.substrate, batch_of(group.experiment.substrate, PROMPTS[:1])
    scheduler = DDIMScheduler.from_config(x.pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    t = scheduler.timesteps[0]
    abar = float(scheduler.alphas_cumprod[t])
    alpha, sigma = abar**0.5, (1 - abar) ** 0.5

    def score(latents, states):
        output = x.unet(latents, t, encoder_hidden_states=states).sample
        epsilon = alpha * output + sigma * latents if name == "sd2" else output
        return -epsilon / sigma

    def gap(latents):
        return score(latents, batch.embedding.states) - score(latents, batch.uncond)

    kept = dict(x.unet.attn_processors)
    x.unet.set_default_attn_processor()
    _, product = torch.autograd.functional.jvp(gap, batch.latents, gap(batch.latents))  # the double-backward trick
    x.unet.set_attn_processor(kept)
    ours = get("sharpness").scores(group)[0, 0]
    assert ours == pytest.approx(float(product.norm()), rel=1e-3) and ours > 0
    assert get("sharpness", squared=True).scores(group)[0, 0] == pytest.approx(ours**2, rel=1e-5)
    published = get("sharpness", as_published=True).scores(group)[0, 0]
    assert published == pytest.approx(ours / sigma**2 if name == "sd2" else ours, rel=1e-5)


def test_sharpness_is_taken_on_a_copy_and_the_model_itself_stays_as_it_is(loaded):
    substrate = replace(loaded["sd1"].substrate, dtype=torch.bfloat16)
    unet = substrate.unet
    weights = {name: value.clone() for name, value in unet.state_dict().items()}
    try:
        unet.to(torch.bfloat16)
        unet.set_attn_processor(AttnProcessor2_0())
        low = {name: value.clone() for name, value in unet.state_dict().items()}
        processors = {name: id(p) for name, p in unet.attn_processors.items()}
        exact = differentiable(substrate)
        assert exact.unet.dtype == exact.dtype == torch.float32 and unet.dtype == substrate.dtype == torch.bfloat16
        assert all(type(p) is AttnProcessor for p in exact.unet.attn_processors.values()) and substrate.pipe.unet is unet
        assert {name: id(p) for name, p in unet.attn_processors.items()} == processors
        assert all(torch.equal(low[name], value) for name, value in unet.state_dict().items())
        assert all(torch.equal(low[name].float(), value) for name, value in exact.unet.state_dict().items())
    finally:
        unet.to(torch.float32).load_state_dict(weights)


# Pure noise.


def test_anisotropy_of_a_toy_unet_in_closed_form(fresh):
    group = fresh()
    x = group.experiment.substrate
    batch = batch_of(x, PROMPTS[:1], steps=50)
    # Conditional noise is the unconditional one plus a quarter turn of it at the third time from the end, plus itself at the first.
    seen = []

    def unet(sample, t, encoder_hidden_states, return_dict):
        seen.append(int(t))
        uncond, cond = sample.chunk(2)
        turned = torch.stack([-cond[:, 1], cond[:, 0], -cond[:, 3], cond[:, 2]], 1)
        return (torch.cat([uncond, 2 * cond if int(t) > 500 else cond + turned]),)

    toy = SimpleNamespace(unet=unet, device=torch.device("cpu"), dtype=torch.float32, scheduler=x.scheduler)
    found = anisotropy_module._norm_and_cosine(toy, batch, Cost())
    assert found["norm"][0] == pytest.approx(float(batch.latents.norm()), rel=1e-5)
    assert found["cosine"][0] == pytest.approx(0, abs=1e-6)
    assert seen == [981, 41]


def test_anisotropy_weights_its_two_parts(fresh):
    group = fresh()
    plain, norm = get("anisotropy", as_published=True), get("anisotropy", cosine_weight=0.0, as_published=True)
    cosine = get("anisotropy", norm_weight=0.0, cosine_weight=1.0)
    np.testing.assert_allclose(plain.scores(group), norm.scores(group) + 2 * cosine.scores(group))
    np.testing.assert_allclose(norm.scores(group), get("magnitude").scores(group), rtol=1e-4)
    elements = np.prod(group.experiment.substrate.latent_shape)
    scaled = get("anisotropy", cosine_weight=0.0).scores(group)
    np.testing.assert_allclose(scaled, norm.scores(group) * np.sqrt(16384 / elements))
    v = fresh("sd2")
    np.testing.assert_allclose(get("anisotropy").scores(v), get("anisotropy", cosine_weight=0.1).scores(v))


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_one_step_is_a_step_of_diffusers_heun_scheduler(name, fresh):
    group = fresh(name)
    x = group.experiment.substrate
    batch = batch_of(x)
    heun = HeunDiscreteScheduler.from_config(x.pipe.scheduler.config)
    heun.set_timesteps(timesteps=[999])
    start = batch.latents * heun.sigmas[0]
    uncond, cond = raw_pair(x, batch, heun.scale_model_input(start, heun.timesteps[0]), heun.timesteps[0])
    expected = heun.step(uncond + 7.5 * (cond - uncond), heun.timesteps[0], start).prev_sample
    ours_start, ours_end = one_step(x, batch, 7.5, Cost())
    torch.testing.assert_close(ours_start, start, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours_end, expected, rtol=1e-3, atol=1e-3)
    moved = get("one-step").scores(group)[:2, 0]
    np.testing.assert_allclose(moved, (expected - start).square().flatten(1).mean(1), rtol=1e-3)


def test_edges_by_hand():
    picture = np.zeros((6, 6, 3), np.float32)
    picture[:, 3:] = 0.2
    # A step of 0.2 has a Sobel magnitude of 4 * 0.2 in the two columns beside it, in each of three channels: 2.4; smoothed over channels four times that.
    for per_channel, height in ((True, 2.4), (False, 9.6)):
        (edges,) = edges_of(picture[None], height - 0.1, per_channel)
        assert edges[:, 2:4].all() and edges.sum() == 12
        assert not edges_of(picture[None], height + 0.1, per_channel).any()
    edges = np.zeros((1, 4, 4), bool)
    edges[0, :3, 0] = edges[0, :2, 1] = True  # three of four pictures; two of four is not more than half
    np.testing.assert_array_equal(shared_edges(edges), [0.25])


@pytest.mark.parametrize("per_channel", [False, True])
def test_edges_are_those_of_a_kernel_written_out(per_channel):
    pictures = np.random.default_rng(0).random((2, 7, 5, 3)).astype(np.float32)
    smooth, slope = np.array([1, 2, 1]), np.array([-1, 0, 1])
    across_channels = np.array([0, 1, 0]) if per_channel else smooth
    padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1), (1, 1)), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3), axis=(1, 2, 3))
    down, across = (np.einsum("nhwcijk,i,j,k->nhwc", windows, *kernel, across_channels) for kernel in ((slope, smooth), (smooth, slope)))
    expected = np.hypot(down, across).sum(-1)
    for threshold in np.quantile(expected, [0.2, 0.5, 0.8]):
        np.testing.assert_array_equal(edges_of(pictures, threshold, per_channel), expected > threshold)


@pytest.mark.parametrize("name", ["magnitude", "bright-ending-first", "sharpness", "anisotropy", "one-step", "one-step-edges"])
def test_a_first_step_without_signal_is_not_measured(name, fresh, monkeypatch):
    group = fresh("sd2")
    pipe = group.experiment.substrate.pipe
    zero = DDIMScheduler.from_config(pipe.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    monkeypatch.setattr(pipe, "scheduler", zero)
    with pytest.raises(NotMeasured, match="zero terminal SNR"):
        REGISTRY[name].measure(group)
    assert np.ptp(get("magnitude", steps=2).scores(group)) > 0


def test_a_text_is_no_flag_of_significance():
    with pytest.raises(InputError, match="as_published of token_significance is 'x': give True or False"):
        token_significance(None, as_published="x")


def test_significance_of_tokens_is_the_gradient_of_each_pictures_own_magnitude(fresh):
    group = fresh()
    x = group.experiment.substrate
    lengths, published = token_significance(group), token_significance(group, as_published=True)
    assert lengths.shape == (len(PROMPTS), SEEDS, 77) and published.shape == (len(PROMPTS), 77)
    t = x.scheduler("ddim", STEPS).timesteps[0]
    noise = initial_latents(list(range(SEEDS)), x.latent_shape)
    uncond = uncond_states(x).expand(SEEDS, -1, -1)
    for row in (0, 1):
        states = group.embedding.states[[row] * SEEDS].clone().requires_grad_()
        added = x.unet(noise, t, encoder_hidden_states=states).sample - x.unet(noise, t, encoder_hidden_states=uncond).sample.detach()
        together = torch.autograd.grad(added.norm(), states, retain_graph=True)[0].norm(dim=-1)
        np.testing.assert_allclose(published[row], together.sum(0) / (2 * SEEDS), rtol=1e-3, atol=1e-7)
        for seed in range(SEEDS):
            own = torch.autograd.grad(added[seed].norm(), states, retain_graph=True)[0]
            assert not own[1 - seed].any()
            np.testing.assert_allclose(lengths[row, seed], own[seed].norm(dim=-1), rtol=1e-3, atol=1e-7)


# Pictures.


def test_tile_distance_is_that_of_the_worst_tile():
    pictures = np.zeros((3, 9, 8, 3), np.uint8)  # The ninth row fills no tile.
    pictures[1, :2, :2] = 51  # one tile, all of it, by 0.2
    pictures[2, 4:6, 4] = 255  # half of another tile by 1
    pictures[2, 8] = 255
    ours = tile_distances(pictures)
    expected = np.sqrt(0.5)
    np.testing.assert_allclose(ours, [[0, 0.2, expected], [0.2, 0, expected], [expected, expected, 0]], rtol=1e-5)


def test_a_chain_is_connected_and_no_clique():
    far = 0.9
    distances = np.array([[0, 0.1, far, far], [0.1, 0, 0.1, far], [far, 0.1, 0, 0.1], [far, far, 0.1, 0]])
    assert largest_group(distances, 0.15) == 2 and largest_group(distances, 0.15, connected=True) == 4
    assert largest_group(distances, 0.05) == 1
    assert agreement_distance(distances, 2) == pytest.approx(0.1)
    assert agreement_distance(distances, 3) == pytest.approx(0.9)
    distances[0, 2] = distances[2, 0] = 0.3
    assert agreement_distance(distances, 3) == pytest.approx(0.3)
    assert agreement_distance(distances[:2, :2], 3) == pytest.approx(0.1)


def test_pictures_of_one_seed_agree_with_nothing(fresh):
    group = fresh(seeds=(0,))
    for name in ("tile-agreement", "tile-clique", "seed-similarity"):
        with pytest.raises(NotMeasured, match="two seeds"):
            REGISTRY[name].measure(group)


def test_the_simple_ones(fresh):
    group = fresh()
    np.testing.assert_array_equal(get("prompt-length").scores(group), [len(p) for p in PROMPTS])
    lengths = group.embedding.tokens.lengths.numpy()
    np.testing.assert_allclose(get("padding-share").scores(group), (75 - lengths) / 77)

    class Copy:
        available, fingerprint = True, "toy"

        def __call__(self, pictures):
            turns = np.array([[0, 60], [0, 90], [0, 0]]) * np.pi / 180
            return np.stack([np.cos(turns), np.sin(turns)], -1)

    group.experiment.metrics = SimpleNamespace(copy=Copy())
    np.testing.assert_allclose(get("seed-similarity").scores(group), [0.5, 0, 1], atol=1e-9)


# Judged.


class Toy(Detector):
    name, label, summary, source, sign = "toy", "toy", "toy", "toy", -1


def test_evaluation_follows_the_sign_and_the_seeds():
    smaller_is_memorized = Scores(np.array([[0.0, 9.0], [1.0, 9.0]]), 100.0, 2)
    others = Scores(np.array([[2.0, 0.0], [3.0, 0.0], [4.0, 0.0]]), 100.0, 2)
    one = evaluate(Toy(), smaller_is_memorized, others, 1)
    assert (one.auc.value, one.tpr_1.value, one.evaluations, one.n_seeds) == (1.0, 1.0, 50.0, 1)
    both = evaluate(Toy(), smaller_is_memorized, others)
    assert both.auc.value == 0.0 and both.evaluations == 100.0  # and it stays below one half
    per_prompt = Scores(np.array([1.0, 2.0]), 8.0, 4)
    found = {Toy(): [smaller_is_memorized, others], get("prompt-length"): [per_prompt, per_prompt], get("padding-share"): "no tokens"}
    rows = evaluate_all(found, 0, 1, (1, 2))
    assert [(r.detector.name, r.n_seeds) for r in rows] == [("toy", 1), ("toy", 2), ("prompt-length", 4), ("padding-share", 0)]
    shown = table(rows)
    assert shown.loc[("padding-share", "–"), "AUC"] == "not measured" and rows[-1].reason == "no tokens"
    with pytest.raises(InputError, match="0 seeds"):
        others.first(0)


def test_what_is_not_measured_stays_so(fresh):
    group = fresh(seeds=(0,))
    found = measure_all([group, group], [get("tile-agreement"), get("prompt-length")])
    assert "two seeds" in found[get("tile-agreement")]
    assert [r.auc is None for r in evaluate_all(found, 0, 1, (1,))] == [True, False]


def test_figures_leave_out_what_was_not_measured():
    import matplotlib.pyplot as plt

    from memlib.results.figures import accuracy_by_cost, roc_curves, score_groups

    draw = np.random.default_rng(0)
    scores = [Scores(draw.normal(size=(6, 2)), 200.0, 2), Scores(draw.normal(size=(5, 2)), 200.0, 2)]
    rows = evaluate_all({get("magnitude"): scores, get("prompt-length"): [Scores(np.arange(6.0), 0.0, 0)] * 2, get("one-step"): "no"}, 0, 1, (1, 2))
    figure = accuracy_by_cost({"left": rows, "right": rows[:1]})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["magnitude", "prompt-length"]
    (line,) = [c for c in figure.axes[0].containers if len(c.lines[0].get_xdata()) == 2]
    assert list(line.lines[0].get_xdata() / line.lines[0].get_xdata()[0]) == pytest.approx([1, 2])
    assert roc_curves({"a": {"magnitude": ([0, 1], [0, 1])}}).axes and score_groups({"magnitude": {"a": np.arange(3.0), "b": np.ones(2)}}).axes
    plt.close("all")
