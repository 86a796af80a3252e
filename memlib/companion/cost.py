"""What a run costs on a machine: a short calibration of the sampler, and the committed run's work set against it.

memlib cost sd14
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memlib.base.paths import ROOT
from memlib.base.store import Store
from memlib.companion.book.facts import FACTS
from memlib.models.devices import hardware, settle
from memlib.models.protocol import Substrate
from memlib.prompts.embedding import encode_prompts
from memlib.sampling.batches import decode, initial_latents, sample_batches, trajectory, uncond_states
from memlib.sampling.recipe import Recipe

STEPS = 4  # Timed steps: all of a schedule cost the same.


@dataclass(frozen=True)
class Rates:
    """Seconds a U-Net row takes in a full batch, seconds a picture takes to be decoded and written, and its bytes on disk."""

    row_seconds: float
    picture_seconds: float
    picture_bytes: float
    batch_size: int
    hardware: str

    def hours(self, evaluations: float, pictures: float) -> float:
        """Hours for so many U-Net rows and new pictures."""
        return (evaluations * self.row_seconds + pictures * self.picture_seconds) / 3600


def calibrate(substrate: Substrate, batch_size: int | None = None, steps: int = STEPS) -> Rates:
    """Time one batch of `steps` guided steps after one of a single step, and decoding and writing its pictures to a store of its own.

    `batch_size` defaults to the substrate's own choice. The pictures are half-finished and therefore larger on disk than finished ones.
    """
    batch_size = batch_size or substrate.batch_size()
    embedding = encode_prompts(substrate, ["a photograph of a lighthouse in the snow"])
    uncond = uncond_states(substrate)
    for _ in sample_batches(substrate, embedding, range(batch_size), Recipe(1), batch_size=batch_size, uncond=uncond):
        pass  # The first pass chooses kernels.
    settle(substrate.device)
    began = time.perf_counter()
    states = embedding.states.expand(batch_size, -1, -1)
    for step in trajectory(substrate, states, uncond, initial_latents(range(batch_size), substrate.latent_shape), steps):
        last = step.next_latents
    settle(substrate.device)
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


def describe(rates: Rates, root: Path = ROOT) -> str:
    """The rates in words, and from the run whose facts are in `root` (data/runs.json) what the same number of prompts, seeds and steps takes.

    Steps are those of the committed run: fifty instead of 25 take twice as long, and so do twice as many seeds.
    """
    lines = [
        f"On {rates.hardware}, {rates.batch_size} pictures at a time, a U-Net row takes {1000 * rates.row_seconds:.2f} ms and "
        f"a picture {1000 * rates.picture_seconds:.1f} ms to decode and write: {3600 / (100 * rates.row_seconds + rates.picture_seconds):,.0f} "
        "guided pictures of 50 steps an hour."
    ]
    path = root / FACTS
    runs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    work = {name: (run["evaluations"], run["pictures"]) for name, run in runs.items() if run.get("evaluations")}
    if not work:
        return "\n".join([*lines, f"What a whole run asks for is not known: {FACTS} has no counts."])
    for name, (evaluations, pictures) in work.items():
        lines.append(f"{name:32} {evaluations:12,} U-Net rows {pictures:9,} pictures {rates.hours(evaluations, pictures):8.1f} h")
    rows, made = (sum(counts) for counts in zip(*work.values(), strict=True))
    lines.append(f"{'all':32} {rows:12,} U-Net rows {made:9,} pictures {rates.hours(rows, made):8.1f} h, {made * rates.picture_bytes / 2**30:.1f} GiB")
    lines.append("These are the numbers of the committed run, counted as if nothing were stored; they grow with prompts, seeds and steps.")
    return "\n".join(lines)
