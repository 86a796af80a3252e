"""Prompts as tokens and as text-encoder states, with the spans that the interventions edit.

A text encoder of Stable Diffusion reads 77 tokens. They fall into four spans: one start token
(`sot`), the prompt's own tokens (`pr`), one end token (`eot`) and the padding (`pad`) that fills the
rest. The spans come from the length of the unpadded tokenization, never from a search for ids: a
prompt may itself contain a token that has the id of `eot` or of the padding (Stable Diffusion 1.x
turns a literal ``<|endoftext|>`` into id 49407, 2.x turns a literal ``!`` into id 0). Such a token
belongs to the prompt span, and the `eot` span is the one that the tokenizer put behind the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor

from memlib.base.errors import InputError
from memlib.base.numbers import is_whole

CONTEXT_LENGTH = 77
MAX_PROMPT_TOKENS = CONTEXT_LENGTH - 2
# Paddings by name, with their ids in the vocabulary that all Stable Diffusion 1.x and 2.x share; another vocabulary has others (`padding_id`).
PADDINGS = {"eot": 49_407, "!": 0, "sot": 49_406}


@dataclass(frozen=True)
class Tokens:
    """Token ids of N prompts and the four spans of each.

    `ids` is [N, 77]; `lengths` [N] counts the prompt tokens that were kept (0 to 75); `truncated` [N]
    says which prompts were longer; `pad_id` is the id that fills the padding; `encoder` counts the text encoders of a
    model with several, so that what is drawn for each is drawn apart. The properties `sot`, `pr`, `eot` and `pad` are
    disjoint boolean masks [N, 77] that together cover every position.
    """

    ids: Tensor
    prompts: tuple[str, ...]
    lengths: Tensor
    truncated: Tensor
    pad_id: int
    encoder: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    def _offset_from_eot(self) -> Tensor:
        return torch.arange(CONTEXT_LENGTH) - (self.lengths[:, None] + 1)

    @property
    def sot(self) -> Tensor:
        mask = torch.zeros(len(self), CONTEXT_LENGTH, dtype=torch.bool)
        mask[:, 0] = True
        return mask

    @property
    def pr(self) -> Tensor:
        return (self._offset_from_eot() < 0) & ~self.sot

    @property
    def eot(self) -> Tensor:
        return self._offset_from_eot() == 0

    @property
    def pad(self) -> Tensor:
        return self._offset_from_eot() > 0

    def repad(self, padding: str | int, tokenizer: Any = None) -> Tokens:
        """Return the same prompts with another padding token (see `tokenize` for `padding`)."""
        pad_id = padding_id(padding, tokenizer)
        return replace(self, ids=self.ids.masked_fill(self.pad, pad_id), pad_id=pad_id)

    def select(self, rows: Any) -> Tokens:
        """Return the rows given as an index, a slice, a list of indices or a boolean mask."""
        index = _row_index(rows, len(self))
        return replace(
            self,
            ids=self.ids[index],
            prompts=tuple(self.prompts[i] for i in index.tolist()),
            lengths=self.lengths[index],
            truncated=self.truncated[index],
        )


@dataclass(frozen=True)
class Embedding:
    """Text-encoder states [N, 77, d] of N prompts (float32, CPU) with the tokens they belong to."""

    states: Tensor
    tokens: Tokens

    def __post_init__(self) -> None:
        if self.states.ndim != 3 or tuple(self.states.shape[:2]) != (len(self.tokens), CONTEXT_LENGTH):
            raise InputError(
                f"States of shape {tuple(self.states.shape)} do not fit {len(self.tokens)} prompts: they must be [{len(self.tokens)}, {CONTEXT_LENGTH}, width]."
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def replace(self, states: Tensor) -> Embedding:
        """Return the same prompts with other states [N, 77, d]."""
        return Embedding(states, self.tokens)

    def select(self, rows: Any) -> Embedding:
        """Return the rows given as an index, a slice, a list of indices or a boolean mask."""
        index = _row_index(rows, len(self))
        return Embedding(self.states[index], self.tokens.select(index))


def tokenize(tokenizer: Any, prompts: Sequence[str] | str, padding: str | int | None = None) -> Tokens:
    """Tokenize prompts to 77 ids each and say which position belongs to which span.

    `padding` is None (the tokenizer's own padding token), "eot", "!", "sot" or a token id. Prompts of
    more than 75 tokens are cut, and the name of a textual inversion of several vectors stands for all of them, as
    `StableDiffusionPipeline` does. Raises InputError for no prompts, a prompt that is not text, or an unknown padding.
    Source: `clip` Section 2.2.
    """
    prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    if not prompts:
        raise InputError("There are no prompts to tokenize: give at least one (it may be empty text).")
    for position, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise InputError(f"Prompt {position} is {type(prompt).__name__}, not text: give strings only.")
    pad_id = tokenizer.pad_token_id if padding is None else padding_id(padding, tokenizer)

    # verbose=False: the tokenizer would warn about long prompts, which `truncated` reports already.
    unpadded = tokenizer(_all_vectors(prompts, tokenizer), add_special_tokens=False, truncation=False, verbose=False)
    lengths, truncated = [], []
    ids = torch.full((len(prompts), CONTEXT_LENGTH), pad_id, dtype=torch.long)
    for row, text_ids in enumerate(unpadded["input_ids"]):
        kept = text_ids[:MAX_PROMPT_TOKENS]
        lengths.append(len(kept))
        truncated.append(len(text_ids) > MAX_PROMPT_TOKENS)
        sequence = [tokenizer.bos_token_id, *kept, tokenizer.eos_token_id]
        ids[row, : len(sequence)] = torch.tensor(sequence)
    return Tokens(ids, prompts, torch.tensor(lengths), torch.tensor(truncated), pad_id)


@torch.no_grad()
def encode(encoder: Any, tokens: Tokens, batch_size: int = 64) -> Embedding:
    """Encode tokens to the states that condition the U-Net, without gradients.

    `encoder` is a substrate or a `CLIPTextModel`. The states equal those of
    `StableDiffusionPipeline.encode_prompt` for the same ids (the shortened encoder of v2.1 and the
    text encoder's `use_attention_mask` included). They come back as float32 on the CPU, which is exact
    for half-precision encoders too. Source: `clip` Section 2.2.
    """
    text_encoder = getattr(encoder, "text_encoder", encoder)
    device = next(text_encoder.parameters()).device
    masked = getattr(text_encoder.config, "use_attention_mask", False)
    attention = (~tokens.pad).long() if masked else None
    states = []
    for start in range(0, len(tokens), batch_size):
        rows = slice(start, start + batch_size)
        output = text_encoder(
            tokens.ids[rows].to(device),
            attention_mask=None if attention is None else attention[rows].to(device),
        )
        states.append(output[0].float().cpu())
    return Embedding(torch.cat(states), tokens)


def encode_prompts(substrate: Any, prompts: Sequence[str] | str, padding: str | int | None = None) -> Embedding:
    """Tokenize and encode prompts with a substrate; see `tokenize` and `encode`."""
    return encode(substrate, tokenize(substrate.tokenizer, prompts, padding))


def tokens_of_ids(ids: Tensor, tokenizer: Any, prompts: Sequence[str] | None = None) -> Tokens:
    """Return the spans of ids [N, 77] that were encoded already, for states whose text was parsed by something else (weights, for instance).

    A prompt ends at the first end token behind which one and the same token fills the rest; a literal end token as a prompt's last word
    counts as that one where the padding is the end token. `prompts` are texts to name them by. Raises InputError for ids of another shape or
    a row without such an end.
    """
    if ids.ndim != 2 or ids.shape[1] != CONTEXT_LENGTH or ids.dtype != torch.long:
        raise InputError(f"Ids of shape {tuple(ids.shape)} and type {ids.dtype} are not those of prompts: give whole numbers [N, {CONTEXT_LENGTH}].")
    ids, ends = ids.cpu(), []
    for row, sequence in enumerate(ids.tolist()):
        found = [at for at, token in enumerate(sequence) if at and token == tokenizer.eos_token_id and len(set(sequence[at + 1 :])) < 2]
        if not found or sequence[0] != tokenizer.bos_token_id:
            raise InputError(f"The ids of prompt {row} do not run from a start token to an end token and padding: give the ids that were encoded.")
        ends.append(found[0])
    padded = [row[-1] for row, end in zip(ids.tolist(), ends, strict=True) if end < CONTEXT_LENGTH - 1]
    lengths = torch.tensor(ends) - 1
    names = tuple(prompts) if prompts is not None else tuple(tokenizer.batch_decode(ids, skip_special_tokens=True))
    return Tokens(ids, names, lengths, torch.zeros(len(ids), dtype=torch.bool), padded[0] if padded else tokenizer.pad_token_id)


def _all_vectors(prompts: Sequence[str], tokenizer: Any) -> list[str]:
    """The texts with each name of a textual inversion of K vectors replaced by the K tokens that hold them."""
    added = getattr(tokenizer, "added_tokens_encoder", {})
    if not any(f"{name}_1" in added for name in added):
        return list(prompts)
    return TextualInversionLoaderMixin().maybe_convert_prompt(list(prompts), tokenizer)


def padding_id(padding: str | int, tokenizer: Any = None) -> int:
    """Return the id of a padding token: "eot", "!" and "sot" as `tokenizer` numbers them (CLIP's vocabulary by default), or a token id itself.

    Raises InputError for another name or number, and for a vocabulary that lacks the token.
    """
    if isinstance(padding, str):
        if padding not in PADDINGS:
            raise InputError(f"Unknown padding {padding!r}: use one of {', '.join(map(repr, PADDINGS))}, or a token id.")
        if tokenizer is None:
            return PADDINGS[padding]
        found = {"eot": tokenizer.eos_token_id, "sot": tokenizer.bos_token_id, "!": tokenizer.convert_tokens_to_ids("!")}[padding]
        # A vocabulary without `!` gives the id of its unknown token.
        if found is None or (padding == "!" and tokenizer.convert_ids_to_tokens(found) != "!"):
            raise InputError(f"This model's vocabulary of {len(tokenizer)} tokens has no {padding!r} to pad with: use another padding, or a token id.")
        return found
    size = 49_408 if tokenizer is None else len(tokenizer)
    if not is_whole(padding) or padding >= size:
        raise InputError(f"Padding id {padding!r} is not a token: use a whole number from 0 to {size - 1}.")
    return padding


def _row_index(rows: Any, count: int) -> Tensor:
    if not isinstance(rows, (int, slice)):
        rows = torch.as_tensor(rows)
        rows = rows if rows.dtype == torch.bool else rows.long()  # An empty list would come as floats.
    return torch.arange(count)[rows].reshape(-1)
