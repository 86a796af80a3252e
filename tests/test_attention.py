"""Recorded and edited attention against attention worked out by hand and against diffusers' own masking."""

from __future__ import annotations

import math
from threading import get_ident

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import Attention as DiffusersAttention
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from memlib.base.errors import InputError
from memlib.experiment.settings import Settings
from memlib.metrics import MetricSet
from memlib.models.substrate import Substrate, load
from memlib.models.tokenizer import build_clip_tokenizer
from memlib.prompts.embedding import encode_prompts, tokenize
from memlib.sampling.attention.record import Attention, aligned_at_eot, cross_attention_layers, edit, entropy, finest_down_layers, record
from memlib.sampling.attention.runs import attention_of, last_maps
from memlib.sampling.attention.taps import Clock, TappedProcessor
from memlib.sampling.batches import initial_latents, trajectory, uncond_states
from memlib.sampling.stored import PictureStore

PROMPTS = ["a red boat", "Eight Rules of Sandrovar"]


@pytest.fixture(scope="module")
def tiny(sd1_tiny) -> Substrate:
    return load(sd1_tiny, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def tiny2(sd2_tiny) -> Substrate:
    """Like 2.1: v-prediction, upcast attention, linear projections."""
    return load(sd2_tiny, device="cpu", dtype="float32")


def sampled(substrate: Substrate, prompts=PROMPTS, steps: int = 2, seed: int = 0) -> torch.Tensor:
    latents = initial_latents([seed], substrate.latent_shape).expand(len(prompts), -1, -1, -1)
    states = encode_prompts(substrate, prompts).states
    for step in trajectory(substrate, states, uncond_states(substrate), latents, steps):
        pass
    return step.next_latents


def by_hand(layer: DiffusersAttention, hidden: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """softmax(Q K^T / sqrt d) in double precision, head by head, [B, heads, pixels, keys]."""
    width = layer.to_q.weight.shape[0] // layer.heads
    q, k = hidden.double() @ layer.to_q.weight.double().T, text.double() @ layer.to_k.weight.double().T
    heads = [q[..., i : i + width] @ k[..., i : i + width].transpose(1, 2) / math.sqrt(width) for i in range(0, q.shape[-1], width)]
    return torch.stack(heads, 1).softmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tiny2"])
def test_recorded_attention_is_softmax_of_queries_and_keys(name, request):
    substrate = request.getfixturevalue(name)
    layers = cross_attention_layers(substrate)
    wanted = list(layers)[2]
    seen = []
    hook = layers[wanted].register_forward_hook(
        lambda module, args, kwargs, output: seen.append(by_hand(module, args[0], kwargs["encoder_hidden_states"])), with_kwargs=True
    )
    with record(substrate, uncond=True, maps=[wanted], map_steps=[0, -1], heads=True) as recording:
        sampled(substrate)
    hook.remove()
    result = recording.attention
    assert result.cond.shape == (2, len(layers), 2, 77) and len(seen) == 2
    for step, expected in enumerate(seen):
        means = expected.mean((1, 2)).numpy()
        np.testing.assert_allclose(result.uncond[step, 2], means[:2], atol=1e-6)
        np.testing.assert_allclose(result.cond[step, 2], means[2:], atol=1e-6)
        assert np.abs(means[2:] - means[:2]).max() > 1e-4  # else the halves could be mixed up unnoticed
        maps = result.maps[step, wanted]
        np.testing.assert_allclose(maps.reshape(2, maps.shape[1], -1, 77), expected[2:].numpy(), atol=1e-6)
    np.testing.assert_allclose(result.cond.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(result.uncond.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0])
def test_recording_changes_nothing_and_gives_processors_back(tiny, processor):
    own = dict(tiny.unet.attn_processors)
    tiny.unet.set_attn_processor(processor())
    before = {name: id(p) for name, p in tiny.unet.attn_processors.items()}
    plain = sampled(tiny)
    with record(tiny) as recording:
        observed = sampled(tiny)
    assert torch.equal(plain, observed)
    assert recording.attention.cond.shape[0] == 2
    assert {name: id(p) for name, p in tiny.unet.attn_processors.items()} == before
    assert not tiny.unet._forward_pre_hooks
    tiny.unet.set_attn_processor(own)  # those that it was loaded with: other tests keep what it makes


def test_processors_come_back_after_an_exception_at_any_depth(tiny):
    before = {name: id(p) for name, p in tiny.unet.attn_processors.items()}

    def broken(values, layer, step):
        if step == 1:
            raise RuntimeError("on purpose")
        return values

    with pytest.raises(RuntimeError, match="on purpose"), record(tiny) as recording, edit(tiny, broken), record(tiny):
        sampled(tiny, steps=3)
    assert {name: id(p) for name, p in tiny.unet.attn_processors.items()} == before
    assert not tiny.unet._forward_pre_hooks
    assert recording.attention.cond.shape[0] == 1  # the step that was broken off is not counted
    with pytest.raises(InputError, match="CustomProcessor"):

        class CustomProcessor:
            pass

        last = list(cross_attention_layers(tiny).values())[-1]
        kept, last.processor = last.processor, CustomProcessor()
        try:
            with record(tiny):
                pass
        finally:
            last.processor = kept
    assert {name: id(p) for name, p in tiny.unet.attn_processors.items()} == before


def test_steps_are_counted_and_batches_joined(tiny):
    steps = []
    with record(tiny) as recording, edit(tiny, lambda values, layer, step: steps.append(step) or values):
        sampled(tiny, PROMPTS, steps=3)
        sampled(tiny, PROMPTS[:1], steps=3, seed=1)
    n = len(cross_attention_layers(tiny))
    assert steps == [i for i in (0, 1, 2) for _ in range(n)] * 2
    result = recording.attention
    assert result.cond.shape == (3, n, 3, 77) and [run.cond.shape[2] for run in recording.runs] == [2, 1]
    assert list(result.timesteps) == sorted(result.timesteps, reverse=True)
    with record(tiny) as alone:
        sampled(tiny, PROMPTS[:1], steps=3, seed=1)
    np.testing.assert_allclose(result.cond[:, :, 2:], alone.attention.cond, atol=1e-6)
    with record(tiny, steps=1) as single:
        for _ in range(2):
            sampled(tiny, steps=1)
    assert single.attention.cond.shape[:3] == (1, n, 4)
    with record(tiny) as uneven:
        sampled(tiny, steps=3)
        sampled(tiny, steps=2)
    assert [len(run.timesteps) for run in uneven.runs] == [3, 2]
    with pytest.raises(InputError, match="same steps"):
        _ = uneven.attention


def test_only_reduced_sizes_are_kept_unless_asked(tiny):
    layer = finest_down_layers(list(cross_attention_layers(tiny)))[0]
    with record(tiny) as lean:
        sampled(tiny)
    kept = [tensor for step in lean._means.values() for parts in step.values() for tensor in parts]
    assert max(tensor.numel() for tensor in kept) == 2 * 77 and not lean._maps
    assert all(tensor.untyped_storage().nbytes() == 2 * 77 * 4 for tensor in kept)
    with record(tiny, layers=[layer], maps=[layer]) as full:
        sampled(tiny)
    result = full.attention
    assert list(result.maps) == [(1, layer)] and result.maps[1, layer].shape == (2, 8, 8, 77)
    np.testing.assert_allclose(result.maps[1, layer].mean((1, 2)), result.cond[1, 0], atol=1e-6)
    assert result.layers == (layer,)


@pytest.mark.parametrize("name", ["tiny", "tiny2"])
def test_masking_a_position_equals_diffusers_own_mask(name, request):
    substrate = request.getfixturevalue(name)
    text = encode_prompts(substrate, PROMPTS).states
    latents = initial_latents([0, 1], substrate.latent_shape)
    mask = torch.ones(2, 77)
    mask[:, [1, 5]] = 0
    t = torch.tensor(500)
    with torch.no_grad():
        masked = substrate.unet(latents, t, encoder_hidden_states=text, encoder_attention_mask=mask).sample
        plain = substrate.unet(latents, t, encoder_hidden_states=text).sample

        def forbid(values, layer, step):
            values[..., [1, 5]] = -math.inf
            return values

        with record(substrate, guided=False) as recording, edit(substrate, forbid, on="logits", guided=False):
            edited = substrate.unet(latents, t, encoder_hidden_states=text).sample
        with record(substrate, guided=False) as under_mask:
            substrate.unet(latents, t, encoder_hidden_states=text, encoder_attention_mask=mask)

        def renormalise(values, layer, step):
            values[..., [1, 5]] = 0
            return values / values.sum(-1, keepdim=True)

        with edit(substrate, renormalise, guided=False):
            by_probabilities = substrate.unet(latents, t, encoder_hidden_states=text).sample
    torch.testing.assert_close(edited, masked, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(by_probabilities, masked, atol=1e-5, rtol=1e-4)
    assert (plain - masked).abs().max() > 1e-4
    # A recorder entered before the edit still sees what the layers used.
    assert recording.attention.cond[..., [1, 5]].max() == 0
    np.testing.assert_allclose(under_mask.attention.cond, recording.attention.cond, atol=1e-5)
    assert recording.attention.uncond is None


def test_edits_reach_their_half_layer_and_step_only(tiny):
    layers = list(cross_attention_layers(tiny))
    calls = []

    def note(values, layer, step):
        calls.append((layer, step, values.shape[0]))
        return values * 0 if step == 1 else values

    with record(tiny, uncond=True) as recording, edit(tiny, note, layers=layers[:2], half="uncond"):
        sampled(tiny, steps=2)
    assert calls == [(layer, step, 2) for step in (0, 1) for layer in layers[:2]]
    result = recording.attention
    assert result.uncond[1, :2].max() == 0 and result.uncond[1, 2:].min() > 0 and result.cond.min() > 0


def test_identity_edit_gives_the_picture_back(tiny2):
    plain = sampled(tiny2)
    with edit(tiny2, lambda values, layer, step: values, half="both"):
        edited = sampled(tiny2)
    torch.testing.assert_close(edited, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0])
@pytest.mark.parametrize("options", [
    {"norm_num_groups": 4}, {"cross_attention_norm": "layer_norm"}, {"upcast_attention": True, "upcast_softmax": True},
    {"cross_attention_norm": "group_norm", "cross_attention_norm_num_groups": 2, "residual_connection": True, "rescale_output_factor": 2.0},
])  # fmt: skip
def test_worked_out_layers_equal_diffusers_processors(processor, options):
    """Norms, residuals, rescaling, masks and pictures instead of rows of pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = DiffusersAttention(16, cross_attention_dim=8, heads=2, dim_head=8, processor=processor(), **options).eval()
        hidden, text = torch.randn(2, 16, 3, 3), torch.randn(2, 77, 8)
        mask = torch.randn(2, 1, 77)
    identity = type("Identity", (), {"edits": "logits", "change": lambda self, values, name: values})()
    for pixels in (hidden, hidden.flatten(2).transpose(1, 2)):
        for bias in (None, mask):
            with torch.no_grad():
                expected = layer(pixels, encoder_hidden_states=text, attention_mask=bias)
                tap = TappedProcessor("layer", layer.processor)
                tap.taps.append((get_ident(), identity))
                layer.set_processor(tap)
                found = layer(pixels, encoder_hidden_states=text, attention_mask=bias)
                layer.set_processor(tap.original)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_inside_a_pipeline_call(tiny, sd1_tiny, guidance):
    """The pipeline's own call, its PNDM file (which repeats a time), several prompts and pictures each."""
    pipe = StableDiffusionPipeline.from_pretrained(sd1_tiny, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)

    def call():
        options = {"guidance_scale": guidance, "num_images_per_prompt": 2, "num_inference_steps": 3, "output_type": "np"}
        return pipe(PROMPTS, generator=torch.Generator().manual_seed(0), **options).images

    plain = call()
    with record(pipe, uncond=True) as recording:
        observed = call()
    assert np.array_equal(plain, observed)
    result = recording.attention
    assert result.cond.shape[0] == 4 and result.cond.shape[2:] == (4, 77)  # PNDM: one U-Net call more than steps
    assert (result.uncond is None) == (guidance == 1.0)
    if guidance == 1.0:
        return
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    latents = initial_latents([0], tiny.latent_shape)
    with record(pipe) as own:
        pipe(PROMPTS[:1], latents=latents, num_inference_steps=2, output_type="latent")
    with record(tiny) as ours:
        sampled(tiny, PROMPTS[:1], steps=2)
    np.testing.assert_allclose(own.attention.cond, ours.attention.cond, atol=1e-5)


def test_low_rank_layers_are_seen(tiny):
    """LoRA replaces the projections of a layer by modules that add to them; nothing else of it matters here."""

    class LowRank(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.down, self.up = base, torch.nn.Linear(base.in_features, 2, bias=False), torch.nn.Linear(2, base.out_features, bias=False)

        def forward(self, states, *args, **kwargs):
            return self.base(states) + self.up(self.down(states))

    name, layer = next(iter(cross_attention_layers(tiny).items()))
    with record(tiny, layers=[name]) as without:
        sampled(tiny)
    base = layer.to_k
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer.to_k = LowRank(base)
    try:
        plain = sampled(tiny)
        with record(tiny, layers=[name]) as recording:
            assert torch.equal(sampled(tiny), plain)
        with edit(tiny, lambda values, layer, step: values):
            torch.testing.assert_close(sampled(tiny), plain, atol=1e-5, rtol=1e-4)
    finally:
        layer.to_k = base
    assert np.abs(recording.attention.cond - without.attention.cond).max() > 1e-4


@pytest.mark.slow
def test_minisd_whose_finest_level_has_no_cross_attention():
    substrate = load("minisd-v1", device="cpu", dtype="float32")
    names = list(cross_attention_layers(substrate))
    assert [name.split(".")[0] for name in names] == ["down_blocks"] * 2 + ["mid_block"] + ["up_blocks"] * 4
    finest = finest_down_layers(names)
    assert finest == ["down_blocks.1.attentions.0.transformer_blocks.0.attn2"]
    order = []
    with record(substrate, maps=finest) as recording, edit(substrate, lambda values, layer, step: order.append(layer) or values, half="both"):
        sampled(substrate, steps=1)
    assert order == names
    assert recording.attention.cond.shape == (1, 7, 2, 77)
    assert recording.attention.maps[0, finest[0]].shape == (2, 8, 8, 77)


def test_aligned_at_eot():
    tokens = tokenize(build_clip_tokenizer("!"), ["", "cat", " ".join(["cat"] * 74)])
    values = np.tile(np.arange(77.0), (2, 3, 1)) + np.array([0, 100])[:, None, None]
    aligned = aligned_at_eot(values, tokens, before=2, after=3)
    nan = np.nan
    np.testing.assert_array_equal(aligned[0], [[nan, nan, 1, 2, 3, 4], [nan, 1, 2, 3, 4, 5], [73, 74, 75, 76, nan, nan]])
    np.testing.assert_array_equal(aligned[1], aligned[0] + 100)
    with pytest.raises(InputError, match="does not fit 3 prompts"):
        aligned_at_eot(values[:, :2], tokens)


def test_entropy_of_the_mean_over_layers():
    one_hot = np.zeros((1, 2, 1, 77))
    one_hot[0, 0, 0, 3] = one_hot[0, 1, 0, 4] = 1
    assert entropy(one_hot).item() == pytest.approx(math.log(2))  # a mean of two entropies would be 0
    uniform = Attention(np.full((3, 2, 4, 77), 1 / 77, np.float32), None, ("a", "b"), (3.0, 2.0, 1.0))
    np.testing.assert_allclose(entropy(uniform), np.full((3, 4), math.log(77)), rtol=1e-6)
    mask = np.zeros((4, 77), bool)
    mask[:, :7] = True
    np.testing.assert_allclose(entropy(uniform, mask), np.full((3, 4), math.log(77) / 11), rtol=1e-6)
    with pytest.raises(InputError, match="mask of positions"):
        entropy(uniform, mask[:2])


def test_bad_input_is_refused_before_anything_is_changed(tiny):
    before = dict(tiny.unet.attn_processors)
    for options in ({"layers": ["attn9"]}, {"layers": []}, {"maps": "down_blocks"}):
        with pytest.raises(InputError), record(tiny, **options):
            pass
    for options in ({"on": "values"}, {"half": "left"}):
        with pytest.raises(InputError), edit(tiny, lambda values, layer, step: values, **options):
            pass
    with pytest.raises(InputError, match="no cross-attention"), record(tiny.vae):
        pass
    with pytest.raises(InputError, match="must return a tensor"), edit(tiny, lambda values, layer, step: values[:1]):
        sampled(tiny)
    with pytest.raises(InputError, match="guided=False"), record(tiny):
        tiny.unet(torch.zeros(3, *tiny.latent_shape), 10, encoder_hidden_states=torch.zeros(3, 77, 32))
    with pytest.raises(InputError, match="Nothing was recorded"), record(tiny) as recording:
        _ = recording.attention
    assert tiny.unet.attn_processors == before


def test_clock_takes_a_rising_time_for_a_new_run():
    clock = Clock(lambda: False)
    seen = []
    for t in (981, 961, 961, 941, 981, 961, 999):  # 961 twice as PNDM does; the second run is broken off
        clock(None, (torch.zeros(1, 4, 8, 8), torch.tensor(t)), {})
        seen.append((clock.run, clock.step))
    assert seen == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (2, 0)]


def test_attention_of_an_experiment_comes_from_the_store_the_second_time(tiny, tmp_path):
    run = Settings(tiny, PictureStore(tmp_path), MetricSet({}), (0, 3), steps=2, batch_size=3)
    embedding = encode_prompts(tiny, PROMPTS)
    layers = cross_attention_layers(tiny)
    values = attention_of(run, embedding)
    assert values.shape == (2, len(layers), 2, 2, 77) and run.store.made == 1
    with record(tiny) as recording:
        sampled(tiny, PROMPTS[1:], seed=3)
    np.testing.assert_allclose(values[:, :, 1, 1], recording.attention.cond[:, :, 0], atol=1e-4, rtol=2e-3)
    np.testing.assert_array_equal(attention_of(run, embedding), values)
    assert run.store.made == 1
    np.testing.assert_array_equal(attention_of(run, embedding, "last"), values[-1:])
    finest = finest_down_layers(list(layers))
    maps = last_maps(run, embedding, finest)
    assert maps.shape == (2, 8, 8, 77)
    mean = values[-1, [list(layers).index(name) for name in finest], :, 0].mean(0)
    np.testing.assert_allclose(maps.mean((1, 2)), mean, atol=1e-4, rtol=2e-3)
