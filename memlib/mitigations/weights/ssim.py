"""Structural similarity of small maps, in one or several scales, with windows that fit them.

Source: Wang et al. 2004 (SSIM) and 2003 (several scales). The published search for neurons takes a Gaussian window of 11 values and
three scales of equal weight, which needs maps of 44 x 44; on smaller ones the window shrinks first, then the number of scales.

The published program leaves the range of the values open, so that its library takes it from the whole batch, and anew at every scale, and gives the
scales weights of 0.33: that is `published_ms_ssim`. Its values are lower, and the published limit belongs to them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memlib.base.errors import InputError

KERNEL, SIGMA, SCALES = 11, 1.5, 3
PUBLISHED_SIDE = 44  # that window on maps halved twice
C1, C2 = 0.01**2, 0.03**2  # of maps whose values span 1


def fitting(side: int) -> tuple[int, int]:
    """Return the window (an odd number from 3 to 11) and the number of scales (1 to 3) for maps whose shorter side is `side`.

    Raises InputError for maps below 3 x 3.
    """
    if side < 3:
        raise InputError(f"Structural similarity needs maps of at least 3 x 3, not {side}: use a model with larger latents.")
    scales = max(s for s in range(1, SCALES + 1) if side // 2 ** (s - 1) >= 3)
    coarsest = min(KERNEL, side // 2 ** (scales - 1))
    return coarsest - (coarsest % 2 == 0), scales


def window(size: int, sigma: float = SIGMA) -> Tensor:
    """Return a Gaussian window [size] that sums to 1."""
    x = torch.arange(size) - (size - 1) / 2
    values = torch.exp(-x.square() / (2 * sigma**2))
    return values / values.sum()


def _means(maps: Tensor, weights: Tensor) -> Tensor:
    channels = maps.shape[1]
    across = weights.to(maps).view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    maps = torch.nn.functional.conv2d(maps, across, groups=channels)
    return torch.nn.functional.conv2d(maps, across.transpose(2, 3), groups=channels)


def ssim(first: Tensor, second: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the similarity [B] of maps [B, C, h, w] with values in 0..1, and its part [B] from contrast and structure.

    Means over channels and over windows that lie wholly inside; `weights` [k] are the window's along either side.
    """
    mean = _means(torch.cat([first, second]), weights)
    a, b = mean.chunk(2)
    squares = _means(torch.cat([first.square(), second.square(), first * second]), weights).chunk(3)
    covariance = squares[2] - a * b
    structure = (2 * covariance + C2) / (squares[0] - a.square() + squares[1] - b.square() + C2)
    luminance = (2 * a * b + C1) / (a.square() + b.square() + C1)
    return (luminance * structure).flatten(1).mean(1), structure.flatten(1).mean(1)


def ms_ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the similarity [B] of maps [B, C, h, w] with values in 0..1 over as many scales as fit, of equal weight.

    Each scale halves the last by means over 2 x 2. A scale on which structures are opposed counts as 0. Raises InputError for shapes that
    differ or are too small.
    """
    _check_maps(first, second)
    size, scales = fitting(min(first.shape[-2:]))
    weights, first, second = window(size), first.float(), second.float()
    product = torch.ones(len(first), device=first.device)
    for scale in range(scales):
        whole, structure = ssim(first, second, weights)
        product = product * (whole if scale == scales - 1 else structure).clamp_min(0) ** (1 / scales)
        first, second = (torch.nn.functional.avg_pool2d(maps, 2) for maps in (first, second))
    return product


def published_ms_ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the similarity [B] as the program of Hintersdorf et al. 2024 has it; it depends on what is compared at once.

    Raises InputError for shapes that differ and for maps below 44 x 44.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure  # optional: the package works without it

    _check_maps(first, second)
    if min(first.shape[-2:]) < PUBLISHED_SIDE:
        raise InputError(f"The published similarity needs maps of {PUBLISHED_SIDE} x {PUBLISHED_SIDE}, not {min(first.shape[-2:])}: leave as_published out.")
    values = multiscale_structural_similarity_index_measure(first.float(), second.float(), kernel_size=KERNEL, betas=(0.33,) * SCALES, reduction="none")
    return values.reshape(len(first))


def _check_maps(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.ndim != 4:
        raise InputError(f"Maps of shapes {tuple(first.shape)} and {tuple(second.shape)} cannot be compared: give two of [B, C, h, w].")
