"""A substrate whose U-Net counts its rows and computes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class Counter:
    """U-Net rows asked for so far in `rows`; with `real` set, networks compute as ever (and rows count all the same)."""

    def __init__(self) -> None:
        self.rows = 0
        self.real = False


@contextmanager
def counting(substrate: Any, counter: Counter) -> Iterator[None]:
    """Replace a substrate's U-Net and decoder by ones that give numbers of the right shape; undone at the end in any case.

    They hang on their inputs, so that a gradient can be taken: the U-Net gives the mean of each sample's text states, the decoder zeros.
    """
    unet, vae = substrate.unet, substrate.vae
    real_forward, real_decode = unet.forward, vae.decode
    factor = 2 ** (len(vae.config.block_out_channels) - 1)

    def forward(sample: Tensor, timestep: Any, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        # As in memlib.sampling.loop.Cost, a row that a gradient goes through counts twice.
        with_gradient = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (sample, encoder_hidden_states))
        counter.rows += len(sample) * (2 if with_gradient else 1)
        if counter.real:
            return real_forward(sample, timestep, encoder_hidden_states, *args, **kwargs)
        zeros = sample[:, : unet.config.out_channels] * 0
        if encoder_hidden_states is not None:
            # The two halves of a guided step differ, so that searches for equal ones have something to go on.
            zeros = zeros + encoder_hidden_states.mean((1, 2))[:, None, None, None]
        return (zeros,) if kwargs.get("return_dict") is False else SimpleNamespace(sample=zeros)

    def decode(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        if counter.real:
            return real_decode(latents, *args, **kwargs)
        height, width = latents.shape[-2:]
        zeros = (latents * 0).mean(1, keepdim=True)[..., :1, :1].expand(-1, 3, factor * height, factor * width)
        return (zeros,) if kwargs.get("return_dict") is False else SimpleNamespace(sample=zeros)

    unet.forward, vae.decode = forward, decode
    try:
        yield
    finally:
        for module, name in ((unet, "forward"), (vae, "decode")):
            module.__dict__.pop(name, None)
