"""Whatever changes a loaded model's pictures changes the name that the store keeps them under, or is refused."""

import copy

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from memlib.base.errors import InputError
from memlib.models.substrate import load
from memlib.prompts.embedding import encode_prompts
from memlib.sampling.batches import sample
from memlib.sampling.recipe import Recipe
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
