"""Mitigations in anyone's diffusers pipeline: one call, undone exactly.

    import memlib

    with memlib.mitigate(pipe, "pad-swap"):
        picture = pipe("a prompt").images[0]

Only the pipeline object's `encode_prompt` is wrapped, and it goes on doing the encoding: LoRA weights and scales, textual
inversion, `clip_skip`, half precision and offloading act as they do without. (For `clip_skip`, diffusers up to 0.42.1 looks for the text encoder's
last norm where transformers from 5.6 on no longer has it; a call that asks for it is refused with the line that helps.) Scheduler, VAE and the negative or
unconditional embedding are left alone, and so is the U-Net, except where a mitigation changes guidance: then what it gives to this
pipeline is changed while it denoises (`memlib.mitigations.pipeline_guidance`). Parts that other pipelines share are not touched. It works with every
pipeline that has the text path of Stable Diffusion 1.x and 2.x: text to image, image to image, inpainting, ControlNet, AnimateDiff.
"""

from __future__ import annotations

import inspect
import re
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from memlib.base.errors import InputError
from memlib.mitigations.base import Mitigation, get
from memlib.mitigations.pipeline_guidance import GuidedLoop, guides, refuse_other_loops
from memlib.mitigations.pipeline_parts import standing_in
from memlib.prompts.embedding import CONTEXT_LENGTH, MAX_PROMPT_TOKENS, Tokens, tokenize, tokens_of_ids

# How the usual syntaxes mark weights in a text: fox++, (a fox)1.2, (fox:1.2).
WEIGHTED = re.compile(r"[\w)]([+-]{1,})(?=\s|[,.]|$)|\)\s*\d*\.\d|:\s*\d*\.?\d+\s*[)\]]")
SAME = 0.05  # States nearer to each other, as a share of their length, than ids one place apart make them.

NEEDED = ("prompt", "device", "num_images_per_prompt", "do_classifier_free_guidance", "negative_prompt", "prompt_embeds")


class _Replaced:
    """One method of a pipeline object, replaced by a function of `owner` until `restore`."""

    def __init__(self, pipe: Any, name: str, function: Callable[..., Any], owner: Mitigated):
        self.pipe, self.name, self.owner = pipe, name, owner
        self._own = pipe.__dict__.get(name)

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        stand_in.mitigated = owner
        setattr(pipe, name, stand_in)

    def in_place(self) -> bool:
        return getattr(self.pipe.__dict__.get(self.name), "mitigated", None) is self.owner

    def restore(self) -> None:
        if self._own is None:
            del self.pipe.__dict__[self.name]
        else:
            self.pipe.__dict__[self.name] = self._own


