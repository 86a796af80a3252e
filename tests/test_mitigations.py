"""Mitigations against prompt embeddings made by hand and given to diffusers' own pipelines."""

from __future__ import annotations

import inspect
import subprocess
import sys
import warnings
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

import memlib
from memlib.base.errors import InputError
from memlib.experiment.run import Experiment
from memlib.judging.claims import reported
from memlib.mitigations import REGISTRY, Mitigation, describe, get
from memlib.models.substrate import load
from memlib.prompts.embedding import encode_prompts, tokenize
from memlib.prompts.interventions import apply
from memlib.sampling.batches import initial_latents, sample_batches
from memlib.sampling.recipe import Recipe
from memlib.sampling.stored import PictureStore

PROMPTS = ["a cat on a red chair", "two dogs! stock photo"]
# Long enough for 75 tokens: every "cat" is one.
FULL = " ".join(["cat"] * 75)
EDITING = [name for name in REGISTRY if name != "none"]


@pytest.fixture(scope="module")
def sd1(sd1_tiny):
    return load(sd1_tiny, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def sd2(sd2_tiny):
    return load(sd2_tiny, device="cpu", dtype="float32")


@pytest.fixture
def pipe(sd1):
    yield sd1.pipe
    assert "encode_prompt" not in sd1.pipe.__dict__ and not sd1.text_encoder._forward_pre_hooks


@torch.no_grad()
def by_hand(pipe, name, prompts, clip_skip=None):
    """The embeddings of a mitigation from nothing but token ids and the text encoder, one prompt at a time."""
    rows = []
    for prompt in prompts:
        ids = pipe.tokenizer(prompt, truncation=True, max_length=77)["input_ids"]
        end = len(ids) - 1
        pad = {"pad-swap": 0, "pad-swap-eot-mask": 0, "sot-pad": 49_406}.get(name, pipe.tokenizer.pad_token_id)
        output = pipe.text_encoder(torch.tensor([ids + [pad] * (77 - len(ids))]), output_hidden_states=True)
        states = output[0][0]
        if clip_skip is not None:
            norm = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm
            states = norm(output.hidden_states[-1 - clip_skip])[0]
        states = states.clone()
        if name in ("pad-swap-eot-mask", "sot-pad"):
            states[end] = 0
        if name == "pad-mask":
            count = int(0.7 * (76 - end) + 0.5)
            states[77 - count :] = 0
        rows.append(states)
    return torch.stack(rows)


def latents(pipe, prompts, seeds=(1,), negative=None, **options):
    """Final latents of a text-to-image pipeline; `prompts` are texts or embeddings."""
    told = {"prompt": prompts} if isinstance(prompts, (str, list)) else {"prompt_embeds": prompts}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(
        **told, num_inference_steps=3, guidance_scale=7.5, generator=generators, output_type="latent",
        **({} if negative is None else {"negative_prompt": negative}), **options,
    ).images  # fmt: skip


def close(first, second):
    return torch.allclose(first, second, rtol=1e-4, atol=1e-4)


# --- the registry


def test_every_mitigation_is_complete():
    assert {"none", "pad-swap", "pad-swap-eot-mask", "pad-mask", "sot-pad"} <= set(REGISTRY)
    for name, mitigation in REGISTRY.items():
        assert mitigation.name == name and hash(mitigation) is not None and get(name) == mitigation
        for words in (mitigation.label, mitigation.summary, mitigation.source, mitigation.cost, mitigation.full_prompt):
            assert words
        assert mitigation.summary.endswith(".") and mitigation.title == name
        assert mitigation.source.split()[0].rstrip(",") in ("clip", "clip-news", "basin", "attn", "dori") or ", " in mitigation.source
        for key in mitigation.reported:
            assert len(reported(method=key))
    assert len(describe()) == len(REGISTRY) and all(all(row.values()) for row in describe())


def test_parameters_are_part_of_the_object():
    half = get("pad-mask", fraction=0.5, which="first")
    assert half.params == {"fraction": 0.5, "which": "first", "seed": 0}
    assert half.title == "pad-mask (fraction 0.5, which first)" and half != get("pad-mask") and half.key != get("pad-mask").key
    with pytest.raises(FrozenInstanceError):
        half.fraction = 0.1


@pytest.mark.parametrize(
    ("name", "params", "sentence"),
    [
        ("pad-swop", {}, "Unknown mitigation 'pad-swop': use one of none, "),
        ("pad-mask", {"share": 0.5}, "no parameter 'share': it has fraction, which, seed"),
        ("pad-swap", {"fraction": 0.5}, "it has none"),
        ("pad-mask", {"fraction": 70}, "fraction of pad-mask is 70: give a number from 0 to 1"),
        ("pad-mask", {"fraction": "half"}, "fraction of pad-mask is 'half'"),
        ("pad-mask", {"which": "middle"}, "'middle'"),
        ("pad-mask", {"seed": -1}, "seed of pad-mask is -1"),
    ],
)
def test_bad_names_and_parameters_end_in_one_sentence(name, params, sentence, sd1):
    for attempt in (lambda: get(name, **params), lambda: memlib.mitigate(sd1.pipe, name, **params)):
        with pytest.raises(InputError, match=sentence):
            attempt()


def test_importing_memlib_loads_no_torch():
    code = "import sys, memlib; memlib.mitigate; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- embeddings


@pytest.mark.parametrize("name", REGISTRY)
def test_embeddings_equal_those_made_by_hand(name, sd1, sd2):
    if name not in ("none", "pad-swap", "pad-swap-eot-mask", "pad-mask", "sot-pad"):
        pytest.skip("its own module's tests know what it does")
    for substrate in (sd1, sd2):
        embedding = encode_prompts(substrate, PROMPTS)
        before = embedding.states.clone()
        edited = get(name).apply(substrate, embedding)
        torch.testing.assert_close(edited.states, by_hand(substrate.pipe, name, PROMPTS), rtol=1e-4, atol=1e-5)
        assert torch.equal(embedding.states, before)


def test_masking_all_or_nothing_are_known_edits(sd1):
    embedding = encode_prompts(sd1, PROMPTS)
    for which in ("first", "last", "random", "even"):
        assert torch.equal(get("pad-mask", fraction=0, which=which).apply(sd1, embedding).states, embedding.states)
        assert torch.equal(get("pad-mask", fraction=1.0, which=which).apply(sd1, embedding).states, apply("h", embedding).states)


def test_random_positions_belong_to_the_prompt_and_not_to_its_batch(sd1):
    embedding = encode_prompts(sd1, PROMPTS)
    random = get("pad-mask", which="random")
    both, alone = random.apply(sd1, embedding).states, random.apply(sd1, embedding.select([1])).states
    assert torch.equal(both[1:], alone)
    assert not torch.equal(both, get("pad-mask", which="random", seed=1).apply(sd1, embedding).states)
    masked = (both == 0).all(-1)
    assert masked.sum(1).tolist() == [int(0.7 * n + 0.5) for n in embedding.tokens.pad.sum(1).tolist()]


def test_a_model_padded_with_exclamation_marks_says_that_nothing_changes(sd2, sd1):
    embedding = encode_prompts(sd2, PROMPTS)
    assert get("pad-swap").apply(sd2, embedding).states.equal(embedding.states)
    assert "changes nothing" in get("pad-swap").remark(sd2.tokenizer)
    assert "other edit only" in get("pad-swap-eot-mask").remark(sd2.tokenizer)
    assert get("pad-swap").remark(sd1.tokenizer) == "" == get("pad-mask").remark(sd2.tokenizer)
    with pytest.warns(UserWarning, match="pads with '!' already, so pad-swap changes nothing"):
        handle = memlib.mitigate(sd2.pipe, "pad-swap")
    handle.undo()


# --- any diffusers pipeline


@pytest.mark.parametrize("name", EDITING)
def test_the_picture_is_that_of_embeddings_made_by_hand(name, pipe):
    if get(name).sampled or name not in ("pad-swap", "pad-swap-eot-mask", "pad-mask", "sot-pad"):
        pytest.skip("its own module's tests know what it does")
    plain = latents(pipe, PROMPTS, seeds=(1, 2))
    expected = latents(pipe, by_hand(pipe, name, PROMPTS), seeds=(1, 2))
    with memlib.mitigate(pipe, name) as handle:
        got = latents(pipe, PROMPTS, seeds=(1, 2))
        assert close(latents(pipe, handle.embed(PROMPTS), seeds=(1, 2)), expected)
    assert close(got, expected) and not close(got, plain)
    assert torch.equal(latents(pipe, PROMPTS, seeds=(1, 2)), plain)


def test_a_handle_is_undone_exactly_and_once(pipe):
    method = type(pipe).encode_prompt
    handle = memlib.mitigate(pipe, "pad-swap")
    with pytest.raises(InputError, match="mitigated by 'pad-swap' already: undo that first"):
        memlib.mitigate(pipe, "pad-mask")
    handle.undo()
    handle.undo()
    assert pipe.encode_prompt.__func__ is method
    pipe.encode_prompt = replaced = lambda *a, **k: method(pipe, *a, **k)  # someone else's wrapper is put back too
    replaced.__signature__ = inspect.signature(method.__get__(pipe))
    with memlib.mitigate(pipe, "pad-swap"):
        assert pipe.encode_prompt is not replaced
    assert pipe.encode_prompt is replaced
    del pipe.encode_prompt


def test_undone_after_an_exception_anywhere(pipe):
    plain = latents(pipe, PROMPTS[0])

    def stop(*args):
        raise RuntimeError("stopped by the caller")

    with pytest.raises(RuntimeError, match="stopped by the caller"), memlib.mitigate(pipe, "pad-swap"):
        latents(pipe, PROMPTS[0], callback_on_step_end=stop)
    # In the middle of encoding, while the text encoder carries the hook.
    blow = pipe.text_encoder.register_forward_hook(stop)
    try:
        with pytest.raises(RuntimeError, match="stopped"), memlib.mitigate(pipe, "pad-swap"):
            latents(pipe, PROMPTS[0])
    finally:
        blow.remove()
    assert not pipe.text_encoder._forward_pre_hooks
    assert torch.equal(latents(pipe, PROMPTS[0]), plain)


def test_a_wrapper_put_on_later_is_not_thrown_away(pipe):
    handle = memlib.mitigate(pipe, "pad-swap")
    ours = pipe.encode_prompt
    pipe.encode_prompt = lambda *a, **k: ours(*a, **k)
    with pytest.raises(InputError, match="undo the later replacement first"):
        handle.undo()
    pipe.encode_prompt = ours
    handle.undo()


def test_negative_prompts_are_left_alone(pipe):
    negative = "blurry, low quality"
    expected = latents(pipe, by_hand(pipe, "pad-swap-eot-mask", PROMPTS[:1]), negative=negative)
    plain_negative = pipe.encode_prompt(PROMPTS[0], "cpu", 1, True, negative)[1]
    with memlib.mitigate(pipe, "pad-swap-eot-mask"):
        assert close(latents(pipe, PROMPTS[0], negative=negative), expected)
        assert torch.equal(pipe.encode_prompt(PROMPTS[0], "cpu", 1, True, negative)[1], plain_negative)
        unguided = pipe.encode_prompt(PROMPTS[0], "cpu", 1, False)
        assert unguided[1] is None
    assert not close(expected, latents(pipe, by_hand(pipe, "pad-swap-eot-mask", PROMPTS[:1])))


def test_several_pictures_of_several_prompts(pipe):
    made = by_hand(pipe, "pad-mask", PROMPTS)
    expected = latents(pipe, made.repeat_interleave(2, 0), seeds=(1, 2, 3, 4))
    with memlib.mitigate(pipe, "pad-mask"):
        assert close(latents(pipe, PROMPTS, seeds=(1, 2, 3, 4), num_images_per_prompt=2), expected)


def test_other_schedulers_and_clip_skip(pipe, monkeypatch):
    if not hasattr(pipe.text_encoder, "text_model"):
        # As with the pinned versions: alone, the pipeline raises; mitigated, it says what helps, and that does help.
        with pytest.raises(AttributeError, match="text_model"):
            pipe(PROMPTS[0], num_inference_steps=1, clip_skip=1)
        with memlib.mitigate(pipe, "pad-swap") as handle:
            for ask in (lambda: pipe(PROMPTS[0], num_inference_steps=1, clip_skip=1), lambda: handle.embed(PROMPTS[0], clip_skip=1)):
                with pytest.raises(InputError, match="clip_skip does not work") as refused:
                    ask()
        line = str(refused.value).partition("say first ")[2].removesuffix(".")
        assert line == "vars(pipe.text_encoder)['text_model'] = pipe.text_encoder"
        monkeypatch.setitem(vars(pipe.text_encoder), "text_model", pipe.text_encoder)
    own, pipe.scheduler = pipe.scheduler, DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    try:
        made = by_hand(pipe, "pad-swap", PROMPTS[:1], clip_skip=1)
        assert not close(made, by_hand(pipe, "pad-swap", PROMPTS[:1]))
        expected = latents(pipe, made)
        with memlib.mitigate(pipe, "pad-swap") as handle:
            assert close(latents(pipe, PROMPTS[0], clip_skip=1), expected)
            assert close(handle.embed(PROMPTS[0], clip_skip=1), made)
    finally:
        pipe.scheduler = own


MARKED = [
    "a fox++ on a chair", "a fox on a chair--", "a (fox)1.3 on a chair", "a (fox:1.3) on a chair", "a ((fox)) on a chair", "a [fox] on a chair",
    "(a fox on a chair)", "a {fox} on a chair", '("a fox on a chair").and()', '("a fox", "a chair").blend(1, 1)', "a fox <lora:fox:1> on a chair",
]  # fmt: skip


@pytest.mark.parametrize("marked", MARKED)
def test_weighted_prompts_are_edited_by_the_ids_that_were_encoded(pipe, marked):
    plain = "a fox on a chair"
    tokens = tokenize(pipe.tokenizer, [plain])
    weighted = encode_prompts(pipe, [plain]).states
    weighted[:, 2] *= 1.4
    with memlib.mitigate(pipe, "pad-swap-eot-mask") as handle:
        expected = handle.edit(weighted, [plain])
        assert close(handle.edit(weighted, tokens.ids), expected)
        # The text with its marks is longer than what was encoded: its padding would begin elsewhere.
        with pytest.raises(InputError, match="token ids"):
            handle.edit(weighted, [marked])
        # Encoded as it stands, marks and all, a text says where its padding is.
        as_it_stands = encode_prompts(pipe, [marked]).states
        assert close(handle.edit(as_it_stands, [marked]), by_hand(pipe, "pad-swap-eot-mask", [marked]))


def test_given_embeddings_are_edited_with_their_prompts_or_refused(pipe):
    plain = encode_prompts(pipe, PROMPTS).states
    weighted = plain.clone()
    weighted[:, 2] *= 1.4  # the weight of one word
    expected = by_hand(pipe, "pad-swap-eot-mask", PROMPTS)
    expected[:, 2] *= 1.4
    with memlib.mitigate(pipe, "pad-swap-eot-mask") as handle:
        edited = handle.edit(weighted, PROMPTS)
        assert close(edited, expected)
        assert close(latents(pipe, edited, seeds=(1, 2)), latents(pipe, handle.edit(weighted, PROMPTS), seeds=(1, 2)))
        got = latents(pipe, edited, seeds=(1, 2))
        for given in (plain, edited.clone()):
            with pytest.raises(InputError, match="cannot be applied to given prompt_embeds"):
                latents(pipe, given, seeds=(1, 2))
        with pytest.raises(InputError, match="several chunks, cannot be mitigated"):
            handle.edit(torch.cat([plain, plain], 1), PROMPTS)
    assert close(got, latents(pipe, expected, seeds=(1, 2)))
    with memlib.mitigate(pipe, "none"):
        assert close(latents(pipe, plain, seeds=(1, 2)), latents(pipe, PROMPTS, seeds=(1, 2)))


@pytest.mark.parametrize("name", EDITING)
def test_a_prompt_without_padding(name, pipe):
    mitigation = get(name)
    if mitigation.sampled:
        pytest.skip("acts while sampling")
    tokens = tokenize(pipe.tokenizer, [FULL, FULL + " cat"])
    assert tokens.lengths.tolist() == [75, 75] and tokens.truncated.tolist() == [False, True]
    plain = latents(pipe, FULL)
    expected = encode_prompts(pipe, FULL).states
    if mitigation.full_prompt == "only the <eot> state is set to zero":
        expected[0, 76] = 0
        expected = latents(pipe, expected)
    elif mitigation.full_prompt == "nothing: there is no padding":
        expected = plain
    else:
        pytest.skip("does not depend on padding")
    with memlib.mitigate(pipe, name), pytest.warns(UserWarning, match=f"leaves no padding: {name} does to it"):
        got = latents(pipe, FULL)
    assert close(got, expected)
    with memlib.mitigate(pipe, name), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        latents(pipe, PROMPTS[0])


def test_weights_changed_meanwhile_are_used(pipe):
    # What fusing a LoRA into the text encoder does to a pipeline that is mitigated already.
    weight = next(weight for name, weight in pipe.text_encoder.named_parameters() if name.endswith("layers.0.mlp.fc1.weight"))
    kept = weight.detach().clone()
    with memlib.mitigate(pipe, "pad-swap"):
        before = latents(pipe, PROMPTS[0])
        with torch.no_grad():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        try:
            got = latents(pipe, PROMPTS[0])
            expected = by_hand(pipe, "pad-swap", PROMPTS[:1])
        finally:
            with torch.no_grad():
                weight.copy_(kept)
    with torch.no_grad():
        assert not close(got, before) and not close(expected, by_hand(pipe, "pad-swap", PROMPTS[:1]))


def test_lora_by_peft(sd1_tiny):
    peft = pytest.importorskip("peft", reason="peft is not installed: LoRA adapters cannot be loaded")
    pipe = load(sd1_tiny, device="cpu", dtype="float32").pipe
    torch.manual_seed(0)
    for model, modules in ((pipe.unet, ["to_k", "to_v"]), (pipe.text_encoder, ["q_proj", "v_proj"])):
        model.add_adapter(peft.LoraConfig(r=2, lora_alpha=64, target_modules=modules, init_lora_weights=False))
    expected = latents(pipe, by_hand(pipe, "pad-swap", PROMPTS[:1]))
    with memlib.mitigate(pipe, "pad-swap"):
        assert close(latents(pipe, PROMPTS[0]), expected)


@pytest.mark.parametrize("kind", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline])
def test_pictures_from_pictures(kind, sd1):
    pipe = kind(**sd1.pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    draw = np.random.default_rng(0)
    start = Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    more = {"mask_image": Image.fromarray(np.triu(np.full((64, 64), 255, np.uint8))), "height": 64, "width": 64}

    def run(prompts):
        told = {"prompt": prompts} if isinstance(prompts, list) else {"prompt_embeds": prompts}
        return pipe(
            **told, image=start, strength=0.8, num_inference_steps=4, output_type="latent", negative_prompt=["blurry"],
            generator=torch.Generator().manual_seed(2), **(more if kind is StableDiffusionInpaintPipeline else {}),
        ).images  # fmt: skip

    plain, expected = run(PROMPTS[:1]), run(by_hand(pipe, "pad-swap", PROMPTS[:1]))
    with memlib.mitigate(pipe, "pad-swap"):
        assert "encode_prompt" not in sd1.pipe.__dict__  # the pipeline that shares its parts is left alone
        assert close(run(PROMPTS[:1]), expected)
    assert not close(plain, expected) and torch.equal(run(PROMPTS[:1]), plain)


def test_half_precision_stays_half(sd1_tiny):
    pipe = load(sd1_tiny, device="cpu", dtype="bfloat16").pipe
    with memlib.mitigate(pipe, "pad-swap-eot-mask") as handle:
        states = pipe.encode_prompt(PROMPTS, "cpu", 1, True)[0]
        assert states.dtype == torch.bfloat16 == handle.embed(PROMPTS).dtype
    exact = by_hand(load(sd1_tiny, device="cpu", dtype="float32").pipe, "pad-swap-eot-mask", PROMPTS)
    assert (states.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_other_pipelines_are_refused_in_one_sentence(sd1):
    tokenizer = SimpleNamespace(model_max_length=77)
    encode, parts = StableDiffusionPipeline.encode_prompt, {"tokenizer": tokenizer, "unet": 1}
    for other, reason in (
        (SimpleNamespace(), "has no U-Net"),
        (SimpleNamespace(encode_prompt=encode, **parts), "no text encoder with a tokenizer"),
        (SimpleNamespace(encode_prompt=lambda prompt: None, text_encoder=1, **parts), "no encode_prompt that gives the states"),
        (SimpleNamespace(encode_prompt=encode, text_encoder=1, text_encoder_2=1, **parts), r"another text encoder \(text_encoder_2\)"),
    ):
        with pytest.raises(InputError, match=f"SimpleNamespace .*{reason}.*: mitigations are put into pipelines with the text path of"):
            memlib.mitigate(other, "pad-swap")


def test_a_tokenizer_that_names_no_length_is_refused_with_the_line_that_helps(pipe):
    own = pipe.tokenizer.model_max_length
    try:
        pipe.tokenizer.model_max_length = int(1e30)  # what transformers takes where a folder names none
        with pytest.raises(InputError, match=r"set pipe\.tokenizer\.model_max_length = 77\.") as caught:
            memlib.mitigate(pipe, "pad-swap")
        exec(str(caught.value).rpartition("set ")[2].rstrip("."), {"pipe": pipe})
        with memlib.mitigate(pipe, "pad-swap") as handle:
            assert close(handle.embed(PROMPTS), by_hand(pipe, "pad-swap", PROMPTS))
    finally:
        pipe.tokenizer.model_max_length = own


# --- sampling, store and tables


@dataclass(frozen=True)
class Late(Mitigation):
    """Other noise and another embedding for each sample, and a patched model: what later mitigations do."""

    shift: int = 100

    name: ClassVar[str] = "late"
    sampled: ClassVar[bool] = True

    @contextmanager
    def around(self, substrate, batch, cost):
        noise = initial_latents([seed + self.shift for seed in batch.seeds], substrate.latent_shape)
        gains = torch.tensor([1.0 + 0.1 * seed for seed in batch.seeds])[:, None, None]
        cost.evaluations += len(batch.rows)
        substrate.patched = list(batch.embedding.tokens.prompts)
        try:
            yield replace(batch, latents=noise, embedding=batch.embedding.replace(batch.embedding.states * gains))
        finally:
            substrate.patched = None


def test_a_mitigation_may_replace_noise_and_embedding_sample_by_sample(sd1):
    from memlib.sampling.batches import Cost

    embedding, cost = encode_prompts(sd1, PROMPTS), Cost()
    seen = []
    batches = sample_batches(
        sd1, embedding, [0, 3], Recipe(2), batch_size=3, cost=cost, around=Late().around, keep=lambda rows, seeds, step: seen.append(sd1.patched)
    )
    got = {(row, seed): picture for rows, seeds, part in batches for row, seed, picture in zip(rows, seeds, part)}
    scaled = embedding.replace(embedding.states * 1.3)
    [(_, _, expected)] = sample_batches(sd1, scaled, [103], Recipe(2), batch_size=2)
    assert np.abs(got[1, 3].astype(int) - expected[1]).max() <= 1
    assert cost.evaluations == 4 * 2 * 2 + 4 and sd1.patched is None and seen[0] == [PROMPTS[0], PROMPTS[0], PROMPTS[1]]


def test_the_store_tells_such_mitigations_apart(sd1, tmp_path):
    store, embedding = PictureStore(tmp_path), encode_prompts(sd1, PROMPTS)
    plain = store.pictures(sd1, embedding, [0], Recipe(2))
    late = store.pictures(sd1, embedding, [0], Recipe(2), mitigation=Late())
    assert (plain != late).any() and store.made == 4
    assert (store.pictures(sd1, embedding, [0], Recipe(2), mitigation=Late()) == late).all() and store.made == 4
    store.pictures(sd1, embedding, [0], Recipe(2), mitigation=Late(shift=7))
    assert store.made == 6
    with pytest.raises(InputError, match="acts while sampling"):
        memlib.mitigate(sd1.pipe, Late())


def test_a_group_gives_pictures_and_scores_of_a_mitigation(sd1, sd1_tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMLIB_OFFLINE", "1")
    monkeypatch.setenv("MEMLIB_METRICS", str(tmp_path))
    run = Experiment(str(sd1_tiny), n_seeds=2, steps=2, dtype="float32", store=tmp_path / "store")
    group = run.group("figures", 2)
    got = group.pictures(get("pad-swap")).reshape(4, 64, 64, 3)
    own, sd1.pipe.scheduler = sd1.pipe.scheduler, sd1.scheduler("ddim", 2)
    try:
        expected = sd1.pipe(
            prompt_embeds=by_hand(sd1.pipe, "pad-swap", list(group.prompts.prompts)).repeat_interleave(2, 0),
            num_inference_steps=2, latents=initial_latents([0, 1, 0, 1], sd1.latent_shape), output_type="np",
        ).images  # fmt: skip
    finally:
        sd1.pipe.scheduler = own
    assert np.abs(got - 255 * expected).max() <= 1
    assert group.edited(get("pad-swap")).states.allclose(by_hand(sd1.pipe, "pad-swap", list(group.prompts.prompts)), atol=1e-5)
    made = run.store.made
    assert (group.pictures(get("pad-mask", fraction=1.0)) == group.pictures("h")).all()
    assert run.store.made == made + 4  # masking all of the padding is intervention (h): sampled once
    part = group.part(1, 1)
    assert (part.pictures("h") == group.pictures("h")[:1, :1]).all() and run.store.made == made + 4
