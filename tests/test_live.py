"""Whatever changes a loaded model's pictures changes the name that the store keeps them under, or is refused."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from memlib.base.errors import InputError
from memlib.experiment.group import Group
from memlib.experiment.settings import Settings
from memlib.metrics import MetricSet
from memlib.mitigations import get
from memlib.mitigations.weights.wanda import base_norms
from memlib.mitigations.weights.weight_sets import WeightSet, pruned
from memlib.models.speed import Speed, TextCache
from memlib.models.substrate import load
from memlib.probes.detectors.runs import magnitudes, whole_run
from memlib.prompts.embedding import encode_prompts
from memlib.prompts.sets import PromptSet
from memlib.sampling import calibration
from memlib.sampling.attention.record import record
from memlib.sampling.batches import sample
from memlib.sampling.calibration import reference_values
from memlib.sampling.first_step import first_magnitudes
from memlib.sampling.recipe import Recipe
from memlib.sampling.rules import StaticTransition
from memlib.sampling.stored import PictureStore


@pytest.fixture(scope="module")
def loaded(sd1_tiny):
    return load(str(sd1_tiny), device="cpu", dtype="float32")


@pytest.fixture
def tiny(loaded):
    """A copy of its own for each test, as loaded."""
    fresh = copy.copy(loaded)
    fresh.pipe = copy.copy(loaded.pipe)
    for part in ("unet", "vae", "text_encoder"):
        setattr(fresh.pipe, part, copy.deepcopy(getattr(loaded.pipe, part)))
    fresh.state = None
    fresh.__post_init__()
    return fresh


def first_matrix(unet):
    return next((name, weight) for name, weight in unet.named_parameters() if "attn2.to_k" in name)


def write(unet):
    with torch.no_grad():
        first_matrix(unet)[1].add_(0.5)


def write_past_torch(unet):
    first_matrix(unet)[1].data += 0.5


def exchange(unet):
    weight = first_matrix(unet)[1]
    weight.data = weight.data + 0.5


CHANGES = {
    "a weight written to": lambda s: write(s.unet),
    "a weight written to past torch's count, as fused LoRAs are": lambda s: write_past_torch(s.unet),
    "a weight exchanged": lambda s: exchange(s.unet),
    "another U-Net": lambda s: setattr(s.pipe, "unet", type(s.unet)(**s.unet.config)),
    "FreeU": lambda s: s.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6),
    "tiles of the VAE": lambda s: s.vae.enable_tiling(),
    "the VAE's scale": lambda s: s.vae.register_to_config(scaling_factor=0.2),
    "training mode": lambda s: s.unet.train(),
    "half the precision": lambda s: s.unet.to(torch.float16),
    "the text encoder": lambda s: write_past_torch_text(s.text_encoder),
}


def write_past_torch_text(text):
    text.get_input_embeddings().weight.data[5:] *= 2


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_after_loading_changes_the_name(loaded, tiny, what):
    assert tiny.weights_hash == loaded.weights_hash == loaded.loaded_hash
    CHANGES[what](tiny)
    assert tiny.weights_hash != loaded.weights_hash
    assert tiny.weights_hash == tiny.weights_hash


def test_a_change_taken_back_is_none_and_layout_is_none(loaded, tiny):
    weight = first_matrix(tiny.unet)[1]
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(2)
        assert tiny.weights_hash != loaded.weights_hash
        weight.copy_(before)
    assert tiny.weights_hash == loaded.weights_hash
    tiny.unet.to(memory_format=torch.channels_last)
    assert tiny.weights_hash == loaded.weights_hash


def test_the_store_makes_pictures_of_the_changed_model(tiny, tmp_path):
    embedding, store = encode_prompts(tiny, ["a cat"]), PictureStore(tmp_path)
    plain = store.pictures(tiny, embedding, [0], Recipe(2))
    tiny.unet.conv_in.weight.data *= 1.5
    changed = store.pictures(tiny, embedding, [0], Recipe(2))
    assert store.made == 2 and not np.array_equal(changed, plain)
    assert np.array_equal(changed, sample(tiny, embedding, [0], Recipe(2)))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.unet.mid_block.register_forward_hook(lambda module, arguments, output: output * 2),
        lambda s: s.unet.set_attn_processor(AttnProcessor()),
        lambda s: setattr(s.vae, "forward", lambda *_: None),
    ],
)
def test_what_has_no_name_is_refused_by_the_store(tiny, tmp_path, change):
    embedding, store = encode_prompts(tiny, ["a cat"]), PictureStore(tmp_path)
    change(tiny)
    with pytest.raises(InputError, match="was changed after it was loaded"):
        store.pictures(tiny, embedding, [0], Recipe(2))


def test_what_transformers_puts_on_its_layers_to_note_outputs_changes_nothing(tiny, tmp_path):
    before = PictureStore(tmp_path / "before").pictures(tiny, encode_prompts(tiny, ["a cat"]), [0], Recipe(2))
    tiny.text_encoder(torch.tensor([[49406, 320, 49407]]), output_hidden_states=True)
    assert any(module._forward_hooks for module in tiny.text_encoder.modules())  # or this test shows nothing
    store = PictureStore(tmp_path / "after")
    assert np.array_equal(store.pictures(tiny, encode_prompts(tiny, ["a cat"]), [0], Recipe(2)), before)


def test_a_few_values_written_past_torch_are_seen(loaded, tiny):
    tiny.text_encoder.get_input_embeddings().weight.data[30_001, 5] = 0  # one value of 49,408 rows
    assert tiny.weights_hash != loaded.weights_hash


def a_group(substrate, folder):
    prompts = PromptSet("one", ("a cat",), pd.DataFrame({"prompt": ["a cat"]}), "typed", "none")
    return Group(Settings(substrate, PictureStore(folder), MetricSet({}), (0,), steps=2), prompts, "one")


KEYED = {
    "a score of a detector": lambda group: magnitudes(group, 1),
    "a whole run, which keeps pictures as well": whole_run,
    "a calibration": lambda group: reference_values(group.experiment.substrate, "first magnitude", first_magnitudes, store=group.experiment.store, count=1),
    "pictures held in memory": lambda group: group.pictures(),
    "neurons to block": lambda group: get("nemo").for_prompts(group.experiment.substrate, group.embedding.tokens),
    "weights to prune": lambda group: get("wanda").for_prompts(group.experiment.substrate, group.embedding.tokens),
    "norms to compare with": lambda group: base_norms(group.experiment.substrate, "empty", group.experiment.store),
}


@pytest.mark.parametrize("what", KEYED)
def test_nothing_that_a_model_with_hooks_makes_is_kept(tiny, tmp_path, what, monkeypatch):
    monkeypatch.setattr(calibration, "reference_prompts", lambda substrate: ("a dog",))
    group = a_group(tiny, tmp_path)
    group.pictures()
    kept = sorted(tmp_path.rglob("*.*"))
    tiny.unet.mid_block.register_forward_hook(lambda module, arguments, output: output * 2)
    with pytest.raises(InputError, match="was changed after it was loaded"):
        KEYED[what](group)
    assert sorted(tmp_path.rglob("*.*")) == kept


def test_what_a_group_holds_in_memory_is_that_of_the_model_as_it_is(tiny, tmp_path):
    group = a_group(tiny, tmp_path)
    before, states = group.pictures(), group.embedding.states
    write_past_torch_text(tiny.text_encoder)
    write_past_torch(tiny.unet)
    assert not np.array_equal(group.pictures(), before) and not torch.equal(group.embedding.states, states)
    assert np.array_equal(group.pictures(), sample(tiny, encode_prompts(tiny, ["a cat"]), [0], Recipe(2)))


def test_pictures_that_are_not_kept_are_made_with_hooks_as_well(tiny):
    """Also where their beginning, without guidance, would be shared with others of this model."""
    tiny.speed = Speed(skip_unused=True, shared_prefix=True)
    tiny.vae.decoder.register_forward_hook(lambda module, arguments, output: output * 0)
    pictures = sample(tiny, encode_prompts(tiny, ["a cat"]), [0], Recipe(2, StaticTransition(7.5, step=1)))
    assert np.ptp(pictures) <= 1


def without_one_weight(substrate):
    return pruned(substrate, WeightSet({first_matrix(substrate.unet)[0].removesuffix(".weight"): [0]}))


@pytest.mark.parametrize("within", [lambda s: record(s, steps=1), lambda s: TextCache(s.unet).used(), without_one_weight])
def test_what_another_thread_does_with_the_model_meanwhile_is_no_change(tiny, within):
    with ThreadPoolExecutor(1) as other:
        context = within(tiny)
        other.submit(context.__enter__).result()
        assert tiny.weights_hash == tiny.loaded_hash
        other.submit(context.__exit__, None, None, None).result()
