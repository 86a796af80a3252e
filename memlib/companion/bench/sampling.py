"""How fast pictures are sampled: memlib's levers one by one, against diffusers' pipeline called in two ways.

    memlib bench sampling --substrate minisd-v1 --pictures 8 --steps 10
    memlib bench sampling --architecture sd14 --pictures 64

Every way makes the same pictures (same noise, DDIM, same guidance), warm, and is compared with diffusers' own latents before it is timed. The two
ways to call diffusers are that of this field's published code, prompt by prompt with a few images a call, and its best batch.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from memlib.base.errors import InputError
from memlib.base.writing import write_table
from memlib.models.devices import hardware
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
# Each lever alone, and then those that leave the weights as they are together, and all.
PLAIN = Speed(cached_text=False)
LEVERS: dict[str, Speed] = {
    "plain": PLAIN,
    "+ channels-last": Speed(cached_text=False, channels_last=True),
    "+ cached text projections": Speed(cached_text=True),
    "+ kernels timed by cuDNN": Speed(cached_text=False, benchmark=True),
    "+ fused QKV": Speed(cached_text=False, fused_qkv=True),
    "default": Speed(skip_unused=True, channels_last=True),
    "default, compiled": Speed(skip_unused=True, channels_last=True, compile="default"),
    "default, compiled, tuned": Speed(skip_unused=True, channels_last=True, benchmark=True, compile="max-autotune-no-cudagraphs"),
}


@dataclass(frozen=True)
class Job:
    """What every way makes: `pictures` pictures, one prompt after the other in turn, in `steps` DDIM steps."""

    pictures: int
    steps: int = 50
    batch_size: int = 8

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


def ours(substrate: Any, job: Job, guidance: Any = GUIDANCE, latents_only: bool = False, pairs: Sequence[tuple[int, int]] | None = None) -> np.ndarray:
    """Sample the job, or other (prompt, seed) `pairs`, with memlib; pictures uint8 [N, H, W, 3], or the last latents."""
    embedding = encode_prompts(substrate, list(PROMPTS))
    batches = sample_batches(
        substrate,
        embedding,
        (),
        Recipe(job.steps, guidance, "ddim"),
        batch_size=job.batch_size,
        uncond=uncond_states(substrate),
        pairs=job.pairs() if pairs is None else pairs,
        latents_only=latents_only,
    )
    return np.concatenate([made for _, _, made in batches])


def swept(substrate: Any, job: Job, latents_only: bool = False) -> np.ndarray:
    """Sample the job with guidance from each of three steps on, one after the other, from nothing kept before."""
    forget(substrate)
    return np.concatenate([ours(substrate, job, StaticTransition(GUIDANCE, step), latents_only, job.crossed()) for step in job.switches])


def diffusers_pipeline(substrate: Any, job: Job, batch_size: int | None = None, latents_only: bool = False) -> np.ndarray:
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
            options = {"output_type": "latent" if latents_only else "pil", "guidance_scale": GUIDANCE, "num_inference_steps": job.steps}
            images = pipe(**prompts, latents=noise, **options).images
            made.append(images.float().cpu().numpy() if latents_only else np.stack([np.asarray(image) for image in images]))
    finally:
        pipe.scheduler = before
    return np.concatenate(made)


def timed(call: Callable[[], np.ndarray], device: torch.device, repeats: int) -> list[float]:
    """Seconds of `repeats` calls after one that is not counted."""
    seconds = []
    for turn in range(repeats + 1):
        gc.collect()
        _settle(device)
        began = time.perf_counter()
        call()
        _settle(device)
        if turn:
            seconds.append(time.perf_counter() - began)
    return seconds


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_rate(device: torch.device, dtype: torch.dtype, side: int | None = None, repeats: int = 10) -> float:
    """Floating-point operations a second of a large square matrix product: what the device reaches, measured."""
    side = side or (8192 if device.type == "cuda" else 1024)
    first, second = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    first @ second
    _settle(device)
    began = time.perf_counter()
    for _ in range(repeats):
        first @ second
    _settle(device)
    return 2 * side**3 * repeats / (time.perf_counter() - began)


@torch.no_grad()
def row_operations(substrate: Any) -> float:
    """Floating-point operations of one U-Net row, counted on a pass with two (attention included)."""
    from torch.utils.flop_counter import FlopCounterMode

    latents = torch.zeros(2, *substrate.latent_shape, device=substrate.device, dtype=substrate.dtype)
    text = torch.zeros(2, 77, substrate.unet.config.cross_attention_dim, device=substrate.device, dtype=substrate.dtype)
    with FlopCounterMode(display=False) as counter:
        substrate.unet(latents, 1, encoder_hidden_states=text, return_dict=False)
    return counter.get_total_flops() / 2


def measure(fresh: Callable[[Speed], Any], job: Job, levers: Sequence[str], repeats: int = 3, say: Callable[[str], None] = print) -> pd.DataFrame:
    """Time both ways to call diffusers, and memlib with each of `levers`; one row each.

    `fresh` loads the substrate anew with a given `Speed`. `difference` is the mean absolute difference of the last latents to those of
    diffusers in batches, over their standard deviation; with shared prefixes, to those of the same job without.
    """
    rows: list[dict[str, Any]] = []
    substrate = fresh(PLAIN)
    operations, peak = row_operations(substrate), peak_rate(substrate.device, substrate.dtype)
    short = dataclasses.replace(job, pictures=min(job.pictures, job.batch_size))
    expected = diffusers_pipeline(substrate, short, job.batch_size, latents_only=True)

    def add(name: str, call: Callable[[], np.ndarray], apart: float | None, evaluations: int, pictures: int = job.pictures) -> None:
        seconds = timed(call, substrate.device, repeats)
        middle = float(np.median(seconds))
        rows.append({
            "way": name, "pictures_per_second": pictures / middle, "slowest": pictures / max(seconds),
            "fastest": pictures / min(seconds), "difference": apart, "share_of_peak": evaluations * operations / middle / peak,
        })  # fmt: skip
        say(f"{name}: {pictures / middle:.3f} pictures/s")

    full = 2 * job.pictures * job.steps
    published = diffusers_pipeline(substrate, short, latents_only=True)
    add("diffusers, prompt by prompt", lambda: diffusers_pipeline(substrate, job), _apart(published, expected), full)
    add("diffusers, in batches", lambda: diffusers_pipeline(substrate, job, job.batch_size), 0.0, full)
    for name in levers:
        del substrate
        gc.collect()
        substrate = fresh(LEVERS[name])
        add(f"memlib, {name}", lambda: ours(substrate, job), _apart(ours(substrate, short, latents_only=True), expected), full)  # noqa: B023
    alone, shared = (dataclasses.replace(substrate, speed=dataclasses.replace(substrate.speed, skip_unused=True, shared_prefix=kept)) for kept in (False, True))
    late = StaticTransition(GUIDANCE, step=job.steps // 2)
    add("memlib, guidance from the middle on", lambda: ours(alone, job, late), None, 3 * job.pictures * job.steps // 2)
    guided = [job.steps - step for step in job.switches]
    unguided, seeds = job.switches, len({seed for _, seed in job.crossed()})
    add("memlib, guidance from three steps on", lambda: swept(alone, job), None, job.pictures * (sum(unguided) + 2 * sum(guided)), 3 * job.pictures)
    apart = _apart(swept(shared, short, latents_only=True), swept(alone, short, latents_only=True))
    add("memlib, the same, prefixes shared", lambda: swept(shared, job), apart,
        seeds * max(unguided) + 2 * job.pictures * sum(guided), 3 * job.pictures)  # fmt: skip
    forget(shared)
    table = pd.DataFrame(rows)
    table.attrs = {"peak_flops": peak, "row_flops": operations, "hardware": hardware(substrate.device), "dtype": str(substrate.dtype)}
    return table


def _apart(latents: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(latents - expected).mean() / expected.std())


def as_text(table: pd.DataFrame, job: Job) -> str:
    """The table as it is printed, with ratios to both ways of calling diffusers."""
    facts = table.attrs
    lines = [
        f"{job.pictures} pictures, {job.steps} DDIM steps, guidance {GUIDANCE}, batches of {job.batch_size}",
        f"{facts['hardware']}, {facts['dtype'].removeprefix('torch.')}",
        f"Matrix products reach {facts['peak_flops'] / 1e12:.2f} TFLOP/s; a U-Net row takes {facts['row_flops'] / 1e9:.2f} GFLOP.",
        f"{'way':40} {'pictures/s':>11} {'range':>17} {'to published':>13} {'to batched':>11} {'of peak':>8} {'difference':>11}",
    ]
    published, batched = table["pictures_per_second"][:2]
    for row in table.itertuples():
        apart = "" if pd.isna(row.difference) else f"{row.difference:.1e}"
        lines.append(
            f"{row.way:40} {row.pictures_per_second:11.3f} {f'{row.slowest:.3f} to {row.fastest:.3f}':>17} "
            f"{row.pictures_per_second / published:13.2f} {row.pictures_per_second / batched:11.2f} {row.share_of_peak:8.1%} {apart:>11}"
        )
    return "\n".join(lines)


def run(
    substrate: str,
    architecture: str | None,
    pictures: int,
    steps: int,
    batch_size: int | None,
    repeats: int,
    levers: Sequence[str] | None,
    device: str,
    dtype: str,
    csv: Path | None,
) -> None:
    """Carry out ``memlib bench sampling``: measure, print, and write where asked; raises InputError for an unknown lever."""  # fmt: skip
    if unknown := [name for name in levers or () if name not in LEVERS]:
        raise InputError(f"There is no lever {unknown[0]!r}: use {', '.join(LEVERS)}.")

    def fresh(speed: Speed) -> Any:
        if architecture is None:
            return load(substrate, device, dtype, speed)
        from memlib.models.architectures import build

        built = build(architecture, device, dtype)
        if not speed.channels_last:
            for part in (built.unet, built.vae):
                part.to(memory_format=torch.contiguous_format)
        prepare(built.unet, built.vae, speed)
        return dataclasses.replace(built, speed=speed)

    first = fresh(PLAIN)
    job = Job(pictures, steps, batch_size or min(first.batch_size(), pictures))
    chosen = levers or [name for name, speed in LEVERS.items() if first.device.type == "cuda" or speed.compile is None]
    del first
    table = measure(fresh, job, chosen, repeats)
    print(as_text(table, job))
    if csv:
        write_table(csv, table)
