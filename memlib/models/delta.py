"""A fine-tuned U-Net as a small file: its difference to the base's, quantized and entropy-coded.

The difference of a weight is rounded to whole multiples of half a standard deviation of its row (its output channel), which leaves an
error of at most a quarter of that deviation (0.5/sqrt(12), 14 % of the difference's norm, if the errors are spread evenly); the whole
numbers take about three and a half bits each after LZMA. Biases and norms are kept as they are, in float16. A file belongs to one base,
by the hash of its weights.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from memlib.base.errors import InputError
from memlib.base.writing import replacing

DELTA_FILE = "unet_delta.safetensors"
STEP = 0.5  # standard deviations of a row
_CODER: dict[str, Any] = {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 0, "pb": 0}]}


@dataclass(frozen=True)
class Written:
    """What `save_delta` wrote: bytes, and the error left as a share of the difference's norm."""

    size: int
    error: float


def save_delta(path: Path, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], base_hash: str) -> Written:
    """Write `tuned` minus `base` (state dictionaries of one architecture) to `path`; `base_hash` names the base's weights."""
    codes, widths, plain, left, whole = [], [], [], 0.0, 0.0
    for name in sorted(base):
        difference = (tuned[name].detach().float().cpu() - base[name].detach().float().cpu()).flatten(1 if base[name].ndim > 1 else 0)
        if difference.ndim == 1:
            plain.append(difference.half())
            kept = difference.half().float()
        else:
            width = (STEP * difference.std(1, correction=0)).half()
            code = _rounded(difference, width)
            codes.append(code.flatten())
            widths.append(width)
            kept = code.float() * width.float()[:, None]
        left, whole = left + float((difference - kept).square().sum()), whole + float(difference.square().sum())
    packed = lzma.compress(torch.cat(codes).numpy().tobytes(), **_CODER)
    tensors = {"codes": torch.frombuffer(bytearray(packed), dtype=torch.uint8), "widths": torch.cat(widths), "plain": torch.cat(plain)}
    shapes = {name: list(base[name].shape) for name in sorted(base)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"base": base_hash, "shapes": json.dumps(shapes)})
    return Written(path.stat().st_size, (left / whole) ** 0.5 if whole else 0.0)


def _rounded(difference: Tensor, width: Tensor) -> Tensor:
    scaled = difference / width.float().clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    return torch.where(width[:, None] > 0, scaled, torch.zeros(())).round().clamp(-127, 127).to(torch.int8)


def read_delta(path: Path, base_hash: str) -> dict[str, Tensor]:
    """Return the differences by name, float32 on the CPU. Raises InputError for a damaged file and for another base."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in ("codes", "widths", "plain")}
        shapes = json.loads(about["shapes"])
        codes = torch.from_numpy(np.frombuffer(lzma.decompress(tensors["codes"].numpy().tobytes(), **_CODER), np.int8).copy())
        matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1}
        vectors = {name: shape for name, shape in shapes.items() if len(shape) <= 1}
        coded = codes.split([int(np.prod(shape)) for shape in matrices.values()])
        widths = tensors["widths"].float().split([shape[0] for shape in matrices.values()])
        plain = tensors["plain"].float().split([int(np.prod(shape)) for shape in vectors.values()])
        found = {name: (code.view(shape[0], -1).float() * width[:, None]).view(shape)
                 for (name, shape), code, width in zip(matrices.items(), coded, widths, strict=True)}  # fmt: skip
        found |= {name: values.view(shape) for (name, shape), values in zip(vectors.items(), plain, strict=True)}
    except (SafetensorError, OSError, lzma.LZMAError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())[:120]}): restore it from the repository or make it again.") from error
    if about["base"] != base_hash:
        raise InputError(
            f"{path} belongs to a base with the weights {about['base'][:12]}, not {base_hash[:12]}: make it again with "
            "`memlib minisd finetune`, or restore the base it was made from."
        )
    return found


def apply_delta(unet: torch.nn.Module, path: Path, base_hash: str) -> None:
    """Add the differences in `path` to the float32 weights of `unet`, in place. Raises InputError if they do not fit it."""
    found = read_delta(path, base_hash)
    state = unet.state_dict()
    if {name: tuple(v.shape) for name, v in state.items()} != {name: tuple(v.shape) for name, v in found.items()}:
        raise InputError(f"{path} does not fit this U-Net: its weights have other names or shapes.")
    with torch.no_grad():
        for name, weight in state.items():
            weight.add_(found[name].to(weight.device))
