"""Faster training on a CPU: group normalization and SiLU in one pass over tensors whose channels lie last (norms.cpp).

Weights, names and results, to rounding, stay those of diffusers' modules; only their forward passes are replaced. Where no compiler is at hand
nothing is replaced, and training is slower.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from memlib.base.writing import replacing

# What -ffast-math allows, spelled out: a library linked under that flag makes every thread that loads it flush denormal numbers to zero, and
# NumPy's and SciPy's comparisons (`nextafter(0, -1) < 0`) go wrong in the whole process.
MATHEMATICS = ("-fno-math-errno", "-fassociative-math", "-freciprocal-math", "-fno-signed-zeros", "-fno-trapping-math", "-ffinite-math-only")
FLAGS = ("-O3", "-march=native", *MATHEMATICS, "-shared", "-fPIC", "-std=c++17")
_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


@lru_cache(1)
def kernels() -> ctypes.CDLL | None:
    """The compiled functions, built in seconds on first use and kept in the user's cache; None where there is no C++ compiler."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    source = Path(__file__).with_suffix(".cpp")
    # -march=native: what was built on another processor must not be loaded on this one.
    processor = subprocess.run([compiler, "-march=native", "-Q", "--help=target"], capture_output=True).stdout
    digest = hashlib.sha256(source.read_bytes() + " ".join(FLAGS).encode() + processor).hexdigest()[:16]
    built = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memlib" / "kernels" / f"norms-{digest}.so"
    try:
        if not built.exists():
            built.parent.mkdir(parents=True, exist_ok=True)
            with replacing(built) as partial:
                subprocess.run([compiler, *FLAGS, str(source), "-o", str(partial), "-lm"], check=True, capture_output=True)
        library = ctypes.CDLL(str(built))
    except (OSError, subprocess.CalledProcessError) as error:
        warnings.warn(f"The CPU's normalization could not be compiled ({error}): training is slower without it.", stacklevel=2)
        return None
    library.normalize.argtypes = [_POINTER] * 6 + [_LONG] * 4 + [ctypes.c_float, _INT, _INT]
    library.normalize_backward.argtypes = [_POINTER] * 9 + [_LONG] * 4 + [_INT, _INT]
    library.normalize.restype = library.normalize_backward.restype = None
    return library


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _pointers(*tensors: torch.Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float, silu: bool) -> torch.Tensor:
        x = _last(x)
        count, channels, height, width = x.shape
        y, mean, scale = torch.empty_like(x), *torch.empty(2, count, groups)
        half = x.dtype == torch.bfloat16
        library = kernels()
        assert library is not None
        library.normalize(*_pointers(x, y, weight, bias, mean, scale), count, height * width, channels, groups, eps, silu, half)
        context.save_for_backward(x, weight, bias, mean, scale)
        context.silu = silu
        return y

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias, mean, scale = context.saved_tensors
        count, channels, height, width = x.shape
        above, below = _last(gradients[0].to(x.dtype)), torch.empty_like(x)
        of_weight, of_bias = torch.empty_like(weight), torch.empty_like(bias)
        sizes = (count, height * width, channels, mean.shape[1], context.silu, x.dtype == torch.bfloat16)
        library = kernels()
        assert library is not None
        library.normalize_backward(*_pointers(x, above, below, weight, bias, mean, scale, of_weight, of_bias), *sizes)
        return below, of_weight, of_bias, None, None, None


class _Norm(nn.GroupNorm):
    silu = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 4 or self.weight.dtype != torch.float32 or x.device.type != "cpu":
            x = super().forward(x)
            return nn.functional.silu(x) if self.silu else x
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        if x.dtype not in (torch.float32, torch.bfloat16):
            x = x.float()
        return _Normalize.apply(x, self.weight, self.bias, self.num_groups, self.eps, self.silu)


class _ActivatedLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.silu(x))


def speed_up(module: nn.Module, device: torch.device) -> nn.Module:
    """Make a diffusers autoencoder or U-Net train faster, in place: channels last in memory, and on a CPU the kernels here."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type != "cpu" or kernels() is None:
        return module
    part: Any
    for part in module.modules():
        if type(part) is nn.GroupNorm:
            part.__class__ = _Norm
    for part in module.modules():
        if isinstance(part, ResnetBlock2D):
            part.norm1.silu = part.norm2.silu = True
            part.nonlinearity = nn.Identity()
            if part.time_emb_proj is not None:  # the one other place where a block uses its nonlinearity
                part.time_emb_proj.__class__ = _ActivatedLinear
        if getattr(part, "conv_norm_out", None) is not None:
            part.conv_norm_out.silu = True
            part.conv_act = nn.Identity()
    return module
