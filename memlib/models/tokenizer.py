"""The CLIP byte-pair tokenizer, built from the merge list that ships inside open_clip.

Stable Diffusion 1.x and 2.x share one vocabulary of 49,408 entries and differ in the padding
token. Nothing has to be downloaded to make either tokenizer.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

from transformers import CLIPTokenizer

from memlib.base.errors import InputError

START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"
CONTEXT_LENGTH = 77
VOCABULARY_SIZE = 49_408
PAD_TOKENS = (END_TOKEN, "!")

MERGE_FILE = "bpe_simple_vocab_16e6.txt.gz"
MERGE_COUNT = VOCABULARY_SIZE - 2 * 256 - 2


def _byte_symbols() -> list[str]:
    """One printable character for each of the 256 byte values, in the vocabulary's order.

    Byte-level BPE writes bytes as characters. Bytes that are printable in Latin-1 stand for
    themselves and come first; the others follow and borrow characters from 256 upwards.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    borrowed = range(256, 256 + 256 - len(printable))
    return [chr(code) for code in (*printable, *borrowed)]


def _merge_file() -> Path:
    # The specification is looked up instead of imported: importing open_clip costs seconds.
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        raise InputError("The CLIP vocabulary ships inside open_clip, which is not installed: install the packages of requirements.txt.")
    return Path(package.origin).parent / MERGE_FILE


def read_merges() -> list[tuple[str, ...]]:
    """Return the 48,894 byte-pair merges of CLIP's vocabulary, most frequent first.

    Raises InputError if open_clip is missing. Source: Radford et al. 2021, as packaged by open_clip.
    """
    with gzip.open(_merge_file(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    # The first line is a version header; the file goes on past the merges that CLIP uses.
    return [tuple(line.split()) for line in lines[1 : 1 + MERGE_COUNT]]


def build_clip_tokenizer(pad_token: str = END_TOKEN, split_special_tokens: bool = True) -> CLIPTokenizer:
    """Return a CLIP tokenizer with 49,408 entries, 77 positions and the padding token asked for.

    `pad_token` is ``"<|endoftext|>"`` (id 49407, Stable Diffusion 1.x) or ``"!"`` (id 0, Stable
    Diffusion 2.x). With `split_special_tokens` a prompt has the same ids under both paddings, and
    they are open_clip's: a literal ``!`` or ``<|endoftext|>`` in a text is ordinary text. Without
    it the tokenizer does what the published Stable Diffusion folders do under transformers: a
    literal ``<|endoftext|>`` becomes id 49407, and with ``!`` padding a literal ``!`` becomes id 0.
    Raises InputError for another padding token.
    """
    if pad_token not in PAD_TOKENS:
        raise InputError(f"Unknown padding token {pad_token!r}: use one of {', '.join(map(repr, PAD_TOKENS))}.")
    merges = read_merges()
    symbols = _byte_symbols()
    entries = [
        *symbols,
        *(symbol + "</w>" for symbol in symbols),
        *("".join(pair) for pair in merges),
        START_TOKEN,
        END_TOKEN,
    ]
    return CLIPTokenizer(
        vocab={entry: index for index, entry in enumerate(entries)},
        merges=merges,
        pad_token=pad_token,
        model_max_length=CONTEXT_LENGTH,
        split_special_tokens=split_special_tokens,
    )
