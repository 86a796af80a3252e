"""Checks that a substrate is set up right: two minutes of comparing with known facts, before hours are spent on it.

    memlib check sd14

Token ids of a sentence, padding of both versions, text states, the first step's prediction of a fixed latent and a short run against diffusers'
own pipeline, and the copy metric on fixed pairs. Status 1 if one of them fails.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from memlib.base.errors import InputError, NotMeasured
from memlib.prompts.embedding import PADDINGS, encode_prompts, tokenize
from memlib.sampling.batches import decode, initial_latents, trajectory, uncond_states

SENTENCE = "a photo of a cat"
# CLIP's byte-pair vocabulary: start, a, photo, of, a, cat, end.
IDS = (49_406, 320, 1_125, 539, 320, 2_368, 49_407)
# What "!" in a prompt becomes, by the padding id: the word-final entry, or where "!" is the padding that token itself.
MARK = {49_407: 256, 0: 0}
# What is known of substrates by name: padding id and prediction type.
KNOWN = {"sd14": (49_407, "epsilon"), "sd21": (0, "v_prediction"), "minisd-v1": (49_407, "epsilon"), "minisd-v2": (0, "epsilon")}
# Largest relative difference to diffusers, by precision: rounding of one U-Net pass.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
LAST_ALPHA = 0.00466  # Cumulative product of 1 - beta at the last of 1,000 scaled-linear steps from 0.00085 to 0.012.
STEPS = 10


@dataclass(frozen=True)
class Check:
    """One fact: `holds` is None where it could not be looked at."""

    name: str
    holds: bool | None
    detail: str

    def __str__(self) -> str:
        state = {True: "ok", False: "WRONG", None: "not measured"}[self.holds]
        return f"{state:13} {self.name}: {self.detail}"


def tokens(substrate: Any) -> Check:
    """The vocabulary is CLIP's, and a mark inside a prompt becomes what it does in the version."""
    found = tokenize(substrate.tokenizer, [SENTENCE, "!"])
    ids, mark = tuple(found.ids[0, : len(IDS)].tolist()), int(found.ids[1, 1])
    return Check("token ids", ids == IDS and mark == MARK.get(substrate.pad_id, 256), f"{SENTENCE!r} is {list(ids)}, '!' is {mark}")


def padding(substrate: Any) -> Check:
    """Padding is that of the version, the other one changes the states behind ``<eot>`` alone."""
    known = KNOWN.get(substrate.name, (None,))[0]
    own = encode_prompts(substrate, [SENTENCE])
    other = encode_prompts(substrate, [SENTENCE], "!" if substrate.pad_id == PADDINGS["eot"] else "eot")
    apart = (own.states - other.states).abs().amax(-1)[0]
    before, behind = float(apart[: len(IDS)].max()), float(apart[len(IDS) :].max())
    right = substrate.pad_id == known if known is not None else substrate.pad_id in PADDINGS.values()
    loose = 10 * TOLERANCE[substrate.dtype] * float(own.states.abs().mean())
    detail = f"id {substrate.pad_id}; other padding changes states up to <eot> by {before:.1e}, behind it by {behind:.2g}"
    return Check("padding", right and before <= loose < behind, detail)


def text_states(substrate: Any) -> Check:
    """Text states are those of the pipeline's own encoding."""
    expected = substrate.pipe.encode_prompt(SENTENCE, substrate.device, 1, False)[0].float().cpu()
    apart = relative(encode_prompts(substrate, [SENTENCE]).states, expected)
    return Check("text states", apart <= TOLERANCE[substrate.dtype], f"differ from diffusers' by {apart:.1e}")


def schedule(substrate: Any) -> Check:
    """The noise schedule and what the U-Net predicts are those of the version."""
    kind, last = substrate.prediction_type, float(substrate.scheduler("ddim", STEPS).alphas_cumprod[-1])
    wanted = KNOWN.get(substrate.name, (None, None))[1]
    return Check("schedule", (wanted in (None, kind)) and abs(last - LAST_ALPHA) < 5e-5, f"predicts {kind}, last alpha {last:.5f}")


