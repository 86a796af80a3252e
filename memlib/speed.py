"""Ways to sample faster that leave the pictures as they are, to rounding: which are used, and how each is done.

What changes nothing at all is on everywhere; what changes the last digits, because other kernels are chosen, is on only where a GPU's half
precision makes them differ from batch to batch anyway. `python -m memlib.bench sampling` measures what each one brings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from memlib.errors import InputError
from memlib.numbers import is_whole

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class Speed:
    """How a substrate computes.

    - `cached_text`: keys and values of the text are projected once a trajectory and not at each step, as the text stays the same;
    - `skip_unused`: where the guidance of a step is known to be 0 or 1 before it and nobody looks at the step, only the one half of the
      batch that counts is computed;
    - `shared_prefix`: first steps whose guidance is known to be 0 and that nobody looks at are done once for a seed and kept for other
      prompts and methods (`memlib.prefixes`); needs `skip_unused`, and changes no cost that is counted;
    - `channels_last`: weights of U-Net and VAE in the memory layout that convolutions in half precision want;
    - `fused_qkv`: one product for queries, keys and values of self-attention (takes memory for a copy of these weights);
    - `compile`: a mode of `torch.compile` for the U-Net, or None; batches are then filled up to one size, so that it compiles once;
    - `benchmark`: cuDNN times its convolutions and takes the fastest for each shape;
    - `decode_batch`: pictures decoded at once; None: about a million pixels.
    """

    cached_text: bool = True
    skip_unused: bool = False
    shared_prefix: bool = False
    channels_last: bool = False
    fused_qkv: bool = False
    compile: str | None = None
    benchmark: bool = False
    decode_batch: int | None = None

    def __post_init__(self) -> None:
        if self.shared_prefix and not self.skip_unused:
            raise InputError("Unguided first steps are shared only where the conditional half is left out of them: switch on skip_unused as well.")
        if self.compile is not None and self.compile not in MODES:
            raise InputError(f"Unknown way to compile {self.compile!r}: use one of {', '.join(MODES)}, or None.")
        if self.decode_batch is not None and not is_whole(self.decode_batch, 1):
            raise InputError(f"{self.decode_batch!r} pictures cannot be decoded at once: use a whole number of at least 1, or None.")

    @classmethod
    def on(cls, device: torch.device) -> Speed:
        """What is used on a device unless another is asked for."""
        return cls(skip_unused=True, shared_prefix=True, channels_last=True) if device.type == "cuda" else cls()


def speed_of(substrate: Any) -> Speed:
    """The substrate's `Speed`; for a stand-in without one, nothing but plain computing."""
    return getattr(substrate, "speed", None) or Speed(cached_text=False)


def prepare(unet: Any, vae: Any, speed: Speed) -> None:
    """Change U-Net and VAE in place as `speed` says, once, after loading."""
    if speed.channels_last:
        unet.to(memory_format=torch.channels_last)
        vae.to(memory_format=torch.channels_last)
    if speed.fused_qkv:
        for module in unet.modules():
            if isinstance(module, Attention) and not module.is_cross_attention and type(module.processor) is AttnProcessor2_0:
                module.fuse_projections(fuse=True)
                module.set_processor(FusedAttnProcessor2_0())
    if speed.compile is not None:
        unet.compile(mode=speed.compile, dynamic=False)


@contextmanager
def kernels(speed: Speed, device: torch.device) -> Iterator[None]:
    """Let cuDNN choose kernels as `speed` says, within."""
    if not speed.benchmark or device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def watched(unet: Any) -> bool:
    """Whether something hangs on the U-Net's calls (a recording, for instance), so that each must be made in full."""
    return bool(unet._forward_pre_hooks or unet._forward_hooks)


class ProjectedText:
    """Stands in for `AttnProcessor2_0` of a cross-attention layer: the same operations, with keys and values given."""

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    # The parameters' names are those of diffusers' processors: Attention.forward looks at them.
    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        query = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        mixed = scaled_dot_product_attention(query, self.key, self.value, dropout_p=0.0, is_causal=False)
        mixed = attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2).to(query.dtype)))
        if attn.residual_connection:
            mixed = mixed + hidden_states
        return mixed / attn.rescale_output_factor


class TextCache:
    """Keys and values of one trajectory's text [R, 77, d] in every plain cross-attention layer of a U-Net.

    They are put in place for single calls, with `over`, and layers whose processor is another one by then (because attention is
    recorded or edited) are left to it.
    """

    def __init__(self, unet: Any, text: Tensor):
        self._layers: list[tuple[Attention, ProjectedText, Tensor, Tensor]] = []
        if getattr(unet, "encoder_hid_proj", None) is not None:
            return  # What the layers see is then not the text itself.
        for module in unet.modules():
            if isinstance(module, Attention) and module.is_cross_attention and _plain(module):
                key, value = (project(text).unflatten(-1, (module.heads, -1)).transpose(1, 2) for project in (module.to_k, module.to_v))
                # One object per layer and not per trajectory, so that a compiled U-Net finds what it was compiled with.
                processor = module.__dict__.setdefault("_memlib_projected_text", ProjectedText())
                self._layers.append((module, processor, key, value))

    def __len__(self) -> int:
        return len(self._layers)

    @contextmanager
    def over(self, rows: slice) -> Iterator[None]:
        """Use the keys and values of these rows of the text, for one call of the U-Net on as many samples."""
        replaced = []
        try:
            for attn, processor, key, value in self._layers:
                if type(attn.processor) is AttnProcessor2_0:
                    replaced.append((attn, attn.processor))
                    processor.key, processor.value = key[rows], value[rows]
                    attn.processor = processor
            yield
        finally:
            for attn, original in replaced:
                attn.processor.key = attn.processor.value = None
                attn.processor = original


def _plain(attn: Attention) -> bool:
    """Whether `ProjectedText` does what the layer does."""
    others = (attn.group_norm, attn.spatial_norm, attn.norm_cross, attn.norm_q, attn.norm_k)
    return type(attn.processor) is AttnProcessor2_0 and all(part is None for part in others)
