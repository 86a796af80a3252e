"""Spans by hand-counted prompts; encodings against diffusers' own `encode_prompt`."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memlib.base.errors import InputError
from memlib.mitigations import get
from memlib.models.substrate import load
from memlib.models.tokenizer import build_clip_tokenizer
from memlib.prompts.embedding import PADDINGS, Embedding, encode, encode_prompts, tokenize, tokens_of_ids

# (prompt, prompt tokens kept, truncated): "word" and "cat" are one token each in CLIP's vocabulary.
COUNTED = [
    ("", 0, False),
    ("cat", 1, False),
    ("a cat !", 3, False),
    ("cat <|endoftext|> cat", 3, False),
    ("word " * 74, 74, False),
    ("word " * 75, 75, False),
    ("word " * 76, 75, True),
    ("word " * 500, 75, True),
]


@pytest.fixture(scope="module", params=["sd1_tiny", "sd2_tiny"])
def substrate(request):
    return load(request.getfixturevalue(request.param), device="cpu", dtype="float32")


def test_spans_of_counted_prompts(substrate):
    prompts, lengths, truncated = zip(*COUNTED)
    tokens = tokenize(substrate.tokenizer, prompts)
    assert tokens.lengths.tolist() == list(lengths)
    assert tokens.truncated.tolist() == list(truncated)
    for row, length in enumerate(lengths):
        expected = ["sot"] + ["pr"] * length + ["eot"] + ["pad"] * (75 - length)
        for name in ("sot", "pr", "eot", "pad"):
            assert getattr(tokens, name)[row].tolist() == [span == name for span in expected]


def test_ids_are_the_pipelines_own(substrate):
    prompts = [prompt for prompt, _, _ in COUNTED]
    reference = substrate.tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(tokenize(substrate.tokenizer, prompts).ids, reference)


def test_literal_special_tokens_belong_to_the_prompt(sd1_tiny, sd2_tiny):
    for folder, text, special in ((sd1_tiny, "a <|endoftext|> cat", 49407), (sd2_tiny, "a ! cat", 0)):
        tokens = tokenize(load(folder, device="cpu", dtype="float32").tokenizer, [text])
        assert tokens.ids[0, :5].tolist() == [49406, 320, special, 2368, 49407]
        assert tokens.pr[0].nonzero().flatten().tolist() == [1, 2, 3]
        assert tokens.eot[0].nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize(("padding", "pad_id"), [*PADDINGS.items(), (320, 320)])
def test_padding_changes_padding_only(substrate, padding, pad_id):
    own = tokenize(substrate.tokenizer, ["a cat", "", "word " * 80])
    other = tokenize(substrate.tokenizer, ["a cat", "", "word " * 80], padding)
    assert other.pad_id == pad_id
    assert (other.ids[other.pad] == pad_id).all()
    assert torch.equal(other.ids[~other.pad], own.ids[~own.pad])
    assert torch.equal(own.repad(padding).ids, other.ids)


def test_states_equal_encode_prompt(substrate):
    prompts = ["a cat on a red chair", "", "word " * 90, "a ! <|endoftext|> b"]
    reference, negative = substrate.pipe.encode_prompt(prompts, torch.device("cpu"), 1, True)
    states = encode_prompts(substrate, prompts).states
    torch.testing.assert_close(states, reference, rtol=0, atol=1e-6)
    torch.testing.assert_close(encode_prompts(substrate, [""]).states, negative[:1], rtol=0, atol=1e-6)


def test_states_honour_the_attention_mask_switch(substrate):
    config = substrate.text_encoder.config
    plain = encode_prompts(substrate, ["a cat"]).states
    config.use_attention_mask = True
    try:
        reference = substrate.pipe.encode_prompt(["a cat"], torch.device("cpu"), 1, False)[0]
        masked = encode_prompts(substrate, ["a cat"]).states
    finally:
        del config.use_attention_mask
    torch.testing.assert_close(masked, reference, rtol=0, atol=1e-6)
    assert not torch.allclose(masked, plain, atol=1e-3)


def test_padding_cannot_reach_back(substrate):
    # The text encoder is causal: everything up to eot is the same under any padding.
    tokens = tokenize(substrate.tokenizer, ["a cat on a chair"], "eot")
    one, other = encode(substrate, tokens), encode(substrate.text_encoder, tokens.repad("!"))
    until_eot = ~tokens.pad[0]
    torch.testing.assert_close(one.states[0, until_eot], other.states[0, until_eot], rtol=0, atol=1e-6)
    assert (one.states[0, ~until_eot] - other.states[0, ~until_eot]).abs().max() > 0.01


def test_encoding_does_not_depend_on_the_batch(substrate):
    tokens = tokenize(substrate.tokenizer, ["a cat", "two dogs", "", "word " * 80])
    whole, halves = encode(substrate, tokens), encode(substrate, tokens, batch_size=3)
    torch.testing.assert_close(whole.states, halves.states, rtol=0, atol=1e-6)
    assert not whole.states.requires_grad and whole.states.dtype == torch.float32


def test_select_keeps_rows_together(substrate):
    embedding = encode_prompts(substrate, ["a", "b c", "d e f"])
    for rows in ([2, 0], torch.tensor([2, 0])):
        part = embedding.select(rows)
        assert part.tokens.prompts == ("d e f", "a") and part.tokens.lengths.tolist() == [3, 1]
        assert torch.equal(part.states, embedding.states[[2, 0]])
    assert embedding.select([False, True, False]).tokens.prompts == ("b c",)
    assert embedding.select(slice(1, None)).tokens.prompts == ("b c", "d e f")
    assert embedding.select(1).states.shape == embedding.states[1:2].shape


@pytest.fixture(scope="module")
def inverted(sd1_tiny, tmp_path_factory):
    """A folder saved with a textual inversion of three vectors, as `load_textual_inversion` leaves it."""
    pipe = StableDiffusionPipeline.from_pretrained(sd1_tiny)
    pipe.tokenizer.add_tokens(["<toy>", "<toy>_1", "<toy>_2"])
    torch.manual_seed(0)
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    folder = tmp_path_factory.mktemp("inverted")
    pipe.save_pretrained(folder)
    return folder


def test_all_vectors_of_a_textual_inversion_are_read(inverted):
    substrate = load(inverted, device="cpu", dtype="float32")
    prompts = ["a <toy> on a chair", "a cat", "<toy> and <toy>"]
    reference = substrate.pipe.encode_prompt(prompts, torch.device("cpu"), 1, False)[0]
    embedding = encode_prompts(substrate, prompts)
    torch.testing.assert_close(embedding.states, reference, rtol=0, atol=1e-6)
    assert embedding.tokens.lengths.tolist() == [7, 2, 7] and embedding.tokens.prompts == tuple(prompts)


class Small:
    """A tokenizer of another vocabulary: start 1, end 2, ten words, and no exclamation mark."""

    bos_token_id, eos_token_id, pad_token_id, unk_token_id = 1, 2, 0, 3
    vocab_size = 14

    def __init__(self, bang=None):
        self.bang = bang

    def __len__(self):
        return 14

    def __call__(self, texts, **options):
        return {"input_ids": [[4 + len(word) for word in text.split()] for text in texts]}

    def convert_tokens_to_ids(self, token):
        return self.unk_token_id if self.bang is None else self.bang

    def convert_ids_to_tokens(self, number):
        return "!" if number == self.bang else "<unk>"


def test_paddings_are_numbered_by_the_tokenizer():
    tokens = tokenize(Small(), ["a cat"], "sot")
    assert tokens.pad_id == 1 and tokens.ids[0, :5].tolist() == [1, 5, 7, 2, 1]
    assert tokens.repad("eot", Small()).pad_id == 2 and tokenize(Small(bang=9), ["a"], "!").pad_id == 9
    with pytest.raises(InputError, match="14 tokens has no '!'"):
        tokens.repad("!", Small())


def test_random_tokens_are_of_the_vocabulary():
    class Decoding(Small):
        def decode(self, ids):
            assert max(ids) < len(self)
            return f"word{ids[0]}"

    texts = {get("random-token").with_params(seed=seed).rewrite("a cat", Decoding()) for seed in range(20)}
    assert len(texts) > 10


def test_spans_of_ids_that_were_encoded_already(substrate):
    prompts = ["a cat on a chair", "", "word " * 75, "a cat !"]
    for padding in ("eot", "!"):
        tokens = tokenize(substrate.tokenizer, prompts, padding)
        again = tokens_of_ids(tokens.ids, substrate.tokenizer, prompts)
        assert torch.equal(again.lengths, tokens.lengths) and again.pad_id == tokens.pad_id and again.prompts == tokens.prompts
    for wrong in (tokens.ids[:, :70], torch.zeros(1, 77, dtype=torch.long), tokens.ids.float()):
        with pytest.raises(InputError, match="[Ii]ds"):
            tokens_of_ids(wrong, substrate.tokenizer)


def test_saved_tokenizer_agrees_across_paddings():
    prompt = ["wow! ! <|endoftext|>"]
    eot, bang = (tokenize(build_clip_tokenizer(pad), prompt) for pad in ("<|endoftext|>", "!"))
    assert torch.equal(eot.ids[~eot.pad], bang.ids[~bang.pad])
    assert torch.equal(eot.repad("!").ids, bang.ids)


@pytest.mark.parametrize(
    ("prompts", "padding", "sentence"),
    [
        ([], None, "no prompts"),
        (["a", 3], None, "Prompt 1 is int"),
        (["a"], "zero", "Unknown padding 'zero'"),
        (["a"], 49_408, "from 0 to 49407"),
        (["a"], True, "Padding id True"),
    ],
)
def test_bad_input_is_named(substrate, prompts, padding, sentence):
    with pytest.raises(InputError, match=sentence):
        tokenize(substrate.tokenizer, prompts, padding)


def test_states_of_another_shape_are_refused(substrate):
    embedding = encode_prompts(substrate, ["a", "b"])
    with pytest.raises(InputError, match="do not fit 2 prompts"):
        Embedding(embedding.states[:1], embedding.tokens)


def test_pipeline_class_reads_the_tiny_folder(sd2_tiny):
    pipe = StableDiffusionPipeline.from_pretrained(sd2_tiny, safety_checker=None)
    assert pipe.tokenizer.pad_token_id == 0 and pipe.scheduler.config.prediction_type == "v_prediction"
