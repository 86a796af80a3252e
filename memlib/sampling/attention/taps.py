"""The mechanism under `memlib.sampling.attention.record`: taps on diffusers' cross-attention layers and a counter of steps.

Fused attention kernels hide the probabilities, so a tapped layer computes them itself, in float32. Where nothing is
edited, the layer's output still comes from its own processor and stays the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock, get_ident
from typing import Any

import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from torch import Tensor, nn

from memlib.base.errors import InputError
from memlib.models.hooks import hooked

# Processors that compute plain softmax attention and differ only in how.
PLAIN = (AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor)
CHUNK = 2**25  # Attention values held at once while only recording: 128 MiB of float32.
_CHANGING = RLock()  # held while processors are put on or taken off
_PATH = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}


def cross_attention_layers(model: Any) -> dict[str, Attention]:
    """Return the cross-attention layers of a U-Net (or of a substrate's or pipeline's) by name, in the order they run.

    Names are module paths such as ``down_blocks.1.attentions.0.transformer_blocks.0.attn2``. Raises InputError for a
    model without cross-attention.
    """
    unet = getattr(model, "unet", model)
    found = []
    if isinstance(unet, nn.Module):
        found = [(name, m) for name, m in unet.named_modules() if isinstance(m, Attention) and m.is_cross_attention]
    if not found:
        raise InputError(f"{type(unet).__name__} has no cross-attention layers of diffusers: pass a substrate, a Stable Diffusion pipeline or its U-Net.")
    # Modules are registered down, up, mid; they run down, mid, up.
    return dict(sorted(found, key=lambda item: _PATH.get(item[0].split(".")[0], 3)))


def chosen(layers: dict[str, Attention], names: Sequence[str] | None) -> list[str]:
    """Return `names` in running order, or all; raises InputError for a name that is no cross-attention layer."""
    if names is None:
        return list(layers)
    unknown = [name for name in names if name not in layers]
    if isinstance(names, str) or unknown:
        raise InputError(f"Unknown layers {names if isinstance(names, str) else unknown}: give a list of {', '.join(layers)}.")
    return [name for name in layers if name in names]


class Clock:
    """Knows the run, the step and the halves of the batch; it is called before each forward pass of the U-Net.

    Times fall within a run, so a higher one begins the next (Heun and PNDM repeat times). `steps`, the U-Net calls of
    a run, is needed only where that does not tell: for runs of a single step.
    """

    def __init__(self, guided: Callable[[], bool], steps: int | None = None):
        self._guided, self._steps = guided, steps
        self.run = self.step = -1
        self.t = float("-inf")
        self.size, self.rows, self.guided = (0, 0), 0, True

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        t = kwargs["timestep"] if "timestep" in kwargs else args[1 if "sample" not in kwargs else 0]
        t = float(torch.as_tensor(t).reshape(-1)[0])
        if t > self.t or self.run < 0 or self.step + 1 == self._steps:
            self.run, self.step = self.run + 1, -1
        self.step, self.t = self.step + 1, t
        self.rows, self.size, self.guided = len(sample), tuple(sample.shape[-2:]), bool(self._guided())
        if self.guided and self.rows % 2:
            raise InputError(f"A batch of {self.rows} has no unconditional and conditional halves: pass guided=False if the model runs without guidance.")

    def half(self, which: str) -> slice:
        """Rows of the half "cond", "uncond" or "both"; without guidance every row is conditional."""
        middle = self.rows // 2 if self.guided else 0
        return {"cond": slice(middle, self.rows), "uncond": slice(0, middle), "both": slice(0, self.rows)}[which]


class Tap:
    """What is put on a layer; values are float32 [rows, heads, pixels, keys].

    One that edits says what (`edits`: "logits" or "probabilities") and has `change`; one that records has `rows` and `take`.
    """

    edits = ""

    def change(self, values: Tensor, layer: str) -> Tensor:
        return values

    def rows(self) -> list[slice]:
        return []

    def take(self, layer: str, rows: slice, start: int, probabilities: Tensor) -> None:
        pass


class TappedProcessor:
    """Stands in for a layer's processor while taps are on it; recorders see what the layer used, after all edits.

    A tap belongs to the thread that put it on, and acts on what that computes.
    """

    def __init__(self, layer: str, original: Any):
        self.layer, self.original = layer, original
        self.taps: list[tuple[int, Tap]] = []

    @property
    def of_this_thread(self) -> Any:
        """What the layer does for this thread's calls: itself, or the processor that it stands in for where all taps are other threads'."""
        return self if any(thread == get_ident() for thread, _ in self.taps) else self.original

    # The parameters' names are those of diffusers' processors: Attention.forward looks at them.
    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        taps = [tap for thread, tap in list(self.taps) if thread == get_ident()]
        editors, recorders = [tap for tap in taps if tap.edits], [tap for tap in taps if not tap.edits]
        scores = _Scores(attn, self.original, hidden_states, encoder_hidden_states, attention_mask)
        if editors:
            return self._edited(scores, editors, recorders)
        for tap in recorders:
            for rows in tap.rows():
                for start in range(rows.start, rows.stop, scores.chunk):
                    part = slice(start, min(rows.stop, start + scores.chunk))
                    tap.take(self.layer, rows, start, scores.logits(part).softmax(-1))
        rest = (temb, *args) if args or temb is not None else ()  # Not every processor takes a temb.
        return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, *rest, **kwargs)

    def _edited(self, scores: _Scores, editors: list[Tap], recorders: list[Tap]) -> Tensor:
        values = scores.logits(slice(None))
        for tap in editors:
            values = tap.change(values, self.layer) if tap.edits == "logits" else values
        values = values.softmax(-1)
        for tap in editors:
            values = tap.change(values, self.layer) if tap.edits == "probabilities" else values
        for tap in recorders:
            for rows in tap.rows():
                tap.take(self.layer, rows, rows.start, values[rows])
        return scores.output(values)


class _Scores:
    """Queries and keys of one call, as diffusers' plain processors make them."""

    def __init__(self, attn: Attention, processor: Any, hidden: Tensor, text: Tensor | None, mask: Tensor | None):
        self.attn, self.residual = attn, hidden
        if hidden.ndim == 4:
            hidden = hidden.flatten(2).transpose(1, 2)
        batch, length = (hidden if text is None else text).shape[:2]
        if attn.group_norm is not None:
            hidden = attn.group_norm(hidden.transpose(1, 2)).transpose(1, 2)
        if text is None:
            text = hidden
        elif attn.norm_cross is not None:
            text = attn.norm_encoder_hidden_states(text)
        self.text = text
        self.query, self.key = self._split(attn.to_q(hidden)), self._split(attn.to_k(text))
        # Only the fused form applies these norms, and only the plain one looks at the layer's own scale.
        fused = not isinstance(processor, (AttnProcessor, SlicedAttnProcessor))
        if fused and attn.norm_q is not None:
            self.query = attn.norm_q(self.query)
        if fused and attn.norm_k is not None:
            self.key = attn.norm_k(self.key)
        self.scale = self.query.shape[-1] ** -0.5 if fused else attn.scale
        self.mask = attn.prepare_attention_mask(mask, length, batch)
        if self.mask is not None:
            self.mask = self.mask.view(batch, attn.heads, -1, self.mask.shape[-1])
        self.chunk = max(1, CHUNK // (attn.heads * self.query.shape[2] * length))

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.attn.heads, -1)).transpose(1, 2)

    def logits(self, rows: slice) -> Tensor:
        """Scaled and masked logits [rows, heads, pixels, keys], float32 whatever the model's precision."""
        logits = self.query[rows].float() @ self.key[rows].float().transpose(-1, -2) * self.scale
        return logits if self.mask is None else logits + self.mask[rows].float()

    def output(self, probabilities: Tensor) -> Tensor:
        """What the layer returns for these probabilities [B, heads, pixels, keys]."""
        attn, value = self.attn, self._split(self.attn.to_v(self.text))
        mixed = (probabilities.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        mixed = attn.to_out[1](attn.to_out[0](mixed))
        if self.residual.ndim == 4:
            mixed = mixed.transpose(-1, -2).reshape(self.residual.shape)
        if attn.residual_connection:
            mixed = mixed + self.residual
        return mixed / attn.rescale_output_factor


@contextmanager
def tapped(model: Any, names: Sequence[str], tap: Tap, clock: Clock) -> Iterator[None]:
    """Put `tap` on the layers `names` and `clock` on the U-Net; every processor comes back at the end, in any case.

    Raises InputError, and changes nothing, if a layer has a processor that is not plain attention.
    """
    unet, layers = getattr(model, "unet", model), cross_attention_layers(model)
    for name in names:
        if not isinstance(layers[name].processor, (*PLAIN, TappedProcessor)) or layers[name].spatial_norm is not None:
            raise InputError(
                f"The layer {name} uses {type(layers[name].processor).__name__}, whose attention cannot be recorded or "
                "edited here: call unet.set_default_attn_processor() first."
            )
    held: list[tuple[Attention, TappedProcessor]] = []
    one = (get_ident(), tap)
    with hooked(unet.register_forward_pre_hook, clock, with_kwargs=True):
        try:
            with _CHANGING:
                for name in names:
                    attn = layers[name]
                    if not isinstance(attn.processor, TappedProcessor):
                        attn.set_processor(TappedProcessor(name, attn.processor))
                    attn.processor.taps.append(one)
                    held.append((attn, attn.processor))
            yield
        finally:
            with _CHANGING:
                for attn, processor in held:
                    processor.taps.remove(one)
                    if not processor.taps and attn.processor is processor:
                        attn.set_processor(processor.original)
