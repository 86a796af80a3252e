"""Ren et al. 2024: no attention to the padding, and more to the start token, in every cross-attention layer at every step.

Both edits are made before the softmax and without computing attention anew. Positions that every row of a batch masks are left
out of the text, which is the same as to mask them and takes less time; others go to the U-Net as its text mask. The logit of ``<sot>``
is the product of a query with the key of ``<sot>``, so multiplying it means multiplying that key, while the value stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from memlib.base.declared import LATER, Count
from memlib.base.errors import InputError
from memlib.mitigations.base import Difference, Mitigation, register
from memlib.models.hooks import hooked
from memlib.models.protocol import Substrate
from memlib.prompts.embedding import CONTEXT_LENGTH
from memlib.sampling.attention.record import cross_attention_layers
from memlib.sampling.batches import Batch
from memlib.sampling.loop import Cost


@contextmanager
def attention_edited(unet: Any, keep: Tensor, factors: Tensor) -> Iterator[None]:
    """Mask text positions and rescale the first one in every cross-attention layer of what `unet` computes inside.

    `keep` is boolean [B, 77], False for positions that get no attention, and `factors` [B] multiply the logits of position 0,
    one row for each row of the U-Net's batch. The text is cut after the last position that any row keeps. The U-Net is as before
    afterwards, also after an exception. Raises InputError for a U-Net whose projections were fused.
    """
    layers = cross_attention_layers(unet).values()
    if any(getattr(layer, "fused_projections", False) for layer in layers):
        raise InputError("The keys of this U-Net are fused with its values and cannot be rescaled: call unfuse_qkv_projections() first.")
    model = getattr(unet, "unet", unet)
    length = int(keep.any(0).nonzero().max()) + 1
    kept = keep[:, :length]
    whole = bool(kept.all())
    scale = torch.cat([factors[:, None], torch.ones(len(keep), length - 1).to(factors)], 1)[..., None].to(next(model.parameters()))

    def mask(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if len(args) > 2:
            args = (*args[:2], args[2][:, :length], *args[3:])
        else:
            kwargs = {**kwargs, "encoder_hidden_states": kwargs["encoder_hidden_states"][:, :length]}
        return args, kwargs if whole else {**kwargs, "encoder_attention_mask": kept}

    def rescale(projection: Any, args: tuple, keys: Tensor) -> Tensor:
        return keys * scale.to(keys)

    with ExitStack() as patches:
        if not bool(keep.all()):
            patches.enter_context(hooked(model.register_forward_pre_hook, mask, with_kwargs=True))
        if bool((factors != 1).any()):
            for layer in layers:
                patches.enter_context(hooked(layer.to_k.register_forward_hook, rescale))
        yield


@register
@dataclass(frozen=True)
class MaskedAttention(Mitigation):
    """Padding gets no attention, and the logit of ``<sot>`` is multiplied by `scale` (a negative one is lowered by it).

    The mask has each prompt's own length and acts on its conditional and, unless `mask_uncond` is False, on its unconditional row,
    as in the public program; `mask_eot` masks ``<eot>`` too. The logits of the conditional rows are multiplied.

    Without `mask` every position keeps its attention and the start token alone is rescaled, an option of the program.
    `as_published` multiplies those of the rows that the program takes, every second one of the batch. That is the conditional row
    if one picture is made at once; with more (`images`: seeds 0 to `images` - 1, the next ones, ...) it is a half of the
    unconditional and a half of the conditional rows. Source: `attn`; `clip` Table 4.
    """

    scale: float = 1.25
    mask_eot: bool = False
    mask_uncond: bool = True
    as_published: bool = False
    images: Count = 10
    mask: Annotated[bool, LATER] = True

    name: ClassVar[str] = "ren"
    label: ClassVar[str] = "attention masked and rescaled"
    summary: ClassVar[str] = "Padding gets no cross-attention, and the logit of the start token is multiplied by 1.25."
    source: ClassVar[str] = "attn, clip Table 4"
    cost: ClassVar[str] = "text cut to the prompt, one product per cross-attention layer"
    full_prompt: ClassVar[str] = "only the attention to the start token is changed"
    family: ClassVar[str] = "attention"
    reported: ClassVar[tuple[str, ...]] = ("ren",)
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = ("scale", (1.0, 1.25, 2.0))
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("every second row of the batch is rescaled, ten pictures at once", {"as_published": True}, "10"),
    )
    sampled: ClassVar[bool] = True
    through: ClassVar[str] = "guided"
    version: ClassVar[int] = 2  # positions left out and not masked: other last digits

    def rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the positions kept [2B, 77] and the factors [2B] for the unconditional and then the conditional rows."""
        tokens = batch.embedding.tokens
        ends = tokens.lengths + (1 if self.mask_eot else 2)
        cond = (torch.arange(CONTEXT_LENGTH) < ends[:, None]) | (not self.mask)
        uncond = cond if self.mask_uncond else torch.ones_like(cond)
        factors = torch.ones(2, len(batch.rows))
        if self.as_published:
            place = torch.tensor([seed % self.images for seed in batch.seeds])
            factors[0, place % 2 == 1] = self.scale
            factors[1, (self.images + place) % 2 == 1] = self.scale
        else:
            factors[1] = self.scale
        return torch.cat([uncond, cond]), factors.flatten()

    @contextmanager
    def around(self, substrate: Substrate, batch: Batch, cost: Cost) -> Iterator[Batch]:
        keep, factors = self.rows(batch)
        with attention_edited(substrate.unet, keep.to(substrate.device), factors.to(substrate.device)):
            yield batch
