"""The one denoising loop, which hands every step's quantities to the caller.

With constant guidance it does what `StableDiffusionPipeline` does. The latents and the scheduler work in
float32 whatever the model's precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor

from memlib.base.errors import InputError
from memlib.base.numbers import is_whole
from memlib.models.protocol import Substrate
from memlib.models.speed import TextCache, speed_of, watched
from memlib.sampling.guidance import Rule, StepInfo, as_rule

SINGLE_STEP = ("ddim", "euler")  # Schedulers whose steps depend on the latents before them and on nothing else.


@dataclass
class Cost:
    """Work done: `evaluations` counts U-Net rows (a guided step of one picture is two), `pictures` decoded.

    `decodes` counts what was decoded and described on the way, beside the pictures. A row or a decode through which a gradient goes
    back counts twice: weights are fixed, so that going back costs about what going forward does. Steps that pictures share
    (`memlib.sampling.prefix`) count for each of them, as if it were made alone: methods are compared by what each takes by itself.
    """

    evaluations: int = 0
    pictures: int = 0
    decodes: int = 0


@dataclass(frozen=True)
class Step(StepInfo):
    """The quantities of one step for B samples; tensors are [B, C, h, w], float32, on the model's device.

    Beside those of `StepInfo` (`latents` are the ones before the step, in the scheduler's own scaling):
    `noise_uncond` and `noise_cond` are the model's raw outputs (noise or velocity), `guidance` [B] is the
    scale used and `next_latents` are the latents after the step. Of a `lean` trajectory the predictions that were left out
    stand as None.
    """

    noise_uncond: Tensor
    noise_cond: Tensor
    guidance: Tensor
    next_latents: Tensor


def to_epsilon(output: Tensor, latents: Tensor, t: float | Tensor, scheduler: Any) -> Tensor:
    """Convert raw model outputs at time t to predicted noise, all [B, C, h, w].

    `latents` are in the scheduler's own scaling. Velocity: eps = sqrt(abar) v + sqrt(1 - abar) x_t;
    prediction of the clean sample: eps = (x_t - sqrt(abar) x_0) / sqrt(1 - abar).
    Source: Salimans and Ho 2022, Section 4 and Appendix D.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return output
    if isinstance(scheduler, EulerDiscreteScheduler):
        # Euler works with x_0 + sigma * eps and with times between the training steps.
        index = int((scheduler.timesteps.cpu() - float(t)).abs().argmin())
        abar = 1 / (1 + scheduler.sigmas[index].cpu().double() ** 2)
        latents = latents * float(abar.sqrt())
    else:
        abar = scheduler.alphas_cumprod[int(t)].cpu().double()
    signal, noise = float(abar.sqrt()), float((1 - abar).sqrt())
    if kind == "v_prediction":
        return signal * output + noise * latents
    if kind == "sample":
        return (latents - signal * output) / noise
    raise InputError(f"Prediction type {kind!r} is not supported: use epsilon, v_prediction or sample.")


def _noise_per_output(t: float | Tensor, scheduler: Any) -> float:
    """How much the predicted noise changes with the model's output, which `to_epsilon` converts by a straight line."""
    zero = torch.zeros(())
    return float(to_epsilon(zero + 1, zero, t, scheduler) - to_epsilon(zero, zero, t, scheduler))


def trajectory(
    substrate: Substrate,
    cond: Tensor,
    uncond: Tensor,
    latents: Tensor,
    steps: int = 50,
    guidance: float | Rule = 7.5,
    scheduler: str = "ddim",
    eta: float = 0.0,
    generators: Sequence[torch.Generator] | None = None,
    cost: Cost | None = None,
    start: int = 0,
    lean: bool = False,
) -> Iterator[Step]:
    """Denoise B latents and yield each step's quantities; the last step's `next_latents` are the result.

    `cond` is [B, 77, d], `uncond` [B or 1, 77, d], `latents` [B, C, h, w] standard normal noise. With a
    number as `guidance` the result equals `StableDiffusionPipeline`'s. `eta` above 0 (DDIM only) adds
    noise at each step from `generators`, one CPU generator per sample. `cost` is added to.

    With `start` above 0 only the steps from that index on are done, and `latents` are those before that step, as `Step.latents`
    gives them: in the scheduler's own scaling, not scaled again. Steps keep their index in the whole schedule. For schedulers that
    remember nothing of earlier steps (ddim, euler).

    `lean` says that nobody looks at the predictions meanwhile, so that the substrate's `Speed` may leave out what the guidance does not
    use.

    Raises InputError for shapes that do not fit, steps or `start` out of range, or an unknown scheduler.
    """
    batch = len(latents)
    if tuple(latents.shape[1:]) != tuple(substrate.latent_shape):
        raise InputError(f"Latents of shape {tuple(latents.shape)} do not fit {substrate.name}: use [samples, {', '.join(map(str, substrate.latent_shape))}].")
    if len(cond) != batch or len(uncond) not in (1, batch):
        raise InputError(
            f"{len(cond)} conditional and {len(uncond)} unconditional embeddings do not fit {batch} latents: "
            "give one conditional embedding per latent, and one unconditional embedding for each or for all."
        )
    if eta and (scheduler != "ddim" or generators is None or len(generators) != batch):
        raise InputError("eta above 0 needs the ddim scheduler and one generator per sample.")
    rule = as_rule(guidance)
    solver = substrate.scheduler(scheduler, steps)
    text = torch.cat([states.to(substrate.device, substrate.dtype) for states in (uncond.expand(batch, -1, -1), cond)])
    _check_start(start, len(solver.timesteps), scheduler)
    latents = latents.to(substrate.device, torch.float32)
    if start:
        if hasattr(solver, "set_begin_index"):
            solver.set_begin_index(start)
    else:
        latents = latents * float(solver.init_noise_sigma)
    return _denoise(substrate, text, latents, solver, rule, eta, generators, cost, start, lean)


def _check_start(start: int, steps: int, scheduler: str) -> None:
    if not is_whole(start) or start >= steps:
        raise InputError(f"A trajectory of {steps} steps cannot start at {start!r}: use a whole number from 0 to {steps - 1}.")
    if start and scheduler not in SINGLE_STEP:
        raise InputError(f"The scheduler {scheduler!r} needs the steps before step {start}, which are not there: use one of {', '.join(SINGLE_STEP)}.")


def _denoise(
    substrate: Substrate,
    text: Tensor,
    latents: Tensor,
    solver: Any,
    rule: Rule,
    eta: float,
    generators: Sequence[torch.Generator] | None,
    cost: Cost | None,
    start: int,
    lean: bool,
) -> Iterator[Step]:
    batch, total = len(latents), len(solver.timesteps)
    scales, speed = rule.start(batch), speed_of(substrate)
    cache = TextCache(substrate.unet) if speed.cached_text and not speed.compile else None
    ahead = getattr(rule, "ahead", None) if lean and speed.skip_unused else None
    options: dict[str, Any] = {"eta": eta, "generator": list(generators or ())} if eta else {}
    for index, t in enumerate(solver.timesteps[start:], start):
        # A scale of 0 uses the unconditional half alone, 1 the conditional one.
        known = None if ahead is None or watched(substrate.unet) else ahead(index, total, float(t))
        rows = slice(0, batch) if known == 0 else slice(batch, 2 * batch) if known == 1 else slice(0, 2 * batch)
        with torch.no_grad(), nullcontext() if cache is None else cache.used():
            model_input = solver.scale_model_input(latents, t).to(substrate.dtype)
            doubled = torch.cat([model_input, model_input])[rows]
            output = substrate.unet(doubled, t, encoder_hidden_states=text[rows], return_dict=False)[0].float()
            if len(output) == batch:
                next_latents = solver.step(output, t, latents, return_dict=False, **options)[0]
                used = torch.full((batch,), 0.0 if known == 0 else 1.0, device=latents.device)
                left_out: Any = None
                outputs = (output, left_out) if known == 0 else (left_out, output)
                step = Step(index, total, float(t), latents, left_out, left_out, outputs[0], outputs[1], used, next_latents)
            else:
                noise_uncond, noise_cond = output.chunk(2)
                epsilon_uncond = to_epsilon(noise_uncond, latents, t, solver)
                epsilon_cond = to_epsilon(noise_cond, latents, t, solver)
                seen = (index, total, float(t), latents, epsilon_uncond, epsilon_cond)
                scale = scales(StepInfo(*seen)).to(latents)
                guided = noise_uncond + scale.view(-1, 1, 1, 1) * (noise_cond - noise_uncond)
                if hasattr(scales, "shift"):
                    guided = guided + scales.shift(StepInfo(*seen)) / _noise_per_output(t, solver)
                next_latents = solver.step(guided, t, latents, return_dict=False, **options)[0]
                step = Step(*seen, noise_uncond, noise_cond, scale, next_latents)
        if cost is not None:
            cost.evaluations += len(output)
        yield step
        latents = step.next_latents
