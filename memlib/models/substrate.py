"""The models under study by name, loaded from local folders onto a device.

A substrate is a `StableDiffusionPipeline` with what the rest of memlib needs to know about it. The names
are in `SUBSTRATES` (memlib.models.catalogue); any local folder of the same kind works as well.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from memlib.base.errors import InputError
from memlib.base.numbers import is_whole
from memlib.base.paths import data_folder
from memlib.models.catalogue import SUBSTRATES, locate
from memlib.models.checkpoint import check_folder, read_pipeline, weights_hash
from memlib.models.data import SubstrateData
from memlib.models.delta import DELTA_FILE, apply_delta
from memlib.models.devices import bfloat16_pays, device_of, free_memory
from memlib.models.fitting import check_parts, with_tokenizer
from memlib.models.live import LiveState, named
from memlib.models.speed import Speed, prepare

__all__ = ["SCHEDULERS", "SUBSTRATES", "Substrate", "data_folder", "load"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SCHEDULERS = ("ddim", "dpm", "euler", "pndm")


@dataclass
class Substrate:
    """A loaded model: a diffusers pipeline on a device, and the facts that others ask for.

    `loaded_hash` is a SHA-256 over weights and configurations as they were loaded, `weights_hash` as they are now; `data` is what it
    brings beside them; `revision` is the hub's commit where known; `speed` is how it computes.
    """

    name: str
    pipe: Any = field(repr=False)
    device: torch.device
    dtype: torch.dtype
    loaded_hash: str
    revision: str | None = None
    speed: Speed = field(default_factory=Speed)
    data: SubstrateData = field(default_factory=SubstrateData, repr=False)
    state: LiveState | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.state is None:
            self.state = LiveState(self.pipe)

    @property
    def weights_hash(self) -> str:
        """That of what was loaded, or of that and all that was changed in place since: 64 hex digits for a loaded model.

        Raises InputError where a part is called otherwise than it was loaded, by a hook for instance: no name could tell what it makes apart.
        """
        assert self.state is not None
        if part := self.state.unnamed(self.pipe):
            raise InputError(
                f"{self.name} was changed after it was loaded, and what calls {part} now has no name that the store could keep pictures or scores under: "
                "take the change back, or sample with memlib.sampling.batches.sample, which keeps nothing."
            )
        return named(self.loaded_hash, self.state.changes(self.pipe))

    @property
    def tokenizer(self) -> Any:
        return self.pipe.tokenizer

    @property
    def text_encoder(self) -> Any:
        return self.pipe.text_encoder

    @property
    def unet(self) -> Any:
        return self.pipe.unet

    @property
    def vae(self) -> Any:
        return self.pipe.vae

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def prediction_type(self) -> str:
        return self.pipe.scheduler.config.get("prediction_type", "epsilon")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    @property
    def resolution(self) -> int:
        """Side of a picture in pixels."""
        return self.latent_shape[1] * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def scheduler(self, kind: str = "ddim", steps: int = 50) -> Any:
        """Return a fresh scheduler of the kind "ddim", "dpm" (DPM-Solver++ multistep), "euler" or "pndm", which Stable Diffusion 1.4's own folder names.

        PNDM takes its second step twice, so that 50 steps are 51 calls of the U-Net.

        It is made from the checkpoint's own configuration and set to `steps` steps on the substrate's
        device. Raises InputError for another kind or a number of steps that the schedule cannot give.
        """
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler

        kinds = dict(zip(SCHEDULERS, (DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler), strict=True))
        if kind not in kinds:
            raise InputError(f"Unknown scheduler {kind!r}: use one of {', '.join(SCHEDULERS)}.")
        options = {}
        if kind == "ddim" and not self.pipe.scheduler.config.get("clip_sample", False):
            # DDIM clips to [-1, 1] unless told otherwise, which is for pixels and not for latents.
            options["clip_sample"] = False
        if kind == "pndm":
            if self.prediction_type not in ("epsilon", "v_prediction"):
                raise InputError(f"PNDM samples models of noise or velocity, and {self.name} predicts {self.prediction_type!r}: use another scheduler.")
            options["skip_prk_steps"] = True  # as checkpoints of Stable Diffusion have it: a Runge-Kutta start is for pixels
        scheduler = kinds[kind].from_config(self.pipe.scheduler.config, **options)
        total = scheduler.config.num_train_timesteps
        # With an offset, a schedule of all training steps would run past its own end.
        most = total - (1 if kind in ("ddim", "pndm") and scheduler.config.steps_offset else 0)
        if not is_whole(steps, 1) or steps > most:
            raise InputError(f"{steps!r} sampling steps are not possible: use a whole number from 1 to {most}.")
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler

    def batch_size(self) -> int:
        """Guess how many pictures can be sampled at once in half of the memory that is free, 1 to 64."""
        return int(max(1, min(64, free_memory(self.device) / 2 // picture_memory(self.resolution, self.dtype))))


def picture_memory(resolution: int, dtype: torch.dtype) -> float:
    """Bytes that a guided picture takes while it is sampled: about 1 GiB for 512 pixels in half precision, in proportion to its area."""
    return 2**30 * (resolution / 512) ** 2 * dtype.itemsize / 2


def load(name: str | Path, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto", speed: Speed | None = None) -> Substrate:
    """Load a substrate by name (see `SUBSTRATES`) or from a local diffusers folder.

    "auto" takes the first GPU if there is one, with float16, and else the CPU, with bfloat16 where it
    multiplies that natively and float32 elsewhere; latents and scheduler stay in float32. `speed` says
    how it computes, by default what suits the device (`memlib.models.speed.Speed.on`). Raises
    InputError for an unknown name, device or precision, for missing weights, and for a folder that is
    incomplete, corrupt or not Stable Diffusion 1.x/2.x.
    """
    target = device_of(device)
    precision = dtype_of(dtype, target)
    folder, source, revision = locate(name)
    delta = folder / DELTA_FILE if source.base else None
    if source.base:
        folder = locate(source.base)[0]
    variant = check_folder(folder)
    pipe = read_pipeline(folder, variant, precision if delta is None else torch.float32)
    weights = weights_hash(folder, variant)
    if delta is not None:
        apply_delta(pipe.unet, delta, weights)
        weights = hashlib.sha256(f"{weights} {hashlib.sha256(delta.read_bytes()).hexdigest()}".encode()).hexdigest()
        for model in (pipe.text_encoder, pipe.unet, pipe.vae):
            torch.nn.Module.to(model, precision)  # diffusers' own `to` warns of modules to keep in float32, of which there are none
    pipe.set_progress_bar_config(disable=True)
    check_parts(folder, pipe)
    weights = with_tokenizer(weights, pipe.tokenizer)
    pipe.to(target)
    for model in (pipe.text_encoder, pipe.unet, pipe.vae):
        model.requires_grad_(False).eval()
    # Attention runs through scaled_dot_product_attention, diffusers' default.
    speed = Speed.on(target) if speed is None else speed
    prepare(pipe.unet, pipe.vae, speed)
    return Substrate(
        name=source.name,
        pipe=pipe,
        device=target,
        dtype=precision,
        loaded_hash=weights,
        revision=revision,
        speed=speed,
        data=source.data(),
    )


def dtype_of(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the precision named; "auto" is the one that suits the device (see `load`). Raises InputError for another name."""
    return precision_of(dtype, device, torch.bfloat16 if bfloat16_pays(device) else torch.float32)


def precision_of(dtype: str | torch.dtype, device: torch.device, on_cpu: torch.dtype) -> torch.dtype:
    """Return the precision named; "auto" is float16 on a GPU and `on_cpu` elsewhere. Raises InputError for one that there is not."""
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else on_cpu
    known = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if known not in DTYPES.values() or known is None:
        raise InputError(f"Unknown precision {dtype!r}: use auto, {', '.join(DTYPES)}.")
    return known
