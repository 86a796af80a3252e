"""How fast pictures are sampled: memlib's levers one by one, against diffusers' pipeline called in two ways, in one table.

    memlib bench                                              # MiniSD and the architecture of Stable Diffusion 1.4 on this machine
    memlib bench sampling --model sd14 --device cuda          # on a GPU: 512 x 512, float16, with the mitigations that the targets name

Every way makes the same pictures (same noise, DDIM, same guidance), warm, and is compared with diffusers' own latents before it is timed. The two
ways to call diffusers are that of this field's published code, prompt by prompt with a few images a call, and batches over prompts of the size at
which it is fastest. How they are timed in turn, and kept: `memlib.companion.bench.rounds`.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from memlib.base.errors import InputError
from memlib.companion.bench.table import BATCHED, DEFAULT, PUBLISHED, SHARED, SWEEP
from memlib.models.architectures import ARCHITECTURES, build
from memlib.models.devices import bfloat16_pays, device_of, settle
from memlib.models.speed import Speed, prepare
from memlib.models.substrate import load
from memlib.prompts.embedding import encode_prompts
from memlib.sampling.batches import initial_latents, sample_batches, uncond_states
from memlib.sampling.prefix import forget
from memlib.sampling.recipe import Recipe
from memlib.sampling.rules import StaticTransition

GUIDANCE = 7.5
PUBLISHED_CALL = 4  # Images that published programs make in one call for one prompt (4 to 10).
PROMPTS = (
    "a photograph of a lighthouse in the snow", "two dogs and a red ball", "an old map of an island", "portrait of a lady with a hat",
)  # fmt: skip
PLAIN = Speed(cached_text=False)


@dataclass(frozen=True)
class Way:
    """A way to make the pictures: memlib's with a `speed`, or diffusers' pipeline, `batched` over prompts or prompt by prompt.

    `dtype` is a precision of its own; `sweep` makes every picture three times, with guidance from three steps on.
    """

    speed: Speed | None = None
    batched: bool = True
    dtype: str | None = None
    sweep: bool = False


def ways(device: torch.device) -> dict[str, Way]:
    """All ways on a device, by name; "default" is what is used there unless another is asked for."""
    usual = Speed.on(device)
    found = {
        PUBLISHED: Way(batched=False), BATCHED: Way(), "memlib, plain": Way(PLAIN), "memlib, text projected once": Way(Speed()),
        "memlib, channels-last": Way(dataclasses.replace(PLAIN, channels_last=True)),
        "memlib, fused QKV": Way(dataclasses.replace(PLAIN, fused_qkv=True)), "memlib, plain, float32": Way(PLAIN, dtype="float32"),
        DEFAULT: Way(usual), f"{DEFAULT}, compiled": Way(dataclasses.replace(usual, compile="default")),
        SWEEP: Way(dataclasses.replace(usual, skip_unused=True, shared_prefix=False), sweep=True),
        SHARED: Way(dataclasses.replace(usual, skip_unused=True, shared_prefix=True), sweep=True),
    }  # fmt: skip
    if device.type == "cuda":
        found["memlib, kernels timed by cuDNN"] = Way(dataclasses.replace(PLAIN, benchmark=True))
        found[f"{DEFAULT}, compiled, tuned"] = Way(dataclasses.replace(usual, benchmark=True, compile="max-autotune-no-cudagraphs"))
    return found


def usual_ways(device: torch.device, full: bool) -> list[str]:
    """Those timed unless others are named: on a CPU nothing that takes minutes to compile, nor of a full-size model what takes minutes to run."""
    left_out = {"memlib, plain, float32"} if device.type == "cuda" else {f"{DEFAULT}, compiled"}
    if full and device.type != "cuda":
        left_out |= {"memlib, plain, float32", "memlib, fused QKV", SWEEP, SHARED}
    return [name for name in ways(device) if name not in left_out]


@dataclass(frozen=True)
class Job:
    """What every way makes: `pictures` pictures, one prompt after the other in turn, in `steps` DDIM steps; latents alone unless `decoded`."""

    pictures: int
    steps: int = 50
    batch_size: int = 8
    decoded: bool = True

    @classmethod
    def usual(cls, device: torch.device, full: bool) -> Job:
        """A job with which the whole table takes minutes. On a CPU the decoder of a full-size model would outweigh its few steps."""
        if device.type == "cuda":
            return cls(16, 20, 16)
        return cls(2, 2, 2, decoded=False) if full else cls(32, 10, 32)

    @property
    def switches(self) -> list[int]:
        """Steps at which guidance starts in the sweep."""
        return [self.steps * quarter // 4 for quarter in (1, 2, 3)]

    def crossed(self) -> list[tuple[int, int]]:
        """(prompt, seed) of as many pictures with the same seeds for each prompt, as experiments have them."""
        return [(place % len(PROMPTS), place // len(PROMPTS)) for place in range(self.pictures)]

    def pairs(self) -> list[tuple[int, int]]:
        """(prompt, seed) of each picture: as many seeds of a prompt in a row as a published call makes."""
        return [(place // PUBLISHED_CALL % len(PROMPTS), place) for place in range(self.pictures)]

    def rows(self, name: str, way: Way) -> int:
        """U-Net rows that a way spends on it."""
        if not way.sweep:
            return 2 * self.pictures * self.steps
        unguided = len({seed for _, seed in self.crossed()}) * max(self.switches) if name == SHARED else self.pictures * sum(self.switches)
        return unguided + 2 * self.pictures * sum(self.steps - step for step in self.switches)


def ours(substrate: Any, job: Job, guidance: Any = GUIDANCE, pairs: Sequence[tuple[int, int]] | None = None) -> np.ndarray:
    """Sample the job, or other (prompt, seed) `pairs`, with memlib; pictures uint8 [N, H, W, 3], or the last latents."""
    batches = sample_batches(
        substrate, encode_prompts(substrate, list(PROMPTS)), (), Recipe(job.steps, guidance, "ddim"), batch_size=job.batch_size,
        uncond=uncond_states(substrate), pairs=job.pairs() if pairs is None else pairs, latents_only=not job.decoded,
    )  # fmt: skip
    return np.concatenate([made for _, _, made in batches])


def swept(substrate: Any, job: Job) -> np.ndarray:
    """Sample the job with guidance from each of three steps on, one after the other, from nothing kept before."""
    forget(substrate)
    return np.concatenate([ours(substrate, job, StaticTransition(GUIDANCE, step), job.crossed()) for step in job.switches])


def diffusers_pipeline(substrate: Any, job: Job, batch_size: int | None = None) -> np.ndarray:
    """Sample the job by calling `StableDiffusionPipeline`: prompt by prompt, or with `batch_size` in batches over prompts."""
    pipe, made = substrate.pipe, []
    before, pipe.scheduler = pipe.scheduler, substrate.scheduler("ddim", job.steps)
    try:
        for start in range(0, job.pictures, batch_size or PUBLISHED_CALL):
            part = job.pairs()[start : start + (batch_size or PUBLISHED_CALL)]
            noise = initial_latents([seed for _, seed in part], substrate.latent_shape).to(substrate.device, substrate.dtype)
            prompts: dict[str, Any] = {"prompt": [PROMPTS[row] for row, _ in part]}
            if batch_size is None:
                prompts = {"prompt": PROMPTS[part[0][0]], "num_images_per_prompt": len(part)}
            options = {"output_type": "pil" if job.decoded else "latent", "guidance_scale": GUIDANCE, "num_inference_steps": job.steps}
            images = pipe(**prompts, latents=noise, **options).images
            made.append(np.stack([np.asarray(image) for image in images]) if job.decoded else images.float().cpu().numpy())
    finally:
        pipe.scheduler = before
    return np.concatenate(made)


def products(device: torch.device, dtype: torch.dtype, side: int | None = None, repeats: int = 8) -> tuple[Callable[[], Any], int]:
    """What multiplies large square matrices, and its floating-point operations: timed, they give the rate that the device reaches."""
    side = side or (8192 if device.type == "cuda" else 2048)
    first, second = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: [first @ second for _ in range(repeats)], 2 * side**3 * repeats


@torch.no_grad()
def row_operations(substrate: Any) -> float:
    """Floating-point operations of one U-Net row, counted on a pass with two (attention included)."""
    latents = torch.zeros(2, *substrate.latent_shape, device=substrate.device, dtype=substrate.dtype)
    text = torch.zeros(2, 77, substrate.unet.config.cross_attention_dim, device=substrate.device, dtype=substrate.dtype)
    with FlopCounterMode(display=False) as counter:
        substrate.unet(latents, 1, encoder_hidden_states=text, return_dict=False)
    return counter.get_total_flops() / 2


class Model:
    """A model by name, loaded once for each layout of its weights that a way wants; an architecture's weights are random."""

    def __init__(self, name: str, device: str = "auto", dtype: str = "auto"):
        self.name, self.device, self.dtype = name, device_of(device), dtype
        if name in ARCHITECTURES and dtype == "auto" and self.device.type == "cpu" and bfloat16_pays(self.device):
            self.dtype = "bfloat16"
        self._loaded: dict[tuple[Any, ...], Any] = {}

    @property
    def full(self) -> bool:
        """Whether it is full-size: 64 x 64 latents and more."""
        return self.substrate(Way()).latent_shape[1] >= 64

    def substrate(self, way: Way) -> Any:
        """The model as a way computes."""
        speed, dtype = way.speed or PLAIN, way.dtype or self.dtype
        wanted = (dtype, speed.channels_last, speed.fused_qkv, speed.compile)
        if wanted not in self._loaded:
            gc.collect()
            self._loaded[wanted] = self._load(speed, dtype)
        return dataclasses.replace(self._loaded[wanted], speed=speed)

    def _load(self, speed: Speed, dtype: str) -> Any:
        if self.name not in ARCHITECTURES:
            return load(self.name, self.device, dtype, speed)
        built = build(self.name, self.device, dtype, force=True)
        for part in (built.unet, built.vae):
            part.to(memory_format=torch.contiguous_format)
        prepare(built.unet, built.vae, speed)
        return built

    def call(self, name: str, way: Way, job: Job) -> Callable[[], np.ndarray]:
        """What makes the job in a way."""
        substrate = self.substrate(way)
        if way.speed is None:
            return lambda: diffusers_pipeline(substrate, job, job.batch_size if way.batched else None)
        return lambda: (swept if way.sweep else ours)(substrate, job)

    def best_batch(self, job: Job) -> int:
        """The batch size at which diffusers' pipeline is fastest, of the job's and its half and quarter; a full-size model fills a CPU with any."""
        if self.full and self.device.type == "cpu":
            return job.batch_size
        sizes, substrate = sorted({max(1, job.batch_size // part) for part in (1, 2, 4)}), self.substrate(Way())
        seconds = {}
        for size in sizes:
            few = dataclasses.replace(job, pictures=job.batch_size, steps=min(2, job.steps), decoded=False)
            diffusers_pipeline(substrate, few, size)
            settle(self.device)
            began = time.process_time() if self.device.type == "cpu" else time.perf_counter()
            diffusers_pipeline(substrate, few, size)
            settle(self.device)
            seconds[size] = (time.process_time() if self.device.type == "cpu" else time.perf_counter()) - began
        return min(sizes, key=lambda size: seconds[size])


def apart(latents: np.ndarray, expected: np.ndarray) -> float:
    """Mean absolute difference of latents to those expected, over their standard deviation."""
    return float(np.abs(latents - expected).mean() / expected.std())


def chosen(names: Sequence[str] | None, device: torch.device, full: bool) -> Mapping[str, Way]:
    """The ways named, or the usual ones, with both of diffusers always among them; raises InputError for one that there is not."""
    there = ways(device)
    if unknown := [name for name in names or () if name not in there]:
        raise InputError(f"There is no way {unknown[0]!r} on {device.type}: use {'; '.join(there)}.")
    return {name: there[name] for name in there if name in {PUBLISHED, BATCHED, *(names or usual_ways(device, full))}}
