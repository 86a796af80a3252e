"""Checks that a loaded substrate is what it should be: two minutes of comparing with known facts, before hours are spent on it.

    memlib check sd14

Token ids of a sentence, padding of both versions, text states, the first step's prediction of a fixed latent and a run of two steps against diffusers'
own pipeline, the same under a mitigation, and the copy metric on fixed pairs. What must be there before a model is loaded is looked at in
`memlib.companion.check_setup`. Status 1 if anything fails.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from memlib.base.errors import InputError, NotMeasured
from memlib.companion.check_setup import Check, metric_at_hand
from memlib.metrics import metric
from memlib.mitigations.pipeline import mitigate
from memlib.models.minisd.prompt_sets import training_pictures
from memlib.prompts.embedding import PADDINGS, encode_prompts, tokenize
from memlib.prompts.sets import load_prompts
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
STEPS = 2  # Enough for both the first step and one that starts from a step: on a CPU each takes a full-size model half a minute.
AGAIN = "the sampling of this machine cannot be trusted: try another --dtype, and packages as pinned in requirements.txt"


@dataclass
class Looked:
    """A substrate with what several checks compare, each made once: runs of `STEPS` steps from the same latent."""

    substrate: Any

    @cached_property
    def ours(self) -> list[Any]:
        """The steps of memlib's own run."""
        states = encode_prompts(self.substrate, [SENTENCE]).states
        noise = initial_latents([0], self.substrate.latent_shape)
        return list(trajectory(self.substrate, states, uncond_states(self.substrate), noise, STEPS, 7.5))

    @cached_property
    def theirs(self) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Of diffusers' own run: the first prediction, unconditional and conditional, the last latents, and the picture, 0 to 255."""
        return self._diffusers("np")

    @cached_property
    def mitigated(self) -> torch.Tensor:
        """The last latents of diffusers' own run with half of the padding masked."""
        with mitigate(self.substrate.pipe, "pad-mask", fraction=0.5):
            return self._diffusers("latent")[1]

    def _diffusers(self, output: str) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        seen: list[torch.Tensor] = []
        last: list[torch.Tensor] = []

        def keep(module: Any, inputs: Any, output: Any) -> None:
            seen.append(output[0].float().cpu())

        def step(pipe: Any, index: int, time: Any, values: dict) -> dict:
            last[:] = [values["latents"].float().cpu()]
            return {}

        substrate, pipe = self.substrate, self.substrate.pipe
        hook = substrate.unet.register_forward_hook(keep)
        before, pipe.scheduler = pipe.scheduler, substrate.scheduler("ddim", STEPS)
        try:
            latents = initial_latents([0], substrate.latent_shape).to(substrate.device, substrate.dtype)
            told = {"num_inference_steps": STEPS, "guidance_scale": 7.5, "output_type": output, "callback_on_step_end": step}
            made = pipe(SENTENCE, latents=latents, **told).images[0]
        finally:
            hook.remove()
            pipe.scheduler = before
        return seen[0], last[0], np.asarray(made) * 255 if output == "np" else np.empty(0)


def tokens(looked: Looked) -> Check:
    """The vocabulary is CLIP's, and a mark inside a prompt becomes what it does in the version."""
    substrate = looked.substrate
    found = tokenize(substrate.tokenizer, [SENTENCE, "!"])
    ids, mark = tuple(found.ids[0, : len(IDS)].tolist()), int(found.ids[1, 1])
    detail = f"{SENTENCE!r} is {list(ids)}, '!' is {mark}"
    return Check("token ids", ids == IDS and mark == MARK.get(substrate.pad_id, 256), detail, "download the folder tokenizer again")


def padding(looked: Looked) -> Check:
    """Padding is that of the version, the other one changes the states behind ``<eot>`` alone."""
    substrate = looked.substrate
    known = KNOWN.get(substrate.name, (None,))[0]
    own = encode_prompts(substrate, [SENTENCE])
    other = encode_prompts(substrate, [SENTENCE], "!" if substrate.pad_id == PADDINGS["eot"] else "eot")
    apart = (own.states - other.states).abs().amax(-1)[0]
    before, behind = float(apart[: len(IDS)].max()), float(apart[len(IDS) :].max())
    right = substrate.pad_id == known if known is not None else substrate.pad_id in PADDINGS.values()
    loose = 10 * TOLERANCE[substrate.dtype] * float(own.states.abs().mean())
    detail = f"id {substrate.pad_id}; other padding changes states up to <eot> by {before:.1e}, behind it by {behind:.2g}"
    return Check("padding", right and before <= loose < behind, detail, "download the folders tokenizer and text_encoder of the same model again")


