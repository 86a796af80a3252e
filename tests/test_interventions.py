"""Interventions on hand-made states: state number p of a prompt is the vector (p, -p)."""

from functools import cache

import pytest
import torch

from memlib.base.errors import InputError
from memlib.models.tokenizer import build_clip_tokenizer
from memlib.prompts.embedding import Embedding, tokenize
from memlib.prompts.interventions import INTERVENTIONS, apply, mask_padding, swap

LENGTHS = (0, 2, 50, 74)


tokenizer = cache(build_clip_tokenizer)


def numbered(lengths):
    tokens = tokenize(tokenizer(), ["word " * length for length in lengths])
    position = torch.arange(77.0).repeat(len(lengths), 1)
    return Embedding(torch.stack([position, -position], dim=-1), tokens)


def expected(key, n):
    """What each of the 77 positions holds afterwards, written out from the definitions."""
    sot, pr, eot, pad = [0], list(range(1, n + 1)), [n + 1], list(range(n + 2, 77))
    cycle = [pad[i % len(pad)] for i in range(n + 1)] if pad else []
    zeros = {"a": eot + pad, "c": pr, "f": eot, "h": pad}
    if key in zeros:
        return [0 if p in zeros[key] else p for p in range(77)]
    return {
        "none": sot + pr + eot + pad,
        "b": sot + eot * n + eot + pad,
        "d": sot + pr + eot + eot * len(pad),
        "e": sot + eot * n + eot + eot * len(pad),
        "g": sot + cycle + pad,
    }[key]


@pytest.mark.parametrize("key", INTERVENTIONS)
def test_every_intervention_by_hand(key):
    embedding = numbered(LENGTHS)
    before = embedding.states.clone()
    edited = apply(key, embedding)
    for row, n in enumerate(LENGTHS):
        values = torch.tensor(expected(key, n), dtype=torch.float32)
        assert torch.equal(edited.states[row], torch.stack([values, -values], dim=-1)), (key, n)
    assert torch.equal(embedding.states, before)
    assert edited.tokens is embedding.tokens
    assert edited.states.data_ptr() != embedding.states.data_ptr()


def test_cyclic_filling_spelled_out():
    # 50 prompt tokens: positions 1..51 get the 25 padding states 52..76 twice, and 52 once more.
    states = apply("g", numbered([50])).states[0, :, 0]
    assert states[1].item() == 52 and states[25].item() == 76
    assert states[26].item() == 52 and states[50].item() == 76 and states[51].item() == 52


@pytest.mark.parametrize("key", [key for key in INTERVENTIONS if key != "g"])
def test_prompt_without_padding(key):
    edited = apply(key, numbered([75])).states[0, :, 0]
    assert edited.tolist() == expected(key, 75)


def test_padding_only_is_undefined_without_padding():
    with pytest.raises(InputError, match=r"needs padding, but prompt 1 \('word word"):
        apply("g", numbered([3, 75]))


def test_keys_and_unknown_key():
    assert list(INTERVENTIONS) == ["none", *"abcdefgh"]
    with pytest.raises(InputError, match="Unknown intervention 'z': use one of none, a"):
        apply("z", numbered([1]))


@pytest.mark.parametrize("which", ["last", "first", "even", "random"])
@pytest.mark.parametrize("fraction", [0, 0.1, 0.7, 1])
def test_masked_share_of_padding(which, fraction):
    embedding = numbered((*LENGTHS, 75))
    generator = torch.Generator().manual_seed(0)
    edited = mask_padding(embedding, fraction, which, generator)
    for row, n in enumerate((*LENGTHS, 75)):
        zeroed = (edited.states[row] == 0).all(-1) & (embedding.states[row] != 0).any(-1)
        assert zeroed.sum().item() == int(fraction * (75 - n) + 0.5)
        assert not zeroed[: n + 2].any()
        assert torch.equal(edited.states[row][~zeroed], embedding.states[row][~zeroed])


def test_which_padding_is_masked():
    embedding = numbered([65])  # ten padding positions, 67 to 76

    def masked(which, fraction):
        states = mask_padding(embedding, fraction, which, torch.Generator().manual_seed(1)).states
        return [p for p in range(1, 77) if states[0, p, 0] == 0]

    assert masked("last", 0.3) == [74, 75, 76]
    assert masked("first", 0.3) == [67, 68, 69]
    assert masked("even", 0.5) == [68, 70, 72, 74, 76]
    assert masked("random", 0.3) == masked("random", 0.3)
    assert masked("last", 0.25) == masked("last", 0.3)  # 2.5 rounds up


def test_full_masking_is_intervention_h():
    embedding = numbered(LENGTHS)
    assert torch.equal(mask_padding(embedding, 1.0).states, apply("h", embedding).states)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((1.1,), "number from 0 to 1"),
        ((70,), "0.7 is 70 %"),
        ((float("nan"),), "number from 0 to 1"),
        ((0.5, "middle"), "Unknown choice of padding 'middle'"),
        ((0.5, "random"), "needs a generator"),
    ],
)
def test_bad_masking_is_named(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        mask_padding(numbered([3]), *arguments)


def exchanged(what, own, other):
    """States [77, 2] of a prompt of `own` tokens after the exchange with one of `other` tokens, numbered from 1000."""
    embedding = numbered([own, other])
    embedding = embedding.replace(embedding.states + torch.tensor([0.0, 1000.0])[:, None, None])
    before = embedding.states.clone()
    result = swap(embedding, [1, 0], what)
    assert torch.equal(embedding.states, before) and result.tokens is embedding.tokens
    return result.states[:, :, 0]


@pytest.mark.parametrize(("own", "other"), [(3, 3), (2, 60), (60, 2), (0, 73), (73, 0)])
def test_exchanges_are_counted_from_eot(own, other):
    start = list(range(own + 1))
    pad = [1000 + other + 2 + i % (75 - other) for i in range(75 - own)]
    plain_pad = list(range(own + 2, 77))
    assert exchanged("eot", own, other)[0].tolist() == [*start, 1000 + other + 1, *plain_pad]
    assert exchanged("pad", own, other)[0].tolist() == [*start, own + 1, *pad]
    assert exchanged("eot+pad", own, other)[0].tolist() == [*start, 1000 + other + 1, *pad]


def test_exchanging_equal_lengths_twice_gives_everything_back():
    embedding = numbered([4, 4, 4])
    embedding = embedding.replace(embedding.states + torch.tensor([0.0, 100.0, 200.0])[:, None, None])
    once = swap(embedding, [1, 2, 0])
    assert not torch.equal(once.states, embedding.states)
    assert torch.equal(swap(once, [2, 0, 1]).states, embedding.states)
    assert torch.equal(swap(embedding, [0, 1, 2]).states, embedding.states)


def test_bad_exchanges_are_named():
    embedding = numbered([3, 75, 75])
    with pytest.raises(InputError, match="Unknown exchange 'prompt': use one of eot, eot\\+pad, pad"):
        swap(embedding, [0, 1, 2], "prompt")
    for partners in ([0, 1], [0, 1, 3], [0, 1, -1]):
        with pytest.raises(InputError, match="do not fit 3 prompts"):
            swap(embedding, partners)
    with pytest.raises(InputError, match="Prompt 1 .* has no padding to exchange"):
        swap(embedding, [1, 0, 2])
    # Two prompts without padding have none to fill either.
    assert torch.equal(swap(embedding, [0, 2, 1], "pad").states, embedding.states)
