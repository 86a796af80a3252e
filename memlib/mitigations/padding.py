"""The mitigations of `clip`, Sections 4.1 and 4.2: another padding token, and padding states set to zero.

Both edit the conditional embedding only; `clip` does not say what it does with the unconditional one. "Masked" means
replaced by a zero vector, as in `memlib.prompts.interventions`. A prompt of 75 tokens has no padding, and nothing of it is changed
but what a mitigation does to `<eot>`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from memlib.base.declared import Share, Whole
from memlib.mitigations.base import Mitigation, prompt_generator, register
from memlib.prompts.embedding import Embedding, Tokens
from memlib.prompts.interventions import mask_padding

UNCHANGED = "nothing: there is no padding"


def _mask_eot(states: Tensor, tokens: Tokens) -> Tensor:
    return states.masked_fill(tokens.eot.to(states.device)[..., None], 0)


@register
@dataclass(frozen=True)
class Unmitigated(Mitigation):
    """Plain sampling, to compare with."""

    name: ClassVar[str] = "none"
    label: ClassVar[str] = "no mitigation"
    summary: ClassVar[str] = "Plain sampling."
    source: ClassVar[str] = "clip"
    reported: ClassVar[tuple[str, ...]] = ("none",)


@register
@dataclass(frozen=True)
class PadSwap(Mitigation):
    """Encode the prompt with `!` (id 0) as the padding token. Source: `clip` Section 4.2, Table 4."""

    name: ClassVar[str] = "pad-swap"
    label: ClassVar[str] = "padding with !"
    summary: ClassVar[str] = "The prompt is encoded with ! as the padding token."
    source: ClassVar[str] = "clip 4.2, Table 4"
    full_prompt: ClassVar[str] = UNCHANGED
    reported: ClassVar[tuple[str, ...]] = ("pad_swap",)
    padding: ClassVar[str | None] = "!"
    needs_padding: ClassVar[bool] = True


@register
@dataclass(frozen=True)
class PadSwapEotMask(Mitigation):
    """Encode with `!` as the padding token, then set the `<eot>` state to zero. Source: `clip` Section 4.2, Table 4."""

    name: ClassVar[str] = "pad-swap-eot-mask"
    label: ClassVar[str] = "padding with !, eot zeroed"
    summary: ClassVar[str] = "The prompt is encoded with ! as the padding token, and the <eot> state is set to zero."
    source: ClassVar[str] = "clip 4.2, Table 4"
    full_prompt: ClassVar[str] = "only the <eot> state is set to zero"
    reported: ClassVar[tuple[str, ...]] = ("pad_swap_mask_eot",)
    padding: ClassVar[str | None] = "!"
    needs_padding: ClassVar[bool] = True

    def edit(self, states: Tensor, tokens: Tokens) -> Tensor:
        return _mask_eot(states, tokens)


@register
@dataclass(frozen=True)
class PadMask(Mitigation):
    """Set a fraction (0 to 1) of the padding states to zero; `which` is "last", "first", "random" or "even".

    `clip` takes 70 % and does not say which positions. "random" draws them for each prompt from its text and `seed`, so that a
    prompt has the same positions in any batch. Source: `clip` Section 4.2, Partial Masking; Table 4.
    """

    fraction: Share = 0.7
    which: Literal["last", "first", "random", "even"] = "last"
    seed: Whole = 0

    name: ClassVar[str] = "pad-mask"
    label: ClassVar[str] = "padding zeroed in part"
    summary: ClassVar[str] = "A part of the padding states (70 %, the last ones) is set to zero."
    source: ClassVar[str] = "clip 4.2, Table 4"
    full_prompt: ClassVar[str] = UNCHANGED
    reported: ClassVar[tuple[str, ...]] = ("mask_pad_70",)
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = ("fraction", (0.4, 0.7, 1.0))
    needs_padding: ClassVar[bool] = True

    def edit(self, states: Tensor, tokens: Tokens) -> Tensor:
        embedding = Embedding(states, tokens)
        if self.which != "random":
            return mask_padding(embedding, self.fraction, self.which).states
        rows = [
            mask_padding(embedding.select([row]), self.fraction, "random", prompt_generator(self.seed, prompt)).states
            for row, prompt in enumerate(tokens.prompts)
        ]
        return torch.cat(rows)


@register
@dataclass(frozen=True)
class SotPad(Mitigation):
    """Encode with `<sot>` as the padding token and mask `<eot>`, as `clip-news` has it (where `clip` says `!`).

    With `mask_eot` False the padding alone is changed, to compare with "pad-swap".
    """

    mask_eot: bool = True

    name: ClassVar[str] = "sot-pad"
    label: ClassVar[str] = "padding with <sot>, eot zeroed"
    summary: ClassVar[str] = "The prompt is encoded with the start token as the padding token, and the <eot> state is set to zero."
    source: ClassVar[str] = "clip-news, Token Replacement"
    full_prompt: ClassVar[str] = "only the <eot> state is set to zero"
    padding: ClassVar[str | None] = "sot"
    needs_padding: ClassVar[bool] = True

    def edit(self, states: Tensor, tokens: Tokens) -> Tensor:
        return _mask_eot(states, tokens) if self.mask_eot else states