def text_states(looked: Looked) -> Check:
    """Text states are those of the pipeline's own encoding."""
    substrate = looked.substrate
    expected = substrate.pipe.encode_prompt(SENTENCE, substrate.device, 1, False)[0].float().cpu()
    apart = relative(encode_prompts(substrate, [SENTENCE]).states, expected)
    return Check("text states", apart <= TOLERANCE[substrate.dtype], f"differ from diffusers' by {apart:.1e}", AGAIN)


def schedule(looked: Looked) -> Check:
    """The noise schedule and what the U-Net predicts are those of the version."""
    substrate = looked.substrate
    kind, last = substrate.prediction_type, float(substrate.scheduler("ddim", STEPS).alphas_cumprod[-1])
    wanted = KNOWN.get(substrate.name, (None, None))[1]
    right = wanted in (None, kind) and abs(last - LAST_ALPHA) < 5e-5
    return Check("schedule", right, f"predicts {kind}, last alpha {last:.5f}", "download the folder scheduler again")


def predictions(looked: Looked) -> Check:
    """Both predictions of the first step, from a fixed latent, are those that diffusers' own pipeline makes."""
    first = looked.ours[0]
    apart = relative(torch.cat([first.noise_uncond, first.noise_cond]).cpu(), looked.theirs[0])
    return Check("first step", apart <= TOLERANCE[looked.substrate.dtype], f"predictions differ from diffusers' by {apart:.1e}", AGAIN)


def pictures(looked: Looked) -> Check:
    """A guided run of two steps gives diffusers' picture, and it is a picture."""
    ours = decode(looked.substrate, looked.ours[-1].next_latents)[0].astype(float)
    apart, spread = float(np.abs(ours - looked.theirs[2]).mean()), float(ours.std())
    limit = 255 * TOLERANCE[looked.substrate.dtype]
    detail = f"{STEPS} steps differ from diffusers' by {apart:.2f} of 255 levels; spread {spread:.0f}"
    return Check("picture", apart <= limit and spread > 5, detail, AGAIN if apart > limit else "download the folders unet and vae again")


def mitigated(looked: Looked) -> Check:
    """A mitigation put into the pipeline changes what it makes, and leaves nothing behind."""
    apart = relative(looked.mitigated, looked.theirs[1])
    left = "encode_prompt" in looked.substrate.pipe.__dict__
    detail = f"half of the padding masked changes the latents of {STEPS} steps by {apart:.1%}"
    return Check("mitigation", apart > TOLERANCE[looked.substrate.dtype] and not left, detail, "the text has no effect here: download unet again")


def copies(looked: Looked) -> Check:
    """The copy metric calls a compressed cut-out of a picture a copy, and another picture none."""
    [chosen] = [found for found in map(metric, looked.substrate.data.metrics) if found.role == "copy"]
    if not (at_hand := metric_at_hand(chosen)).holds:
        return replace(at_hand, name="copy metric")
    measure = chosen.make({}, looked.substrate.device, None)
    names = load_prompts("minisd-duplicated").table["training_picture"][:2]
    side = looked.substrate.resolution
    first, second = (np.array(Image.fromarray(training_pictures(name)[0]).resize((side, side), Image.Resampling.BICUBIC)) for name in names)
    same, other = float(measure.similarity(first, changed(first))), float(measure.similarity(first, second))
    detail = f"{measure.name}: a changed copy {same:.2f}, another picture {other:.2f}, threshold {measure.threshold:.2f}"
    return Check("copy metric", same >= measure.threshold > other, detail, "fetch its weights again, with packages as pinned in requirements.txt")


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


CHECKS: tuple[Callable[[Looked], Check], ...] = (tokens, schedule, padding, text_states, predictions, pictures, mitigated, copies)


def check(substrate: Any, say: Callable[[str], None] = print) -> list[Check]:
    """Look at every fact in turn; one that cannot be looked at is reported as such, and the others go on."""
    found, looked = [], Looked(substrate)
    for look in CHECKS:
        try:
            found.append(look(looked))
        except NotMeasured as error:
            found.append(Check(look.__name__, None, str(error)))
        except (InputError, RuntimeError, ValueError, TypeError) as error:
            found.append(Check(look.__name__, False, f"{type(error).__name__}: {error}"))
        say(str(found[-1]))
    return found
