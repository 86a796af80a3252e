"""The embedding interventions of `clip`, Sections 3.1 and 3.2, and partial masking of the padding.

Each is a pure function on the states of a prompt; the unconditional embedding is never edited here.
"Masked" means replaced by a zero vector. That is not the same as removing a position from attention:
a zero state has a zero key and a zero value and still takes its share of the softmax.
The start state is left alone by every intervention.

Where lengths differ, the text leaves the filling open. The rule taken: in (b), (d) and (e) every
position to fill gets a copy of the one `eot` state; in (g) the positions of prompt and `eot`, from left
to right, get the padding states from left to right, starting again at the first one if the padding is
shorter. A prompt of 75 tokens has no padding: (d) and (h) leave it as it is, (g) is undefined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memlib.base.errors import InputError
from memlib.prompts.embedding import Embedding, Tokens

Edit = Callable[[Tensor, Tokens], Tensor]


@dataclass(frozen=True)
class Intervention:
    """A named edit of states [N, 77, d]; `edit` returns new states and leaves its input unchanged."""

    key: str
    label: str
    summary: str
    source: str
    edit: Edit


def _zero(mask: Tensor, states: Tensor) -> Tensor:
    return states.masked_fill(mask.to(states.device)[..., None], 0)


def _fill_with_eot(mask: Tensor, states: Tensor, tokens: Tokens) -> Tensor:
    eot = states[torch.arange(len(tokens)), (tokens.lengths + 1).to(states.device)]
    return torch.where(mask.to(states.device)[..., None], eot[:, None], states)


def _fill_with_pad(states: Tensor, tokens: Tokens) -> Tensor:
    edited = states.clone()
    for row, length in enumerate(tokens.lengths.tolist()):
        first_pad = length + 2
        padding = states[row, first_pad:]
        if len(padding) == 0:
            raise InputError(
                f"Intervention (g) needs padding, but prompt {row} ({_shorten(tokens.prompts[row])!r}) fills all 75 positions: leave it out or shorten it."
            )
        targets = torch.arange(1, first_pad)
        edited[row, targets] = padding[(targets - 1) % len(padding)]
    return edited


def _shorten(prompt: str, limit: int = 60) -> str:
    return prompt if len(prompt) <= limit else prompt[: limit - 1] + "…"


INTERVENTIONS: dict[str, Intervention] = {
    item.key: item
    for item in (
        Intervention("none", "original", "The embedding as the text encoder gives it.", "clip",
                     lambda states, tokens: states.clone()),
        Intervention("a", "prompt states alone", "Only the prompt states are kept; end and padding states are masked.", "clip 3.1 (a), Table 2",
                     lambda states, tokens: _zero(tokens.eot | tokens.pad, states)),
        Intervention("b", "prompt states ← eot", "Every prompt state is replaced by the end state.", "clip 3.1 (b), Table 2",
                     lambda states, tokens: _fill_with_eot(tokens.pr, states, tokens)),
        Intervention("c", "prompt states zeroed", "The prompt states are masked.", "clip 3.1 (c), Table 2",
                     lambda states, tokens: _zero(tokens.pr, states)),
        Intervention("d", "padding ← eot", "Every padding state is replaced by the end state.", "clip 3.2 (d), Table 3",
                     lambda states, tokens: _fill_with_eot(tokens.pad, states, tokens)),
        Intervention("e", "all states ← eot", "Prompt and padding states are all replaced by the end state.", "clip 3.2 (e), Table 3",
                     lambda states, tokens: _fill_with_eot(tokens.pr | tokens.pad, states, tokens)),
        Intervention("f", "eot zeroed", "The end state is masked.", "clip 3.2 (f), Table 3",
                     lambda states, tokens: _zero(tokens.eot, states)),
        Intervention("g", "padding alone", "Prompt and end states are replaced by padding states.", "clip 3.2 (g), Table 3", _fill_with_pad),
        Intervention("h", "padding zeroed", "The padding states are masked.", "clip 3.2 (h), Table 3",
                     lambda states, tokens: _zero(tokens.pad, states)),
    )
}  # fmt: skip


def apply(key: str, embedding: Embedding) -> Embedding:
    """Return the embedding [N, 77, d] edited by the intervention `key`; the input is not modified.

    Raises InputError for an unknown key, and for (g) on a prompt without padding.
    Source: `clip` Sections 3.1 and 3.2.
    """
    if key not in INTERVENTIONS:
        raise InputError(f"Unknown intervention {key!r}: use one of {', '.join(INTERVENTIONS)}.")
    return embedding.replace(INTERVENTIONS[key].edit(embedding.states, embedding.tokens))


SWAPS = {"eot": ("eot",), "eot+pad": ("eot", "pad"), "pad": ("pad",)}


def swap(embedding: Embedding, partners: Sequence[int], what: str = "eot+pad") -> Embedding:
    """Return the embedding [N, 77, d] in which row i has the states `what` of row ``partners[i]``; the input is not modified.

    `what` is "eot", "pad" or "eot+pad"; start and prompt states stay each row's own. `clip` does not say what is done where
    lengths differ. The rule taken: positions are counted from `<eot>`. The partner's end state goes to the row's own
    `<eot>` position, the partner's padding states from left to right to the row's own padding positions;
    what is left over of a longer padding is dropped, and a shorter one starts again at its first state. Raises InputError for
    an unknown `what`, partners that do not fit, and a partner without padding for a row with some.
    Source: `clip` Appendix A.3.
    """
    if what not in SWAPS:
        raise InputError(f"Unknown exchange {what!r}: use one of {', '.join(SWAPS)}.")
    partners = [int(partner) for partner in partners]
    if len(partners) != len(embedding) or not all(0 <= partner < len(embedding) for partner in partners):
        raise InputError(f"Partners {partners} do not fit {len(embedding)} prompts: give each a row from 0 to {len(embedding) - 1}.")
    tokens, states = embedding.tokens, embedding.states.clone()
    lengths = tokens.lengths.tolist()
    for row, partner in enumerate(partners):
        own, other = lengths[row] + 1, lengths[partner] + 1
        if "eot" in SWAPS[what]:
            states[row, own] = embedding.states[partner, other]
        targets = torch.arange(own + 1, states.shape[1])
        if "pad" in SWAPS[what] and len(targets):
            padding = embedding.states[partner, other + 1 :]
            if len(padding) == 0:
                raise InputError(
                    f"Prompt {partner} ({_shorten(tokens.prompts[partner])!r}) fills all 75 positions and has no padding to "
                    f"exchange: leave it out or shorten it."
                )
            states[row, targets] = padding[(targets - own - 1) % len(padding)]
    return embedding.replace(states)


MASK_ORDERS = ("last", "first", "random", "even")


def mask_padding(
    embedding: Embedding,
    fraction: float,
    which: str = "last",
    generator: torch.Generator | None = None,
) -> Embedding:
    """Return the embedding with a fraction (0 to 1) of each prompt's padding states set to zero.

    `clip` masks 70 % and says neither which positions nor how the count is rounded. Here the count is
    rounded to the nearest whole number (halves up), and `which` chooses the positions: "last" or
    "first" of the padding, "even" (spread evenly) or "random" (drawn for each prompt from `generator`,
    a CPU generator). Raises InputError for a fraction outside 0..1, an unknown `which`, or "random"
    without a generator. Source: `clip` Section 4.1, Partial Masking.
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"Cannot mask a fraction of {fraction!r}: use a number from 0 to 1 (0.7 is 70 %).")
    if which not in MASK_ORDERS:
        raise InputError(f"Unknown choice of padding {which!r}: use one of {', '.join(MASK_ORDERS)}.")
    if which == "random" and generator is None:
        raise InputError("Masking random positions needs a generator: pass torch.Generator().manual_seed(...).")
    tokens = embedding.tokens
    mask = torch.zeros_like(tokens.pad)
    for row, length in enumerate(tokens.lengths.tolist()):
        positions = torch.arange(length + 2, mask.shape[1])
        total = len(positions)
        count = int(fraction * total + 0.5)
        if which == "last":
            chosen = positions[total - count :]
        elif which == "first":
            chosen = positions[:count]
        elif which == "random":
            chosen = positions[torch.randperm(total, generator=generator)[:count]]
        else:
            # The middle of each of `count` equal stretches; they never coincide as count <= total.
            chosen = positions[[(2 * i + 1) * total // (2 * count) for i in range(count)]]
        mask[row, chosen] = True
    return embedding.replace(_zero(mask, embedding.states))