class Mitigated:
    """A mitigation in place on a pipeline: `undo()` takes it away, and so does leaving it as a context manager.

    `remark` says where the mitigation does less than its name on this pipeline (empty otherwise).
    """

    def __init__(self, pipe: Any, mitigation: Mitigation):
        _refuse(pipe, mitigation)
        self.pipe, self.mitigation = pipe, mitigation
        self.remark = mitigation.remark(pipe.tokenizer)
        if self.remark:
            warnings.warn(self.remark, stacklevel=3)
        self._original = pipe.encode_prompt
        self._signature = inspect.signature(self._original)
        self._edited: list[weakref.ref] = []
        self._edits = mitigation.padding is not None or mitigation.rewrites or type(mitigation).edit is not Mitigation.edit
        self._loop = GuidedLoop(pipe, mitigation, pipe.progress_bar) if guides(mitigation) else None
        self._replaced = [_Replaced(pipe, "encode_prompt", self._encode_prompt, self)]
        if self._loop is not None:
            self._replaced.append(_Replaced(pipe, "progress_bar", self._loop.progress_bar, self))

    def __enter__(self) -> Mitigated:
        return self

    def __exit__(self, *error: Any) -> None:
        self.undo()

    def undo(self) -> None:
        """Put the pipeline back as it was; a second call does nothing."""
        for method in self._replaced:
            if not method.in_place():
                raise InputError(
                    f"{method.name} of this pipeline was replaced after {self.mitigation.name!r} was put in place: undo the later replacement first."
                )
        if self._loop is not None:
            self._loop.stop()
        while self._replaced:
            self._replaced.pop().restore()

    def embed(self, prompts: str | Sequence[str], clip_skip: int | None = None) -> Tensor:
        """Return the mitigated embeddings [N, 77, d] of prompts on the pipeline's device, to be passed as `prompt_embeds`."""
        prompts = self._rewritten(prompts)
        return self._edit(self._plain(prompts, clip_skip), prompts, clip_skip)

    def edit(self, prompt_embeds: Tensor, prompts: str | Sequence[str] | Tensor, clip_skip: int | None = None) -> Tensor:
        """Return the given embeddings [N, 77, d] (weighted, for instance) mitigated, to be passed as `prompt_embeds`.

        `prompts` are the texts that they belong to, as they were encoded, or the token ids [N, 77] that were: they say which states are
        padding. Where something else parsed the texts (``fox++``, ``(fox:1.2)``), the ids alone do. Another padding token replaces the
        padding states by those of encoding the plain text, and leaves the given states of the prompt in place, since
        what comes before the padding does not depend on it. Make this the last change: the pipeline
        takes the tensor returned here, and no copy of it. Raises InputError for shapes that do not fit, for texts with marks of
        weights that were not encoded as they stand, and for a mitigation that changes the text.
        """
        if self.mitigation.rewrites:
            raise InputError(f"{self.mitigation.name} changes the text of prompts and not given prompt_embeds: use embed(prompts).")
        return self._edit(prompt_embeds, prompts, clip_skip)

    def _edit(self, prompt_embeds: Tensor, prompts: str | Sequence[str] | Tensor, clip_skip: int | None) -> Tensor:
        tokens = self._tokens(prompts)
        if tuple(prompt_embeds.shape[:2]) != (len(tokens), CONTEXT_LENGTH):
            raise InputError(
                f"prompt_embeds of shape {tuple(prompt_embeds.shape)} do not fit {len(tokens)} prompts: they must be "
                f"[{len(tokens)}, {CONTEXT_LENGTH}, width]; longer ones, of several chunks, cannot be mitigated."
            )
        states = prompt_embeds
        if not isinstance(prompts, Tensor):
            self._check_marks(prompt_embeds, tokens, clip_skip)
        if self.mitigation.padding is not None:
            with self._other_padding(tokens):
                swapped = self._plain(tokens.prompts, clip_skip)
            states = swapped.where(tokens.pad.to(swapped.device)[..., None], prompt_embeds.to(swapped))
        return self._seal(self.mitigation.edit(states, tokens))

    def _check_marks(self, prompt_embeds: Tensor, tokens: Tokens, clip_skip: int | None) -> None:
        """Refuse states of texts with marks of weights whose padding is not where these texts, read as they stand, have it."""
        marked = torch.tensor([bool(WEIGHTED.search(prompt)) for prompt in tokens.prompts])
        behind = (tokens.pad | tokens.eot) & marked[:, None]
        if not behind.any():
            return
        plain = self._plain(tokens.prompts, clip_skip)
        apart = (plain - prompt_embeds.to(plain)).float().norm(dim=-1) > SAME * plain.float().norm(dim=-1)
        for row in (apart.cpu() & behind).any(1).nonzero().flatten().tolist():
            raise InputError(
                f"The states of {tokens.prompts[row]!r} are not those of this text as it stands, which has marks of weights, so that their padding "
                f"cannot be told: pass the token ids [N, {CONTEXT_LENGTH}] that were encoded in place of the text."
            )

    def _rewritten(self, prompts: str | Sequence[str]) -> str | list[str]:
        rewrite = self.mitigation.rewrite
        if isinstance(prompts, str):
            return rewrite(prompts, self.pipe.tokenizer)
        return [rewrite(prompt, self.pipe.tokenizer) for prompt in prompts]

    def _seal(self, states: Tensor) -> Tensor:
        states = states.clone()
        self._edited = [known for known in self._edited if known() is not None] + [weakref.ref(states)]
        return states

    @torch.no_grad()
    def _plain(self, prompts: str | Sequence[str], clip_skip: int | None) -> Tensor:
        self._refuse_skip(clip_skip)
        options = {"clip_skip": clip_skip} if "clip_skip" in self._signature.parameters else {}
        prompts = prompts if isinstance(prompts, str) else list(prompts)
        device = getattr(self.pipe, "_execution_device", None) or self.pipe.device
        return self._original(prompts, device, 1, False, **options)[0]

    def _refuse_skip(self, clip_skip: int | None) -> None:
        if clip_skip is not None and not hasattr(self.pipe.text_encoder, "text_model"):
            raise InputError(
                "clip_skip does not work with these versions of diffusers and transformers, with a mitigation or without: diffusers looks for the text "
                "encoder's last norm inside `text_model`; leave it out, or say first vars(pipe.text_encoder)['text_model'] = pipe.text_encoder."
            )

    def _tokens(self, prompts: str | Sequence[str] | Tensor) -> Tokens:
        tokenizer = self.pipe.tokenizer
        tokens = tokens_of_ids(prompts, tokenizer) if isinstance(prompts, Tensor) else tokenize(tokenizer, prompts)
        if self.mitigation.needs_padding and bool((tokens.lengths == MAX_PROMPT_TOKENS).any()):
            warnings.warn(
                f"A prompt fills all {MAX_PROMPT_TOKENS} positions and leaves no padding: {self.mitigation.name} does to it {self.mitigation.full_prompt}.",
                stacklevel=4,
            )
        return tokens

    @contextmanager
    def _other_padding(self, tokens: Tokens) -> Iterator[None]:
        """Let the text encoder read the mitigation's padding token in place of the pipeline's own, in calls of this pipeline."""
        padded = tokens.repad(self.mitigation.padding, self.pipe.tokenizer).ids

        def swapped(encoder: Any, *args: Any, **kwargs: Any) -> Any:
            ids = args[0] if args else kwargs["input_ids"]
            if tuple(ids.shape) != tuple(tokens.pad.shape):
                raise InputError(
                    f"This pipeline encodes ids of shape {tuple(ids.shape)} where {tuple(tokens.pad.shape)} are expected: "
                    f"{self.mitigation.name} cannot tell which of them are padding."
                )
            ids = padded.to(ids.device)
            return encoder(ids, *args[1:], **kwargs) if args else encoder(**{**kwargs, "input_ids": ids})

        with standing_in(self.pipe, "text_encoder", swapped):
            yield

    def _encode_prompt(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        call = self._signature.bind(*args, **kwargs).arguments
        self._refuse_skip(call.get("clip_skip"))
        if not self._edits:
            return self._original(**call)
        given = call.get("prompt_embeds")
        if given is not None:
            if not any(known() is given for known in self._edited):
                raise InputError(
                    f"{self.mitigation.name} cannot be applied to given prompt_embeds, which do not say where their padding is: "
                    "pass what edit(prompt_embeds, prompts) of the mitigated pipeline returns, or call undo() first."
                )
            return self._original(**call)
        call = {**call, "prompt": self._rewritten(call["prompt"])}
        tokens = self._tokens(call["prompt"])
        alone = {
            **call, "num_images_per_prompt": 1, "do_classifier_free_guidance": False,
            "negative_prompt": None, "negative_prompt_embeds": None,
        }  # fmt: skip
        if self.mitigation.padding is None:
            states = self._original(**alone)[0]
        else:
            with self._other_padding(tokens):
                states = self._original(**alone)[0]
        # The second call repeats each prompt's states for its pictures and encodes the negative prompt.
        return self._original(**{**call, "prompt_embeds": self.mitigation.edit(states, tokens)})


def mitigate(pipe: Any, name: str | Mitigation, **params: Any) -> Mitigated:
    """Put a mitigation in place on a diffusers pipeline and return its handle (`undo()`, or use it in ``with``).

    `name` is a key of `memlib.mitigations.REGISTRY` or a mitigation, `params` are its parameters
    (``memlib.mitigate(pipe, "pad-mask", fraction=0.5)``). A prompt of 75 tokens or more leaves no padding: a
    warning says what the mitigation then does (`full_prompt`). Raises InputError for an unknown name or parameter, a pipeline
    without the text path of Stable Diffusion 1.x/2.x, one that is mitigated already, a mitigation that acts elsewhere than on
    embedding and guidance, and, when the pipeline is called, a guidance_scale of 1 or less where guidance is to be changed.
    Source: `clip` Section 4.2; `basin` Section 5.
    """
    mitigation = name.with_params(**params) if isinstance(name, Mitigation) else get(name, **params)
    return Mitigated(pipe, mitigation)


def _refuse(pipe: Any, mitigation: Mitigation) -> None:
    encode = getattr(pipe, "encode_prompt", None)
    if (earlier := getattr(encode, "mitigated", None)) is not None:
        raise InputError(f"This pipeline is mitigated by {earlier.mitigation.name!r} already: undo that first.")
    known = inspect.signature(encode).parameters if callable(encode) else ()
    parts = [getattr(pipe, part, None) for part in ("tokenizer", "text_encoder")]
    if not set(NEEDED).issubset(known) or None in parts or hasattr(pipe, "text_encoder_2"):
        raise InputError(
            f"{type(pipe).__name__} does not have the text path of Stable Diffusion 1.x/2.x (one tokenizer, one CLIP text "
            f"encoder, encode_prompt), so {mitigation.name} cannot be put in place."
        )
    if pipe.tokenizer.model_max_length != CONTEXT_LENGTH:
        # Diffusers pads to this number: without one, it cannot encode a prompt either.
        raise InputError(
            f"The tokenizer of this pipeline says that it reads {pipe.tokenizer.model_max_length} tokens, and mitigations work on {CONTEXT_LENGTH}: "
            f"where it says so only because its files name no length, set pipe.tokenizer.model_max_length = {CONTEXT_LENGTH}."
        )
    if mitigation.sampled:
        raise InputError(
            f"{mitigation.name} acts while sampling and not on embedding and guidance alone: sample with memlib.experiment.run or memlib.sampling.stored."
        )
    if guides(mitigation):
        refuse_other_loops(pipe, mitigation)
