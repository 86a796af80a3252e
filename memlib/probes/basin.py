"""The attraction basin, measured: where denoising ends from latents at growing distance from a memorized trajectory.

`basin` (Section 4) calls the result of denoising with guidance from the state (x, t) the denoiser (Definition 1), and the attraction basin
of a training picture the set of states from which it ends, with a probability above 1 - delta, in the perceptual ball around that picture
(Definition 2). A cross-section of this set at one time needs a state that certainly lies in it. The trajectory under plain guidance is in
the basin at every step, since going on from any of its states gives the very picture that it ends at; it is the axis here. The trajectory
under zero guidance is no axis: by Definition 3 it leaves the basin at its transition point. It is drawn for comparison.

The perceptual ball is copy similarity at or above the descriptor's threshold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.experiment.group import Group
from memlib.experiment.settings import forget_other_models
from memlib.sampling.batches import decode, uncond_states
from memlib.sampling.loop import SINGLE_STEP, trajectory
from memlib.sampling.recipe import picture_recipe

VERSION = 1  # Part of the store's keys: raise it when the same displacement gives other latents.
KINDS = {
    "noise": "noise added",
    "mixed": "mixed with fresh noise",
    "unguided": "mixed with an unguided trajectory",
}


def noise_level(solver: Any, step: int) -> float:
    """Standard deviation of the noise in the latents before `step` of a DDIM or Euler scheduler, in its own scaling."""
    if hasattr(solver, "sigmas") and len(solver.sigmas) > step:
        return float(solver.sigmas[step])
    return math.sqrt(1 - float(solver.alphas_cumprod[int(solver.timesteps[step])]))


def displaced(latents: Tensor, kind: str, radius: float, direction: Tensor, level: float) -> Tensor:
    """Move latents [C, h, w] by `radius` along `direction`, of the same shape; 0 leaves them as they are.

    - "noise": `direction` gives a direction alone; the distance is `radius` times sqrt(D) `level`, the norm of D noise values of standard
      deviation `level`. Its unit means the same at every step, but the norm of the latents grows, and the sampler takes out only as much
      noise as its schedule expects: the rest stays in the picture.
    - "mixed": sqrt(1 - r^2) latents + r rms(latents) direction, with `direction` standard normal. The norm is kept on average, and at
      the first step the distribution too; r = 1 is fresh noise.
    - "unguided": sqrt(1 - r^2) latents + r direction, with `direction` the latents of another trajectory at the same step, so that both
      ends are states that occur there. At the first step this is "mixed".

    Raises InputError for an unknown kind, a negative radius, or one above 1 where it is a share.
    """
    if kind not in KINDS:
        raise InputError(f"Unknown kind of displacement {kind!r}: use one of {', '.join(KINDS)}.")
    if not 0 <= radius <= (math.inf if kind == "noise" else 1):
        raise InputError(f"A radius of {radius!r} is not possible for {kind!r}: use 0 or more{'' if kind == 'noise' else ', up to 1'}.")
    if kind == "noise":
        return latents + radius * level * math.sqrt(latents.numel()) * direction / direction.norm()
    scale = latents.square().mean().sqrt() if kind == "mixed" else 1.0
    return math.sqrt(1 - radius**2) * latents + radius * scale * direction


@dataclass
class Basin:
    """The basin around the guided trajectories of a group's prompts and seeds, cut at `steps`.

    Each prompt and seed has one random ray per step, along which all radii lie; `draw` numbers other sets of rays. Pictures and scores come
    from the store where they were made before, and each batch is kept as soon as it is done. Works with the schedulers ddim and euler.
    """

    group: Group
    steps: Sequence[int]
    draw: int = 0

    def __post_init__(self) -> None:
        total, scheduler = self.group.experiment.steps, self.group.experiment.scheduler
        if scheduler not in SINGLE_STEP:
            raise InputError(f"The basin cannot be measured with the scheduler {scheduler!r}, which remembers earlier steps: use ddim or euler.")
        for step in self.steps:
            if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or not 0 <= step < total:
                raise InputError(f"The basin cannot be cut at step {step!r}: use whole numbers from 0 to {total - 1}.")
        self.steps = tuple(int(step) for step in self.steps)
        if list(self.steps) != sorted(set(self.steps)) or not self.steps:
            raise InputError("The steps at which the basin is cut must be given once each, in rising order, and at least one.")

    def pictures(self, step: int, kind: str, radii: Sequence[float]) -> np.ndarray:
        """Where guidance leads from the displaced latents before `step`: uint8 [R, N, S, H, W, 3]; radius 0 is the plain picture."""
        x, shown, absent = self.group.experiment, dict[str, np.ndarray](), dict[str, tuple[float, int, int]]()
        forget_other_models(self, x.substrate)
        names = [[[self._key(step, kind, r, row, seed) if r else "" for seed in x.seeds] for row in range(len(self.group))] for r in radii]
        for r, radius in enumerate(radii):
            for row in range(len(self.group)) if radius else ():
                for seed, name in zip(x.seeds, names[r][row], strict=True):
                    if name in shown or name in absent:
                        continue
                    if (picture := x.store.read_picture(name)) is None:
                        absent[name] = (float(radius), row, seed)
                    else:
                        shown[name] = picture
        x.store.found += len(shown)
        with tqdm(total=len(absent), unit="picture", disable=not x.progress) as bar:
            for name, picture in zip(absent, self._ends(step, kind, list(absent.values()), bar)):
                shown[name] = picture
        plain = self.group.pictures()
        return np.stack([plain if not r else np.stack([np.stack([shown[name] for name in row]) for row in names[i]]) for i, r in enumerate(radii)])

    def similarity(self, kind: str, radii: Sequence[float], to: str = "training") -> np.ndarray | None:
        """Copy similarity of where it ends "to" the "training" picture or the "original", [N, S, K, R]; None where not measured."""
        cuts = []
        for step in self.steps:
            found = [self.group.score_of(f"similarity to {to}", pictures) for pictures in self.pictures(step, kind, radii)]
            if len(scores := [score for score in found if score is not None]) < len(found):
                return None
            cuts.append(np.stack(scores, axis=-1))
        return np.stack(cuts, axis=2)

    def unguided_distance(self) -> np.ndarray:
        """Distance of the zero-guidance trajectory of the same seed from the guided one, in norms of the noise, [N, S, K]."""
        x = self.group.experiment
        forget_other_models(self, x.substrate)
        key = {"basin": VERSION, "distance": "zero guidance", "steps": list(self.steps), "seeds": list(x.seeds), "cond": self._rows, **self._recipe}

        def compute() -> np.ndarray:
            pairs = [(row, seed) for row in range(len(self.group)) for seed in x.seeds]
            apart = (self._axis.flatten(0, 1) - self._passed(0.0, pairs)).flatten(2).norm(dim=2)
            unit = torch.tensor([self._level(step) for step in self.steps]) * math.sqrt(math.prod(x.substrate.latent_shape))
            return (apart / unit).reshape(len(self.group), len(x.seeds), -1).numpy()

        return x.store.score(key, compute)

    def _ends(self, step: int, kind: str, wanted: list[tuple[float, int, int]], bar: Any) -> Iterator[np.ndarray]:
        """Continue from each (radius, row, seed) and yield the pictures in that order, each stored before."""
        x, cut = self.group.experiment, self.steps.index(step)
        size = x.batch_size or x.substrate.batch_size()
        solver = x.substrate.scheduler(x.scheduler, x.steps)
        for begin in range(0, len(wanted), size):
            part = wanted[begin : begin + size]
            latents = torch.stack([
                displaced(self._axis[row, x.seeds.index(seed), cut], kind, radius, self._direction(kind, cut, row, seed), self._level(step))
                for radius, row, seed in part
            ])  # fmt: skip
            if step == 0:
                # The first step takes standard normal latents and scales them itself.
                latents = latents / float(solver.init_noise_sigma)
            states = self.group.embedding.states[[row for _, row, _ in part]]
            for _last in trajectory(x.substrate, states, self._uncond, latents, x.steps, x.guidance, x.scheduler, cost=x.cost, start=step):
                pass
            pictures = decode(x.substrate, _last.next_latents)
            x.cost.pictures += len(part)
            for (radius, row, seed), picture in zip(part, pictures, strict=True):
                x.store.write_picture(self._key(step, kind, radius, row, seed), picture, self._named(step, kind, radius, row, seed))
                x.store.made += 1
            bar.update(len(part))
            yield from pictures

    def _passed(self, guidance: float, pairs: list[tuple[int, int]]) -> Tensor:
        """Latents [B, K, C, h, w] (CPU) that trajectories of (row, seed) pass before each of `steps`."""
        x, cuts, done = self.group.experiment, [], []

        def keep(rows: list[int], seeds: list[int], step: Any) -> None:
            if step.index in self.steps:
                cuts.append(step.latents.cpu())

        for _ in x.batches(self.group.embedding, guidance, uncond=self._uncond, pairs=pairs, keep=keep, latents_only=True):
            done.append(torch.stack(cuts, dim=1))
            cuts.clear()
        return torch.cat(done)

    @cached_property
    def _axis(self) -> Tensor:
        """Latents [N, S, K, C, h, w] of the guided trajectories."""
        x = self.group.experiment
        pairs = [(row, seed) for row in range(len(self.group)) for seed in x.seeds]
        return self._passed(x.guidance, pairs).unflatten(0, (len(self.group), len(x.seeds)))

    @cached_property
    def _elsewhere(self) -> Tensor:
        """Latents [N, S, K, C, h, w] of zero-guidance trajectories from noise of their own."""
        x = self.group.experiment
        pairs = [(row, self._number("trajectory", row, seed)) for row in range(len(self.group)) for seed in x.seeds]
        return self._passed(0.0, pairs).unflatten(0, (len(self.group), len(x.seeds)))

    def _direction(self, kind: str, cut: int, row: int, seed: int) -> Tensor:
        if kind == "unguided":
            return self._elsewhere[row, self.group.experiment.seeds.index(seed), cut]
        generator = torch.Generator("cpu").manual_seed(self._number(self.steps[cut], row, seed))
        return torch.randn(tuple(self.group.experiment.substrate.latent_shape), generator=generator)

    def _number(self, what: Any, row: int, seed: int) -> int:
        """A seed for this prompt, seed, draw and purpose, the same in every run."""
        return int(digest({"basin": what, "prompt": self._ids[row], "seed": seed, "draw": self.draw})[:15], 16)

    def _level(self, step: int) -> float:
        x = self.group.experiment
        return noise_level(x.substrate.scheduler(x.scheduler, x.steps), step)

    def _named(self, step: int, kind: str, radius: float, row: int, seed: int) -> dict[str, Any]:
        displacement = {"version": VERSION, "step": step, "kind": kind, "radius": float(radius), "draw": self.draw}
        return {**self._recipe, "cond": self._rows[row], "seed": seed, "displaced": displacement}

    def _key(self, step: int, kind: str, radius: float, row: int, seed: int) -> str:
        return digest(self._named(step, kind, radius, row, seed))

    @cached_property
    def _uncond(self) -> Tensor:
        return uncond_states(self.group.experiment.substrate)

    @cached_property
    def _recipe(self) -> dict[str, Any]:
        x = self.group.experiment
        return picture_recipe(x.substrate, self._uncond, x.recipe())

    @cached_property
    def _ids(self) -> list[list[int]]:
        return self.group.embedding.tokens.ids.tolist()

    @cached_property
    def _rows(self) -> list[str]:
        return [digest(states.float()) for states in self.group.embedding.states]
