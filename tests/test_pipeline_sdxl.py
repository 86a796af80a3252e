"""Mitigations in Stable Diffusion XL, against its pipeline told by hand; and which pipelines and mitigations are refused, by name."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from checkpoints import build_sdxl
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    KandinskyV22Pipeline,
    PixArtAlphaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    VQModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

import memlib
from memlib.base.errors import InputError
from memlib.base.paths import ROOT
from memlib.mitigations import REGISTRY, get, pipeline_guidance
from memlib.sampling.batches import initial_latents
from memlib.sampling.guidance import StepInfo

PROMPTS = ["a cat on a red chair", "two dogs! stock photo"]
SECOND = ["a painting of a boat at dusk", "three birds"]
NEGATIVE = "blurry, low quality"
PADDING = ["pad-swap", "pad-swap-eot-mask", "pad-mask", "sot-pad"]
FULL = " ".join(["cat"] * 75)
STEPS, SHAPE = 4, (4, 8, 8)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The prompt's padding in text_encoder_2")]


@pytest.fixture(scope="module")
def whole() -> StableDiffusionXLPipeline:
    return build_sdxl()


@pytest.fixture
def pipe(whole):
    yield whole
    assert not {"encode_prompt", "progress_bar"} & set(whole.__dict__)


@torch.no_grad()
def by_hand(pipe, name, prompts, second=None, skip=0):
    """States [N, 77, d1 + d2] and pooled embeddings of a mitigation, from token ids and the two encoders alone, one prompt at a time."""
    states, pooled = [], []
    for prompt, other in zip(prompts, second or prompts, strict=True):
        sides = []
        for tokenizer, encoder, text in ((pipe.tokenizer, pipe.text_encoder, prompt), (pipe.tokenizer_2, pipe.text_encoder_2, other)):
            ids = tokenizer(text, truncation=True, max_length=77)["input_ids"]
            end = len(ids) - 1
            pad = {"pad-swap": 0, "pad-swap-eot-mask": 0, "sot-pad": 49_406}.get(name, tokenizer.pad_token_id)
            side = encoder(torch.tensor([ids + [pad] * (77 - len(ids))]), output_hidden_states=True).hidden_states[-2 - skip][0].clone()
            if name in ("pad-swap-eot-mask", "sot-pad"):
                side[end] = 0
            if name == "pad-mask":
                side[77 - int(0.7 * (76 - end) + 0.5) :] = 0
            sides.append(side)
        states.append(torch.cat(sides, -1))
        pooled.append(encoder(torch.tensor([ids + [0] * (77 - len(ids))])).text_embeds[0])  # as the model was made to read it
    return torch.stack(states), torch.stack(pooled)


def run(pipe, prompts, scale=7.5, seeds=(1, 2), **options):
    """Final latents; `prompts` are texts, or states with pooled embeddings, and then the negative ones too."""
    if isinstance(prompts, tuple):
        names = ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds")
        options |= dict(zip(names, prompts, strict=False))
    else:
        options["prompt"] = prompts
    noise = initial_latents(list(seeds), SHAPE).clone()
    return pipe(num_inference_steps=STEPS, guidance_scale=scale, latents=noise, output_type="latent", **options).images


def close(first, second):
    return torch.allclose(first, second, rtol=1e-4, atol=2e-4)


# --- text


@pytest.mark.parametrize("negative", ["zeros", "empty", NEGATIVE])
@pytest.mark.parametrize("name", PADDING)
def test_pictures_are_those_of_states_and_pooled_embeddings_made_by_hand(name, negative, pipe):
    unguided = by_hand(pipe, "none", [NEGATIVE if negative == NEGATIVE else ""] * 2)
    if negative == "zeros":
        unguided = tuple(torch.zeros_like(part) for part in unguided)
    told = {} if negative == "zeros" else {"negative_prompt": [NEGATIVE if negative == NEGATIVE else ""] * 2}
    expected, plain = run(pipe, by_hand(pipe, name, PROMPTS) + unguided), run(pipe, PROMPTS, **told)
    with memlib.mitigate(pipe, name):
        got = run(pipe, PROMPTS, **told)
    assert close(got, expected) and not close(got, plain)
    assert torch.equal(run(pipe, PROMPTS, **told), plain)


def test_a_model_without_zeros_for_an_empty_prompt_encodes_it():
    pipe = build_sdxl(force_zeros=False)
    expected = run(pipe, by_hand(pipe, "sot-pad", PROMPTS) + by_hand(pipe, "none", ["", ""]))
    with memlib.mitigate(pipe, "sot-pad"):
        got = run(pipe, PROMPTS)
    zeros = tuple(torch.zeros_like(part) for part in by_hand(pipe, "none", ["", ""]))
    assert close(got, expected) and not close(got, run(pipe, by_hand(pipe, "sot-pad", PROMPTS) + zeros))


@pytest.mark.parametrize("name", PADDING)
def test_each_encoder_is_edited_by_its_own_text_and_the_pooled_embedding_stays(name, pipe):
    told = {"prompt_2": SECOND, "negative_prompt": [NEGATIVE] * 2, "negative_prompt_2": ["grey"] * 2, "num_images_per_prompt": 3}
    plain = pipe.encode_prompt(PROMPTS, **told)
    with memlib.mitigate(pipe, name):
        got = pipe.encode_prompt(PROMPTS, **told)
        unguided = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    states, pooled = by_hand(pipe, name, PROMPTS, SECOND)
    assert close(got[0], states.repeat_interleave(3, 0)) and close(got[2], pooled.repeat_interleave(3, 0))
    assert close(got[2], plain[2]) and torch.equal(got[1], plain[1]) and torch.equal(got[3], plain[3])
    assert unguided[1] is None and unguided[3] is None and not close(got[0], plain[0])


def test_what_edits_nothing_changes_not_one_bit(pipe):
    told = {"negative_prompt": [NEGATIVE] * 2, "prompt_2": SECOND}
    plain = run(pipe, PROMPTS, **told)
    for name, params in (("none", {}), ("pad-mask", {"fraction": 0}), ("embedding-noise", {"strength": 0}), ("repeated-word", {"count": 0}),
                         ("static-transition", {"before": 7.5}), ("annealed-guidance", {"before": 7.5})):  # fmt: skip
        with memlib.mitigate(pipe, name, **params):
            assert torch.equal(run(pipe, PROMPTS, **told), plain), name
    assert torch.equal(run(pipe, PROMPTS, **told), plain)


def test_a_padding_that_one_encoder_has_already_is_said(pipe):
    with pytest.warns(UserWarning, match="padding in text_encoder_2 is '!' already, so pad-swap changes that of text_encoder alone"):
        handle = memlib.mitigate(pipe, "pad-swap")
    handle.undo()
    assert "text_encoder alone" in handle.remark
    for name in ("pad-mask", "sot-pad"):
        with memlib.mitigate(pipe, name) as handle:
            assert handle.remark == ""


def test_a_prompt_that_fills_one_encoder_only(pipe):
    expected = by_hand(pipe, "sot-pad", [FULL], ["a boat"])[0]
    with memlib.mitigate(pipe, "sot-pad"), pytest.warns(UserWarning, match="leaves no padding: sot-pad does to it"):
        assert close(pipe.encode_prompt([FULL], prompt_2=["a boat"])[0], expected)


def test_embeddings_made_beforehand(pipe):
    states, pooled = by_hand(pipe, "pad-swap-eot-mask", PROMPTS, SECOND)
    weighted = by_hand(pipe, "none", PROMPTS, SECOND)[0]
    weighted[:, 2] *= 1.4
    zeros = torch.zeros_like(states), torch.zeros_like(pooled)
    with memlib.mitigate(pipe, "pad-swap-eot-mask") as handle:
        made = handle.embed(PROMPTS, prompts_2=SECOND)
        assert close(made[0], states) and close(made[1], pooled)
        assert close(run(pipe, made + zeros), run(pipe, PROMPTS, prompt_2=SECOND))
        edited = handle.edit(weighted, PROMPTS, prompts_2=SECOND)
        ids = [tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
               for tokenizer, texts in ((pipe.tokenizer, PROMPTS), (pipe.tokenizer_2, SECOND))]  # fmt: skip
        assert close(handle.edit(weighted, ids[0], prompts_2=ids[1]), edited)
        run(pipe, (edited, pooled, *zeros))
        with pytest.raises(InputError, match="cannot be applied to given prompt_embeds"):
            run(pipe, (states, pooled, *zeros))
        with pytest.raises(InputError, match="marks of weights.*token ids"):
            handle.edit(weighted, PROMPTS, prompts_2=["a painting of a (boat:1.3) at dusk", SECOND[1]])
    states[:, 2] *= 1.4
    assert close(edited, states)


def test_an_earlier_layer_may_be_asked_for(pipe):
    states, pooled = by_hand(pipe, "pad-swap", PROMPTS, skip=1)
    with memlib.mitigate(pipe, "pad-swap") as handle:
        got, made = pipe.encode_prompt(PROMPTS, clip_skip=1), handle.embed(PROMPTS, clip_skip=1)
    assert close(got[0], states) and close(made[0], states) and close(got[2], pooled) and not close(states, by_hand(pipe, "pad-swap", PROMPTS)[0])


def test_a_changed_text_is_read_by_both_encoders(pipe):
    for name in ("random-token", "random-number", "repeated-word"):
        texts = [get(name).rewrite(prompt, pipe.tokenizer) for prompt in PROMPTS]
        second = [get(name).rewrite(prompt, pipe.tokenizer_2) for prompt in SECOND]
        alone, both = run(pipe, texts), run(pipe, texts, prompt_2=second)
        with memlib.mitigate(pipe, name) as handle:
            assert torch.equal(run(pipe, PROMPTS), alone) and torch.equal(run(pipe, PROMPTS, prompt_2=SECOND), both)
            assert close(handle.embed(PROMPTS)[1], by_hand(pipe, "none", texts)[1])


def test_noise_is_drawn_apart_for_each_encoder(pipe):
    plain = pipe.encode_prompt(PROMPTS)
    with memlib.mitigate(pipe, "embedding-noise", strength=0.5):
        got, again = pipe.encode_prompt(PROMPTS), pipe.encode_prompt(PROMPTS[1:])
    first, second = (got[0] - plain[0]).split([32, 48], -1)
    assert 0.48 < first.std() < 0.52 and 0.48 < second.std() < 0.52 and torch.equal(got[2], plain[2])
    flat = first[0].flatten(), second[0].flatten()[: first[0].numel()]
    assert abs(torch.corrcoef(torch.stack(flat))[0, 1]) < 0.08 and torch.allclose(again[0], got[0][1:], atol=1e-5)


# --- guidance


@pytest.mark.parametrize("kind", ["euler", "ddim"])
def test_a_static_transition_equals_the_pipeline_told_by_its_callback(kind, pipe):
    own = pipe.scheduler
    states, pooled = by_hand(pipe, "none", PROMPTS)
    nothing, none_pooled = torch.zeros_like(states), torch.zeros_like(pooled)

    def switch(pipe, i, t, tensors):
        return {"prompt_embeds": torch.cat([nothing, states]), "add_text_embeds": torch.cat([none_pooled, pooled])} if i == 1 else {}

    if kind == "ddim":
        pipe.scheduler = DDIMScheduler.from_config(own.config, clip_sample=False)
    try:
        plain = run(pipe, PROMPTS)
        expected = run(pipe, (nothing, none_pooled, nothing, none_pooled), callback_on_step_end=switch)
        with memlib.mitigate(pipe, "static-transition", step=2):
            got = run(pipe, PROMPTS)
        assert close(got, expected) and not close(got, plain) and torch.equal(run(pipe, PROMPTS), plain)
    finally:
        pipe.scheduler = own


def test_every_picture_switches_at_its_own_minimum(pipe, monkeypatch):
    magnitudes = torch.tensor([[3.0, 3.0], [1.0, 2.0], [2.0, 1.0], [3.0, 2.0]])  # minima at steps 1 and 2

    class Told(StepInfo):
        @property
        def magnitude(self):
            return magnitudes[self.index]

    expected = []
    for row, step in enumerate((2, 3)):
        with memlib.mitigate(pipe, "static-transition", step=step):
            expected.append(run(pipe, PROMPTS)[row])
    monkeypatch.setattr(pipeline_guidance, "StepInfo", Told)
    with memlib.mitigate(pipe, "dynamic-transition"):
        assert close(run(pipe, PROMPTS), torch.stack(expected))


@pytest.mark.parametrize("name", ["pad-swap-eot-mask", "pad-mask", "embedding-noise", "dynamic-transition", "interval-guidance"])
def test_sizes_and_pooled_embeddings_reach_the_u_net_as_without(name, pipe):
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["added_cond_kwargs"]), with_kwargs=True)
    told = {"original_size": (900, 700), "crops_coords_top_left": (3, 5), "target_size": (64, 64), "negative_prompt": [NEGATIVE] * 2}
    told |= {"negative_original_size": (32, 32), "negative_target_size": (32, 32)}
    try:
        run(pipe, PROMPTS, **told)
        with memlib.mitigate(pipe, name):
            run(pipe, PROMPTS, **told)
    finally:
        hook.remove()
    assert len(seen) == 2 * STEPS and seen[0]["time_ids"][-1].tolist() == [900, 700, 3, 5, 64, 64]
    for plain, mitigated in zip(seen[:STEPS], seen[STEPS:], strict=True):
        assert torch.equal(plain["time_ids"], mitigated["time_ids"]) and close(plain["text_embeds"], mitigated["text_embeds"])


def test_the_refiner_reads_with_the_second_encoder_alone(whole):
    parts = {name: part for name, part in whole.components.items() if name not in ("text_encoder", "tokenizer")}
    refiner = StableDiffusionXLImg2ImgPipeline(**parts, text_encoder=None, tokenizer=None, add_watermarker=False)
    expected = by_hand(whole, "sot-pad", PROMPTS)
    with memlib.mitigate(refiner, "sot-pad"):
        got = refiner.encode_prompt(PROMPTS)
    assert close(got[0], expected[0][..., 32:]) and close(got[2], expected[1])
    with pytest.warns(UserWarning, match="pads with '!' already, so pad-swap changes nothing"):
        memlib.mitigate(refiner, "pad-swap").undo()


def test_pictures_from_pictures(whole):
    pipe = StableDiffusionXLImg2ImgPipeline(**whole.components, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    start = Image.radial_gradient("L").resize((64, 64)).convert("RGB")

    def made(scale=7.5):
        told = {"image": start, "strength": 0.8, "num_inference_steps": 10, "generator": torch.Generator().manual_seed(2), "output_type": "latent"}
        return pipe(PROMPTS[:1], guidance_scale=scale, **told).images

    expected = made(3.0)
    with memlib.mitigate(pipe, "static-transition", step=99, before=3.0):
        assert close(made(), expected) and not close(expected, made(3.0) * 1.01)


# --- what is refused


def rows():
    """The table of the book: name to what it says of Stable Diffusion XL."""
    page = (ROOT / "book" / "sdxl.md").read_text(encoding="utf-8")
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    return {name: xl for names, _, _, xl, _ in table for name in re.findall(r"`([a-z0-9-]+)`", names)}


@pytest.mark.parametrize("name", REGISTRY)
def test_every_mitigation_works_or_is_refused_as_the_book_says(name, pipe):
    said = rows()
    assert set(said) == set(REGISTRY)
    if said[name] == "refused":
        with pytest.raises(InputError, match=f"{name} acts while sampling .* cannot be had for StableDiffusionXLPipeline"):
            memlib.mitigate(pipe, name)
        return
    assert said[name] == "works"
    plain = run(pipe, PROMPTS)
    with memlib.mitigate(pipe, name):
        got = run(pipe, PROMPTS)
    assert torch.isfinite(got).all() and (name == "none" or not torch.equal(got, plain))


def test_other_pipelines_are_refused_by_name_with_the_reason():
    t5 = T5EncoderModel(T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    clip = CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2))
    flux = FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=1, joint_attention_dim=8, pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    vae, other = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4), dict.fromkeys(("scheduler", "tokenizer"))
    both = {"text_encoder": clip, "text_encoder_2": clip, "tokenizer_2": None, "tokenizer_3": None}
    chatglm = SimpleNamespace(config=SimpleNamespace(model_type="chatglm"))
    kandinsky = KandinskyV22Pipeline(unet=build_sdxl().unet, scheduler=None, movq=VQModel(block_out_channels=(8,), norm_num_groups=4))
    for pipe, reason in (
        (FluxPipeline(**other, vae=vae, text_encoder=clip, text_encoder_2=t5, tokenizer_2=None, transformer=flux), r"T5EncoderModel \(text_encoder_2\)"),
        (StableDiffusion3Pipeline(**other, vae=vae, transformer=None, text_encoder_3=t5, **both), r"T5EncoderModel \(text_encoder_3\)"),
        (StableDiffusion3Pipeline(**other, vae=vae, transformer=None, text_encoder_3=None, **both), "has no U-Net"),
        (PixArtAlphaPipeline(**other, vae=vae, transformer=None, text_encoder=t5), r"T5EncoderModel \(text_encoder\)"),
        (kandinsky, "no text encoder with a tokenizer"),
    ):
        for name in ("pad-swap", "dynamic-transition", "none"):
            with pytest.raises(InputError, match=f"{type(pipe).__name__} .*{reason}.*: mitigations are put into pipelines with the text path of"):
                memlib.mitigate(pipe, name)
    # Kolors' own class cannot be made without a tokenizer library that nothing else here needs; its encode_prompt takes what this one takes.
    kolors = SimpleNamespace(encode_prompt=StableDiffusionXLPipeline.encode_prompt, text_encoder=chatglm, tokenizer=1, unet=1)
    with pytest.raises(InputError, match=r"reads its prompts with SimpleNamespace \(text_encoder\), and edits of padding and <eot> mean something in CLIP"):
        memlib.mitigate(kolors, "pad-swap")
