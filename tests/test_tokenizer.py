"""The built tokenizer against open_clip's own, and through a pipeline folder and back."""

import pytest
from diffusers import StableDiffusionPipeline
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTokenizer

from memlib.base.errors import InputError
from memlib.models.tokenizer import PAD_TOKENS, VOCABULARY_SIZE, build_clip_tokenizer
from memlib.prompts.embedding import tokenize

TEXTS = [
    "",
    "a cat",
    "The No Limits Business Woman Podcast",
    "Wow!!! 50% off, buy now! (stock photo) #1 @home",
    "it's we're I'll don't 'tis",
    "naïve café — Ångström, straße, ŒUVRE",
    "東京タワー Москва مرحبا हिन्दी 한국어",
    "😀 👩‍👩‍👧 🏳️‍🌈 heart ❤️",
    "tabs\tand\nnew   lines \u3000 spaces ",
    "x" * 300,
    "literal <|endoftext|> and <|startoftext|> and ! inside",
    "under_score mid-dash 3.14159 v2.1 http://example.org/a?b=c",
]


@pytest.fixture(scope="module", params=PAD_TOKENS)
def tokenizer(request):
    return build_clip_tokenizer(request.param)


def test_ids_are_those_of_open_clip(tokenizer):
    reference = SimpleTokenizer()
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        assert ids == reference.encode(text), text


def test_vocabulary_is_that_of_open_clip_but_for_the_names_of_two(tokenizer):
    reference = SimpleTokenizer().encoder
    ours = tokenizer.get_vocab()
    assert len(ours) == len(tokenizer) == VOCABULARY_SIZE
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    assert ours == {renamed.get(entry, entry): index for entry, index in reference.items()}


@pytest.mark.parametrize(("pad", "pad_id"), [("<|endoftext|>", 49407), ("!", 0)])
def test_pipeline_round_trip_keeps_padding(sd1_tiny, tmp_path, pad, pad_id):
    pipe = StableDiffusionPipeline.from_pretrained(sd1_tiny, tokenizer=build_clip_tokenizer(pad), safety_checker=None, requires_safety_checker=False)
    pipe.save_pretrained(tmp_path / "again")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "again").tokenizer
    assert isinstance(again, CLIPTokenizer)
    assert (again.pad_token_id, again.model_max_length) == (pad_id, 77)
    ids = again("a cat!", padding="max_length", truncation=True).input_ids
    assert ids == [49406, 320, 2368, 256, 49407] + [pad_id] * 72


def test_published_tokenizers_turn_literal_specials_into_special_ids():
    ordinary = build_clip_tokenizer("!", split_special_tokens=False)
    assert ordinary("a!", add_special_tokens=False).input_ids == [320, 0]
    assert ordinary("a<|endoftext|>", add_special_tokens=False).input_ids == [320, 49407]


def test_unknown_padding_token_is_refused():
    with pytest.raises(InputError, match="padding token 'pad'"):
        build_clip_tokenizer("pad")


def test_paddings_of_a_small_vocabulary_are_its_own_tokens_or_refused():
    """Id 0 is no exclamation mark where there is none, and the start has another id than CLIP's."""
    entries = {"a</w>": 0, "b</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}
    small = CLIPTokenizer(vocab=entries, merges=[], pad_token="<|endoftext|>", model_max_length=77)
    assert tokenize(small, "a b", "sot").ids[0].tolist() == [2, 0, 1, 3] + [2] * 73
    assert tokenize(small, "a b", "eot").ids[0].tolist() == [2, 0, 1, 3] + [3] * 73
    for padding, sentence in (("!", "of 4 tokens has no '!' to pad with"), (4, "from 0 to 3")):
        with pytest.raises(InputError, match=sentence):
            tokenize(small, "a b", padding)
