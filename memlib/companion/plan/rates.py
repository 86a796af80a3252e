"""How fast this machine samples: a short calibration on the substrate itself."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

STEPS = 4  # Timed steps: all of a schedule cost the same.


@dataclass(frozen=True)
class Rates:
    """Seconds a U-Net row takes in a full batch, seconds a picture takes to be decoded and written, and its bytes on disk."""

    row_seconds: float
    picture_seconds: float
    picture_bytes: float
    batch_size: int
    hardware: str

    def hours(self, evaluations: float, pictures: int) -> float:
        """Hours for so many U-Net rows and new pictures."""
        return (evaluations * self.row_seconds + pictures * self.picture_seconds) / 3600

    def describe(self) -> str:
        return (
            f"On {self.hardware}, {self.batch_size} pictures at a time, a U-Net row takes {1000 * self.row_seconds:.2f} ms and "
            f"a picture {1000 * self.picture_seconds:.1f} ms to decode and write."
        )


def calibrate(substrate: Any, batch_size: int | None = None, steps: int = STEPS) -> Rates:
    """Time one batch of `steps` guided steps after one of a single step, and decoding and writing its pictures to a store of its own.

    `batch_size` defaults to the substrate's own choice. The pictures are half-finished and therefore larger on disk than finished ones.
    """
    from memlib.base.store import Store
    from memlib.prompts.embedding import encode_prompts
    from memlib.sampling.batches import decode, initial_latents, sample_batches, trajectory, uncond_states
    from memlib.sampling.recipe import Recipe

    batch_size = batch_size or substrate.batch_size()
    embedding = encode_prompts(substrate, ["a photograph of a lighthouse in the snow"])
    uncond = uncond_states(substrate)
    for _ in sample_batches(substrate, embedding, range(batch_size), Recipe(1), batch_size=batch_size, uncond=uncond):
        pass  # The first pass chooses kernels.
    _settle(substrate)
    began = time.perf_counter()
    states = embedding.states.expand(batch_size, -1, -1)
    for step in trajectory(substrate, states, uncond, initial_latents(range(batch_size), substrate.latent_shape), steps):
        last = step.next_latents
    _settle(substrate)
    row = (time.perf_counter() - began) / (2 * steps * batch_size)
    began = time.perf_counter()
    pictures = decode(substrate, last)
    decoded = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        began = time.perf_counter()
        sizes = [store.write_picture(f"{place:064x}", picture).stat().st_size for place, picture in enumerate(pictures[:4])]
        written = (time.perf_counter() - began) / len(sizes)
    # Pictures are written by threads while the next batch is sampled, so that only what is slower than sampling would count.
    each = decoded / batch_size + max(0.0, written / 4 - row * 100)
    return Rates(row, each, float(np.mean(sizes)), batch_size, hardware(substrate.device))


def _settle(substrate: Any) -> None:
    if substrate.device.type == "cuda":
        import torch

        torch.cuda.synchronize(substrate.device)


def hardware(device: Any) -> str:
    """The device's name in words."""
    import platform

    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
