"""What a checkpoint's own files can tell of parts that do not fit ends in one sentence at loading."""

import json
import shutil

import pytest
import torch

from memlib.base.errors import InputError
from memlib.models.devices import device_of
from memlib.models.substrate import load
from memlib.models.tokenizer import build_clip_tokenizer


@pytest.fixture
def copied(sd1_tiny, tmp_path):
    return shutil.copytree(sd1_tiny, tmp_path / "copy")


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def without_merges(folder):
    lines = (folder / "tokenizer" / "merges.txt").read_text().split("\n")
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(lines[:40]))


def cut_vocabulary(folder):
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    kept = {entry: number for entry, number in vocabulary.items() if number < 300 or number >= 49_406}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(kept))


def cut_late_merges(folder):
    """The words of every day are still read as they should be."""
    lines = (folder / "tokenizer" / "merges.txt").read_text().split("\n")
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(lines[:-1001]))


def cut_late_vocabulary(folder):
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({entry: number for entry, number in vocabulary.items() if not 49_000 < number < 49_406}))
    merges = (folder / "tokenizer" / "merges.txt").read_text().split("\n")
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(merge for merge in merges if vocabulary.get(merge.replace(" ", ""), 0) <= 49_000))


def one_file(change):
    """The tokenizer as tokenizer.json alone, as hubs have it, changed."""

    def harm(folder):
        whole = build_clip_tokenizer()
        shutil.rmtree(folder / "tokenizer")
        whole.save_pretrained(folder / "tokenizer")
        for name in ("vocab.json", "merges.txt"):
            (folder / "tokenizer" / name).unlink(missing_ok=True)
        path = folder / "tokenizer" / "tokenizer.json"
        path.write_text(change(path.read_text()))

    return harm


def fewer_entries(text):
    content = json.loads(text)
    model = content["model"]
    model["vocab"] = {entry: number for entry, number in model["vocab"].items() if not 49_000 < number < 49_406}
    model["merges"] = [merge for merge in model["merges"] if "".join(merge) in model["vocab"]]
    return json.dumps(content)


def fewer_merges(text):
    content = json.loads(text)
    content["model"]["merges"] = content["model"]["merges"][:-1000]
    return json.dumps(content)


def other_special_ids(text):
    return text.replace("<|startoftext|>", "<|swapped|>").replace("<|endoftext|>", "<|startoftext|>").replace("<|swapped|>", "<|endoftext|>")


HARM = {
    "steps": (lambda f: edit(f / "scheduler" / "scheduler_config.json", num_train_timesteps=0), "training steps"),
    "prediction": (lambda f: edit(f / "scheduler" / "scheduler_config.json", prediction_type="taste"), "prediction type 'taste'"),
    "betas": (lambda f: edit(f / "scheduler" / "scheduler_config.json", beta_end=-1.0), "beta_end"),
    "scale": (lambda f: edit(f / "vae" / "config.json", scaling_factor=0.0), "scaling factor"),
    "no vocabulary": (lambda f: (f / "tokenizer" / "vocab.json").unlink(), "tokenizer|cannot be loaded"),
    "no merges": (lambda f: (f / "tokenizer" / "merges.txt").unlink(), "tokenizer|cannot be loaded"),
    "neither": (lambda f: [(f / "tokenizer" / name).unlink() for name in ("vocab.json", "merges.txt")], "tokenizer|cannot be loaded"),
    "cut merges": (without_merges, "tokenizer"),
    "cut vocabulary": (cut_vocabulary, "tokenizer|cannot be loaded"),
    "late merges cut": (cut_late_merges, "47,894 merges"),
    "late vocabulary cut": (cut_late_vocabulary, "lacks entries, 405 of 49408"),
    "one file cut off": (one_file(lambda text: text[: len(text) // 2]), "tokenizer|cannot be loaded"),
    "one file with fewer entries": (one_file(fewer_entries), "lacks entries, 405 of 49408"),
    "one file with fewer merges": (one_file(fewer_merges), "47,894 merges"),
    "one file with start and end exchanged": (one_file(other_special_ids), "tokenizer"),
}


@pytest.mark.parametrize("what", HARM)
def test_parts_that_do_not_fit_are_refused_in_one_sentence(copied, what):
    harm, sentence = HARM[what]
    harm(copied)
    with pytest.raises(InputError, match=sentence):
        load(copied, device="cpu", dtype="float32")


def test_a_tokenizer_of_one_file_is_read(copied, sd1_tiny):
    one_file(str)(copied)
    assert sorted(path.name for path in (copied / "tokenizer").iterdir() if path.name != "tokenizer_config.json") == ["tokenizer.json"]
    assert load(copied, device="cpu", dtype="float32").weights_hash == load(sd1_tiny, device="cpu", dtype="float32").weights_hash


def test_a_text_encoder_of_another_width_is_refused(copied, tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModel

    narrow = CLIPTextConfig(vocab_size=49_408, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, projection_dim=16)
    CLIPTextModel(narrow).save_pretrained(copied / "text_encoder")
    with pytest.raises(InputError, match="text encoder of width 16"):
        load(copied, device="cpu", dtype="float32")


def test_another_tokenizer_is_another_model(copied, sd1_tiny):
    """One more token, as an inversion adds it, or two words exchanged: the hash says so; CLIP's own adds nothing to it."""
    plain = load(sd1_tiny, device="cpu", dtype="float32")
    vocabulary = json.loads((copied / "tokenizer" / "vocab.json").read_text())
    vocabulary["zebra</w>"], vocabulary["apple</w>"] = vocabulary["apple</w>"], vocabulary["zebra</w>"]
    (copied / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    assert load(copied, device="cpu", dtype="float32").weights_hash != plain.weights_hash


def test_a_single_file_is_refused_with_the_line_that_converts_it(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"run memlib convert .*model.safetensors model, and give that folder"):
        load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["mps", "meta", "cuda:99", "xpu"])
def test_a_device_that_is_not_there_is_one_sentence(name):
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    with pytest.raises(InputError, match=r"was asked for, but torch"):
        device_of(name)