def predictions(substrate: Any) -> Check:
    """Both predictions of the first step, from a fixed latent, are those that diffusers' own pipeline makes."""
    seen: list[torch.Tensor] = []
    pipe = substrate.pipe

    def keep(module: Any, inputs: Any, output: Any) -> None:
        seen.append(output[0].float().cpu())

    def stop(pipe: Any, index: int, time: Any, values: dict) -> dict:
        pipe._interrupt = True
        return values

    hook = substrate.unet.register_forward_hook(keep)
    try:
        _diffusers(substrate, STEPS, callback_on_step_end=stop)
    finally:
        hook.remove()
        pipe._interrupt = False
    first = next(_ours(substrate, STEPS))
    apart = relative(torch.cat([first.noise_uncond, first.noise_cond]).cpu(), seen[0])
    return Check("first step", apart <= TOLERANCE[substrate.dtype], f"predictions differ from diffusers' by {apart:.1e}")


def pictures(substrate: Any) -> Check:
    """A short guided run gives diffusers' picture, and it is a picture."""
    for step in _ours(substrate, STEPS):
        last = step.next_latents
    ours, theirs = decode(substrate, last)[0].astype(float), _diffusers(substrate, STEPS)
    apart, spread = float(np.abs(ours - theirs).mean()), float(ours.std())
    limit = 255 * TOLERANCE[substrate.dtype]
    return Check("picture", apart <= limit and spread > 5, f"{STEPS} steps differ from diffusers' by {apart:.2f} of 255 levels; spread {spread:.0f}")


def copies(substrate: Any) -> Check:
    """The copy metric calls a compressed cut-out of a picture a copy, and another picture none."""
    from memlib.metrics import metrics_for
    from memlib.models.minisd.prompt_sets import training_pictures
    from memlib.prompts.sets import load_prompts

    metric = metrics_for(substrate).copy
    if not metric.available:
        return Check("copy metric", None, metric.reason)
    names = load_prompts("minisd-duplicated").table["training_picture"][:2]
    side = substrate.resolution
    first, second = (np.array(Image.fromarray(training_pictures(name)[0]).resize((side, side), Image.Resampling.BICUBIC)) for name in names)
    same, other = float(metric.similarity(first, changed(first))), float(metric.similarity(first, second))
    detail = f"{metric.name}: a changed copy {same:.2f}, another picture {other:.2f}, threshold {metric.threshold:.2f}"
    return Check("copy metric", same >= metric.threshold > other, detail)


def changed(picture: np.ndarray) -> np.ndarray:
    """A copy as people make them: nine tenths of the picture [H, W, 3], brought back to its size and compressed."""
    side = len(picture)
    cut = side // 20
    small = Image.fromarray(picture[cut : side - cut, cut : side - cut]).resize((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=75)
    return np.array(Image.open(buffer).convert("RGB"))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def _ours(substrate: Any, steps: int) -> Any:
    states = encode_prompts(substrate, [SENTENCE]).states
    return trajectory(substrate, states, uncond_states(substrate), initial_latents([0], substrate.latent_shape), steps, 7.5)


def _diffusers(substrate: Any, steps: int, **options: Any) -> np.ndarray:
    pipe = substrate.pipe
    before, pipe.scheduler = pipe.scheduler, substrate.scheduler("ddim", steps)
    try:
        latents = initial_latents([0], substrate.latent_shape).to(substrate.device, substrate.dtype)
        made = pipe(SENTENCE, latents=latents, num_inference_steps=steps, guidance_scale=7.5, output_type="np", **options).images[0]
    finally:
        pipe.scheduler = before
    return np.asarray(made) * 255


CHECKS: tuple[Callable[[Any], Check], ...] = (tokens, schedule, padding, text_states, predictions, pictures, copies)


def check(substrate: Any, say: Callable[[str], None] = print) -> list[Check]:
    """Look at every fact in turn; one that cannot be looked at is reported as such, and the others go on."""
    found = []
    for look in CHECKS:
        try:
            found.append(look(substrate))
        except NotMeasured as error:
            found.append(Check(look.__name__, None, str(error)))
        except (InputError, RuntimeError, ValueError, TypeError) as error:
            found.append(Check(look.__name__, False, f"{type(error).__name__}: {error}"))
        say(str(found[-1]))
    return found
