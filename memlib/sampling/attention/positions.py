"""Recorded cross-attention, and what is read from it: by position around ``<eot>``, its entropy, the layers that `clip` shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from memlib.base.errors import InputError
from memlib.prompts.embedding import Tokens


@dataclass(frozen=True)
class Attention:
    """Recorded attention: probabilities averaged over heads and pixels, float32, each row of K positions sums to 1.

    `cond` and `uncond` are [T, L, B, K]: T steps (U-Net calls), L `layers` in the order they run, B samples, K text
    positions (77); `uncond` is None unless asked for or without guidance. `timesteps` [T] are the scheduler's times.
    `maps` holds conditional maps by (step, layer): [B, h, w, K] averaged over heads, or [B, heads, h, w, K].
    """

    cond: np.ndarray
    uncond: np.ndarray | None
    layers: tuple[str, ...]
    timesteps: tuple[float, ...]
    maps: Mapping[tuple[int, str], np.ndarray] = field(default_factory=dict, repr=False)


def finest_down_layers(layers: Iterable[str]) -> list[str]:
    """Return the layers at the finest resolution of the down path that has cross-attention.

    In Stable Diffusion these are the two 64-pixel layers whose maps `clip` shows (Appendix D, after Chen et al.).
    Raises InputError if no layer of the down path is among `layers`.
    """
    down = [name for name in layers if name.startswith("down_blocks.")]
    if not down:
        raise InputError("There is no cross-attention layer of the down path among these: record all layers.")
    first = min(int(name.split(".")[1]) for name in down)
    return [name for name in down if int(name.split(".")[1]) == first]


def eot_masks(maps: Tensor, eot: Tensor, size: Sequence[int]) -> Tensor:
    """Return the attention to ``<eot>`` [B, h', w'] from maps [B, h, w, K] and the position of ``<eot>`` [B], resized to `size`."""
    chosen = maps.float()[torch.arange(len(maps)), :, :, eot]
    if tuple(chosen.shape[-2:]) == tuple(size):
        return chosen
    return interpolate(chosen[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def aligned_at_eot(attention: Attention | np.ndarray, tokens: Tokens, before: int = 5, after: int = 5) -> np.ndarray:
    """Return attention [..., B, before + 1 + after] at the positions around each sample's ``<eot>``.

    `attention` is an `Attention` (its conditional half) or an array [..., B, K]; `tokens` holds the B prompts in the
    same order. Before ``<eot>`` stand prompt tokens only: where a prompt is shorter there is NaN, also at the place of
    ``<sot>``, which draws much attention whatever the prompt; likewise where the padding ends. Source: `clip` Section
    4.2, Figure 8. Raises InputError if the samples do not fit.
    """
    values = attention.cond if isinstance(attention, Attention) else np.asarray(attention)
    if before < 0 or after < 0:
        raise InputError(f"{before} positions before and {after} after <eot> are not possible: give numbers from 0 on.")
    if values.ndim < 2 or values.shape[-2] != len(tokens):
        raise InputError(f"Attention of shape {list(values.shape)} does not fit {len(tokens)} prompts: it must be [..., {len(tokens)}, positions].")
    positions = (tokens.lengths.numpy() + 1)[:, None] + np.arange(-before, after + 1)
    inside = (positions >= 1) & (positions < values.shape[-1])
    taken = values[..., np.arange(len(tokens))[:, None], np.where(inside, positions, 0)]
    return np.where(inside, taken, np.nan)


def entropy(attention: Attention | np.ndarray, positions: Any = None) -> np.ndarray:
    """Return the attention entropy in nats, [T, B]: the mean over heads, pixels and layers first, then -sum p ln p.

    `attention` is an `Attention` (its conditional half) or an array [T, L, B, K]; for one layer record that one alone.
    `positions`, a boolean mask [B, K], restricts the sum without renormalising; ``tokens.eot | tokens.pad`` gives the
    part of the end and padding positions. A probability of 0 counts 0. Source: `attn`, in the form of its public code.
    """
    values = attention.cond if isinstance(attention, Attention) else np.asarray(attention)
    if values.ndim != 4:
        raise InputError(f"An entropy needs attention [steps, layers, samples, positions], not {list(values.shape)}.")
    p = values.mean(1, dtype=np.float64)
    terms = -p * np.log(np.where(p > 0, p, 1))
    if positions is not None:
        mask = np.asarray(positions, dtype=bool)
        if mask.shape != terms.shape[1:]:
            raise InputError(f"The mask of positions has shape {list(mask.shape)}: give [{', '.join(map(str, terms.shape[1:]))}].")
        terms = np.where(mask, terms, 0)
    return terms.sum(-1)


def span_mean(values: np.ndarray, part: slice) -> np.ndarray:
    """Mean [...] of attention [..., K] over the positions `part`; NaN where a prompt reaches none of them (see `aligned_at_eot`)."""
    inside = ~np.isnan(values[..., part])
    return np.where(inside.any(-1), np.nansum(values[..., part], -1) / np.maximum(inside.sum(-1), 1), np.nan)


def short_names(layers: Sequence[str]) -> list[str]:
    """Names of cross-attention layers as figures call them: ``down.0.1`` for ``down_blocks.0.attentions.1.transformer_blocks.0.attn2``."""
    return [name.split(".transformer_blocks")[0].replace("_blocks", "").replace("_block", "").replace(".attentions", "") for name in layers]
