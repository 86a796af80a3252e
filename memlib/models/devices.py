"""Which device to compute on, and whether bfloat16 pays there."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil
import torch

from memlib.base.errors import InputError


def device_of(name: str | torch.device = "auto") -> torch.device:
    """Return the device named; "auto" is the first GPU if there is one, else the CPU.

    Raises InputError for a name torch does not know, and for a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"Unknown device {name!r}: use auto, cpu, cuda or cuda:0.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("Device cuda was asked for, but torch sees no GPU here: use auto or cpu.")
    try:
        if device.type == "meta":
            raise NotImplementedError  # knows shapes alone
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise InputError(f"Device {device} was asked for, but torch cannot compute on it here: use auto or cpu.") from error
    return device


def settle(device: torch.device) -> None:
    """Wait until a device has done what it was told, so that a clock shows what it took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def hardware(device: torch.device | None) -> str:
    """A device's name in words; None is the CPU."""
    on_gpu = device is not None and device.type == "cuda"
    return torch.cuda.get_device_name(device) if on_gpu else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def bfloat16_pays(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively: CUDA from Ampere on, CPUs with AMX or AVX-512 BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def free_memory(device: torch.device) -> int:
    """Bytes of the device's memory that are free: the GPU's own, or else the machine's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
