"""Guidance rules in anyone's diffusers pipeline.

A pipeline forms uncond + g (cond - uncond) from the two halves of its U-Net's output, with its own scale g. To guide a sample with
another scale s, its conditional half is replaced by uncond + (s / g) (cond - uncond) before the pipeline sees it. Scheduler, callbacks and
`guidance_rescale` stay the pipeline's own (the last then sees the replaced half). The U-Net may be shared with other pipelines: it carries
a hook only while the denoising loop of this one runs, whose begin and end its `progress_bar` marks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor

from memlib.base.errors import InputError
from memlib.mitigations.base import Mitigation
from memlib.sampling.guidance import Scales, StepInfo, as_rule
from memlib.sampling.loop import to_epsilon

NEEDED = ("unet", "scheduler", "progress_bar")


def guides(mitigation: Mitigation) -> bool:
    """Say whether a mitigation changes guidance."""
    return type(mitigation).guidance is not Mitigation.guidance


def refuse_other_loops(pipe: Any, mitigation: Mitigation) -> None:
    """Raise InputError for a pipeline that does not guide with one scale between an unconditional and a conditional half."""
    kind = type(pipe)
    if any(getattr(pipe, part, None) is None for part in NEEDED) or not hasattr(kind, "guidance_scale") or hasattr(kind, "image_guidance_scale"):
        raise InputError(
            f"{kind.__name__} does not guide as Stable Diffusion 1.x/2.x does (one guidance_scale, one U-Net, a progress bar around its "
            f"steps), so {mitigation.name} cannot be put in place."
        )


class GuidedLoop:
    """Changes guidance in the denoising loops of one pipeline; `progress_bar` stands in for the pipeline's own.

    Each loop begins with a new state of the rule, made for the scale of the pipeline's call.
    """

    def __init__(self, pipe: Any, mitigation: Mitigation, progress_bar: Callable[..., Any]):
        self.pipe, self.mitigation = pipe, mitigation
        self._bar = progress_bar
        self._hook: Any = None

    def progress_bar(self, *args: Any, **kwargs: Any) -> Any:
        bar = self._bar(*args, **kwargs)
        iterates = bool(args) or kwargs.get("iterable") is not None
        return self._each(bar) if iterates else self._around(bar)

    def _each(self, bar: Any) -> Iterator[Any]:
        with self._acting():
            yield from bar

    @contextmanager
    def _around(self, bar: AbstractContextManager) -> Iterator[Any]:
        with self._acting(), bar as entered:
            yield entered

    @contextmanager
    def _acting(self) -> Iterator[None]:
        self.stop()
        self._refuse_unguided()
        self._times = torch.as_tensor(self.pipe.scheduler.timesteps).tolist()
        self._scales: Scales | None = None
        self._hook = self.pipe.unet.register_forward_hook(self._guide, with_kwargs=True)
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Take the hook from the U-Net if a loop left it there."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _refuse_unguided(self) -> None:
        if not getattr(self.pipe, "do_classifier_free_guidance", True) or self.pipe.guidance_scale <= 1:
            raise InputError(
                f"With guidance_scale {self.pipe.guidance_scale} the pipeline makes no unconditional prediction and {self.mitigation.name} "
                "cannot act: use a guidance_scale above 1."
            )

    def _guide(self, unet: Any, args: tuple, kwargs: dict, output: Any) -> Any:
        sample = args[0] if args else kwargs["sample"]
        t = args[1] if len(args) > 1 else kwargs["timestep"]
        t = float(t.reshape(-1)[0]) if isinstance(t, Tensor) else float(t)
        predicted = output[0]
        # An inpainting U-Net reads mask and picture after the channels of the latents.
        sample = sample[:, : predicted.shape[1]]
        scale = float(self.pipe.guidance_scale)
        if self._scales is None:
            self._begin(sample, t, scale)
        index = self._place(t, len(sample))
        scales = self._scales(self._seen(index, t, sample, predicted)).to(predicted.device, torch.float32)

        uncond, cond = predicted.chunk(2)
        same = (scales == scale).view(-1, 1, 1, 1)
        if same.all():
            return None
        ratio = (scales / scale).view(-1, 1, 1, 1)
        changed = (uncond.float() + ratio * (cond.float() - uncond.float())).to(predicted.dtype)
        mixed = torch.cat([uncond, torch.where(same, cond, changed)])
        return (mixed, *output[1:]) if isinstance(output, tuple) else type(output)(sample=mixed)

    def _begin(self, sample: Tensor, t: float, scale: float) -> None:
        first, second = sample[: len(sample) // 2], sample[len(sample) // 2 :]
        if not torch.equal(first, second):
            raise InputError(
                f"{self.mitigation.name} needs a U-Net batch of the unconditional and then the conditional half on the same latents, which "
                f"{type(self.pipe).__name__} does not make: call undo()."
            )
        self._batch = len(first)
        self._scales = as_rule(self.mitigation.guidance(scale)).start(self._batch)
        # Where pictures are made from pictures the loop begins later in the schedule; a time may stand there twice (PNDM).
        planned = getattr(self.pipe, "num_timesteps", None)
        starts = [len(self._times) - planned] if isinstance(planned, int) else []
        starts += range(len(self._times))
        self._index = next((i for i in starts if 0 <= i < len(self._times) and abs(self._times[i] - t) < 1e-3), -1) - 1

    def _place(self, t: float, rows: int) -> int:
        """The index of this U-Net call in the schedule."""
        self._index += 1
        known = 0 <= self._index < len(self._times) and abs(self._times[self._index] - t) < 1e-3
        if not known or rows != 2 * self._batch:
            raise InputError(
                f"{self.mitigation.name} can act where the U-Net is called once per step of the schedule with the whole batch, which "
                f"{type(self.pipe).__name__} does not do: call undo()."
            )
        return self._index

    def _seen(self, index: int, t: float, sample: Tensor, predicted: Tensor) -> StepInfo:
        scheduler = self.pipe.scheduler
        latents = sample[: self._batch].float()
        if isinstance(scheduler, EulerDiscreteScheduler):
            latents = latents * float((scheduler.sigmas[index].double() ** 2 + 1) ** 0.5)
        uncond, cond = (to_epsilon(half, latents, t, scheduler) for half in predicted.float().chunk(2))
        return StepInfo(index, len(self._times), t, latents, uncond, cond)
