"""Webster's one-step scores: how far one guided step moves pure noise, and whether its pictures share their edges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.ndimage import sobel
from torch import Tensor

from memlib.base.declared import Count, NotNegative
from memlib.experiment.group import Group
from memlib.models.protocol import Substrate
from memlib.probes.detectors.base import Detector, Scores, register
from memlib.probes.detectors.runs import need_signal, noise_pair, per_sample
from memlib.sampling.batches import Batch, decode
from memlib.sampling.loop import Cost


@register
@dataclass(frozen=True)
class OneStepNoise(Detector):
    """Mean square of z_1 - z_T, per prompt and seed: z_T is noise times sigma_max, z_1 the latent after one guided step to sigma 0.

    With one step Heun's method has nothing to correct and is Euler's: z_1 = z_T - sigma_max * eps, so the score is
    sigma_max^2 times the mean square of the guided noise, at the last time of training. Source: Webster 2023, white box.
    """

    guidance: float = 7.5

    name = "one-step"
    label = "one step, latent"
    summary = "how far one guided step moves the latent from pure noise, mean square"
    source = "Webster 2023, white box"

    def measure(self, group: Group) -> Scores:
        x = group.experiment
        need_signal(x.substrate, x.substrate.scheduler("ddim", x.steps), -1)
        found = per_sample(group, {"measure": self.name, "guidance": self.guidance}, partial(_moved, guidance=self.guidance))
        return Scores.priced(found["moved"], found["evaluations"])


@register
@dataclass(frozen=True)
class OneStepEdges(Detector):
    """Share of pixels that are edges in more than half of `seeds` one-step pictures (seeds 0, 1, ... of its own), per prompt.

    An edge is where the Sobel magnitude, summed over the channels of a picture with values 0 to 1, exceeds `threshold`. The program calls SciPy's
    filter on [H, W, 3], which smooths 1-2-1 over the channels as well and is four times as large on grey ones; the threshold of 1.5 is the
    program's and fits that, so this is what is done by default. With `per_channel` each channel is filtered alone. Pictures larger than `side`
    pixels are made smaller to it; smaller ones stay as they are. Source: Webster 2023, black box, program: 4 pictures, 256 pixels, 1.5.
    """

    seeds: Count = 4
    threshold: NotNegative = 1.5
    side: Count = 256
    guidance: float = 7.5
    per_channel: bool = False

    name = "one-step-edges"
    label = "one step, edges"
    summary = "share of pixels that are edges in more than half of four one-step pictures"
    source = "Webster 2023, black box"
    published = "the program's filter smooths over the colour channels too, which its threshold fits: as here (per_channel: without)"

    def measure(self, group: Group) -> Scores:
        x = group.experiment
        need_signal(x.substrate, x.substrate.scheduler("ddim", x.steps), -1)
        measure = {"measure": self.name, **{name: value for name, value in self.params.items() if name != "seeds"}}
        compute = partial(_edges, guidance=self.guidance, threshold=self.threshold, side=self.side, per_channel=self.per_channel)
        found = per_sample(group, measure, compute, seeds=range(self.seeds))
        pixels = int(found["pixels"].flat[0])
        edges = np.unpackbits(found["edges"], axis=-1, count=pixels).astype(bool)
        return Scores.priced(shared_edges(edges), found["evaluations"])


def one_step(substrate: Substrate, batch: Batch, guidance: float, cost: Cost) -> tuple[Tensor, Tensor]:
    """Return z_T and z_1 [B, C, h, w] of one guided step from sigma_max to 0 at the last time of training."""
    schedule = substrate.scheduler("ddim", batch.steps)
    last = schedule.config.num_train_timesteps - 1
    abar = schedule.alphas_cumprod[last].double()
    sigma = float(((1 - abar) / abar).sqrt())
    noise = batch.latents.to(substrate.device, torch.float32)
    uncond, cond = noise_pair(substrate, batch, noise * float((1 - abar).sqrt()), last, schedule, cost)
    return noise * sigma, (noise - uncond - guidance * (cond - uncond)) * sigma


def edges_of(pictures: np.ndarray, threshold: float, per_channel: bool = False) -> np.ndarray:
    """Return whether each pixel is an edge, bool [B, H, W], for pictures [B, H, W, C] with values 0 to 1; see `OneStepEdges`."""

    def gradient(picture: np.ndarray, axis: int) -> np.ndarray:
        # SciPy smooths along all other axes: one picture at a time, and one channel where channels are to stay apart.
        if not per_channel:
            return sobel(picture, axis)
        return np.stack([sobel(channel, axis) for channel in np.moveaxis(picture, -1, 0)], axis=-1)

    return np.stack([np.hypot(gradient(picture, 1), gradient(picture, 0)).sum(-1) > threshold for picture in pictures])


def shared_edges(edges: np.ndarray) -> np.ndarray:
    """Return [N]: the share of pixels that are edges in more than half of the S pictures, for bool [N, S, pixels]."""
    return (edges.mean(1) > 0.5).mean(1)


def _moved(substrate: Substrate, batch: Batch, cost: Cost, *, guidance: float) -> dict[str, np.ndarray]:
    start, end = one_step(substrate, batch, guidance, cost)
    return {"moved": (end - start).square().flatten(1).mean(1).cpu().numpy()}


def _edges(substrate: Substrate, batch: Batch, cost: Cost, *, guidance: float, threshold: float, side: int, per_channel: bool) -> dict[str, np.ndarray]:
    pictures = decode(substrate, one_step(substrate, batch, guidance, cost)[1])
    if max(pictures.shape[1:3]) > side:
        smaller = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
        smaller = torch.nn.functional.interpolate(smaller, (side, side), mode="bilinear", antialias=True)
        pictures = smaller.permute(0, 2, 3, 1).numpy()
    edges = edges_of(pictures.astype(np.float32) / 255, threshold, per_channel).reshape(len(pictures), -1)
    return {"edges": np.packbits(edges, axis=-1), "pixels": np.full(len(edges), edges.shape[1])}
