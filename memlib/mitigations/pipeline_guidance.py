"""Guidance rules in anyone's diffusers pipeline.

A pipeline forms uncond + g (cond - uncond) from the two halves of its U-Net's output, with its own scale g. To guide a sample with
another scale s, its conditional half is replaced by uncond + (s / g) (cond - uncond) before the pipeline sees it. Scheduler, callbacks and
`guidance_rescale` stay the pipeline's own (the last then sees the replaced half). Only what this pipeline object calls while its denoising loop
runs is changed, by a stand-in for its U-Net; its `progress_bar` marks begin and end of the loop.
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
from memlib.mitigations.pipeline_parts import StandIn, standing_in
from memlib.sampling.guidance import Rule, Scales, StepInfo, as_rule
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
            f"{kind.__name__} does not guide as Stable Diffusion does (one guidance_scale, one U-Net, a progress bar around its "
            f"steps), so {mitigation.name} cannot be put in place."
        )


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values [B] in the shape in which they meet samples [B, ...], pictures or videos."""
    return values.view(-1, *[1] * (like.ndim - 1))


class GuidedLoop:
    """Changes guidance in the denoising loops of one pipeline; `progress_bar` stands in for the pipeline's own."""

    def __init__(self, pipe: Any, mitigation: Mitigation, progress_bar: Callable[..., Any]):
        self.pipe, self.mitigation = pipe, mitigation
        self._bar = progress_bar

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
        scale = self.pipe.guidance_scale
        if not getattr(self.pipe, "do_classifier_free_guidance", True) or scale <= 1:
            raise InputError(
                f"With guidance_scale {scale} the pipeline makes no unconditional prediction and {self.mitigation.name} "
                "cannot act: use a guidance_scale above 1."
            )
        with standing_in(self.pipe, "unet", _Run(self.pipe, self.mitigation).predict):
            yield

    def stop(self) -> None:
        """Give the pipeline its own U-Net back where a loop was left in the middle."""
        if isinstance(left := self.pipe.__dict__.get("unet"), StandIn):
            self.pipe.__dict__["unet"] = left.part


class _Run:
    """One denoising loop: a new state of the rule, made for the scale of the pipeline's call and for the samples of its first step."""

    def __init__(self, pipe: Any, mitigation: Mitigation):
        self.pipe, self.mitigation = pipe, mitigation
        self._times = torch.as_tensor(pipe.scheduler.timesteps).tolist()
        self._scales: Scales | None = None

    def predict(self, unet: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the U-Net and return its output with the conditional half replaced."""
        output = unet(*args, **kwargs)
        sample = args[0] if args else kwargs["sample"]
        t = args[1] if len(args) > 1 else kwargs["timestep"]
        t = float(t.reshape(-1)[0]) if isinstance(t, Tensor) else float(t)
        predicted = output[0]
        # An inpainting U-Net reads mask and picture after the channels of the latents.
        sample = sample[:, : predicted.shape[1]]
        scale = float(self.pipe.guidance_scale)
        if self._scales is None:
            self._begin(sample, t, scale)
        elif scale != self._scale:
            self._change(scale)
        unguided = not getattr(self.pipe, "do_classifier_free_guidance", True)
        index = self._place(t, len(sample) * (2 if unguided else 1))
        if unguided:
            self._refuse_cut(index, t)
            return output
        scales = self._scales(self._seen(index, t, sample, predicted)).to(predicted.device, torch.float32)

        uncond, cond = predicted.chunk(2)
        same = _per_sample(scales == scale, cond)
        if same.all():
            return output
        changed = (uncond.float() + _per_sample(scales / scale, cond) * (cond.float() - uncond.float())).to(predicted.dtype)
        mixed = torch.cat([uncond, torch.where(same, cond, changed)])
        return (mixed, *output[1:]) if isinstance(output, tuple) else type(output)(sample=mixed)

    def _rule(self, scale: float) -> Rule:
        self._scale = scale
        return as_rule(self.mitigation.guidance(scale))

    def _begin(self, sample: Tensor, t: float, scale: float) -> None:
        first, second = sample[: len(sample) // 2], sample[len(sample) // 2 :]
        if not torch.equal(first, second):
            raise InputError(
                f"{self.mitigation.name} needs a U-Net batch of the unconditional and then the conditional half on the same latents, which "
                f"{type(self.pipe).__name__} does not make: call undo()."
            )
        self._batch = len(first)
        self._scales = self._rule(scale).start(self._batch)
        # Where pictures are made from pictures the loop begins later in the schedule; a time may stand there twice (PNDM).
        planned = getattr(self.pipe, "num_timesteps", None)
        starts = [len(self._times) - planned] if isinstance(planned, int) else []
        starts += range(len(self._times))
        self._index = next((i for i in starts if 0 <= i < len(self._times) and abs(self._times[i] - t) < 1e-3), -1) - 1

    def _change(self, scale: float) -> None:
        """Go on with another scale, which a callback has set: what the rule has seen so far stays."""
        rule = self._rule(max(scale, 1.0))  # at 1 or below a pipeline does not guide, which is a scale of 1
        self._scale = scale
        if hasattr(self._scales, "rule"):
            self._scales.rule = rule
        else:
            self._scales = rule.start(self._batch)

    def _refuse_cut(self, index: int, t: float) -> None:
        """Raise InputError where a callback has switched guidance off and the rule asks for more than the conditional prediction."""
        rule = as_rule(self.mitigation.guidance(1.0))
        settled = getattr(self._scales, "settled", None)
        ahead = getattr(rule, "ahead", None)
        if not (settled() if settled is not None else ahead is not None and ahead(index, len(self._times), t) == 1):
            raise InputError(
                f"A callback has switched guidance off before step {index}, where {self.mitigation.name} still needs the unconditional prediction: "
                "switch it off later, or call undo()."
            )

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
