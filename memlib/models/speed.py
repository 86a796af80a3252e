"""Ways to sample faster that leave the pictures as they are, to rounding: which are used, and how each is done.

What changes nothing at all is on everywhere; what changes the last digits, because other kernels are chosen, is on only where a GPU's half
precision makes them differ from batch to batch anyway. `memlib bench sampling` measures what each one brings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0
from torch import Tensor

from memlib.base.errors import InputError
from memlib.base.numbers import is_whole
from memlib.models.hooks import answering

_COUNTING = Lock()
_timed, _before = 0, False  # contexts of `kernels` that are open, and what was set before the first of them

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class Speed:
    """How a substrate computes.

    - `cached_text`: keys and values of the text are projected once a trajectory and not at each step, as the text stays the same (a
      compiled U-Net does it at each step);
    - `skip_unused`: where the guidance of a step is known to be 0 or 1 before it and nobody looks at the step, only the one half of the
      batch that counts is computed;
    - `shared_prefix`: first steps whose guidance is known to be 0 and that nobody looks at are done once for a seed and kept for other
      prompts and methods (`memlib.sampling.prefix`); needs `skip_unused`, and changes no cost that is counted;
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
    """Let cuDNN choose kernels as `speed` says, within; contexts may be left in any order."""
    if not speed.benchmark or device.type != "cuda":
        yield
        return
    _count_timed(1)
    try:
        yield
    finally:
        _count_timed(-1)


def _count_timed(change: int) -> None:
    global _timed, _before
    with _COUNTING:
        _before = _before if _timed else torch.backends.cudnn.benchmark
        _timed += change
        torch.backends.cudnn.benchmark = True if _timed else _before


def watched(unet: Any) -> bool:
    """Whether something hangs on the U-Net's calls (a recording, for instance), so that each must be made in full."""
    return bool(unet._forward_pre_hooks or unet._forward_hooks)


class TextCache:
    """Keys and values of the text in every cross-attention layer of a U-Net, projected once as long as text and weights stay the same.

    They stand in for the layers' own only within `used`. A text is the same if it lies in the same memory, which is held here so that no
    other can take its place, and was not written to. Hooks of the projections are called every time. Where a gradient is taken, and for
    tensors of inference mode, which do not count how often they were written to, nothing is kept. Other threads that share the U-Net see nothing of it.
    """

    def __init__(self, unet: Any):
        layers = [module for module in unet.modules() if isinstance(module, Attention) and module.is_cross_attention]
        self._projections = [projection for layer in layers for projection in (layer.to_k, layer.to_v)]
        self._seen: dict[torch.nn.Module, tuple[list[Tensor], list[tuple[Any, ...]], Tensor]] = {}

    def used(self) -> AbstractContextManager[None]:
        """Use what is kept, and keep what is new, within; contexts may be left in any order."""
        return answering(self._projections, "forward", self._project)

    def _project(self, projection: torch.nn.Module, forward: Callable[[Tensor], Tensor], text: Tensor) -> Tensor:
        tensors = [text, *projection.parameters()]
        if torch.is_grad_enabled() or any(tensor.is_inference() for tensor in tensors):
            return forward(text)
        states = [(t.data_ptr(), t._version, t.shape, t.stride(), t.dtype) for t in tensors]
        seen = self._seen.get(projection)
        if seen is not None and seen[1] == states:
            return seen[2]
        projected = forward(text)
        self._seen[projection] = tensors, states, projected
        return projected
