"""Mitigations in anyone's diffusers pipeline: one call, undone exactly.

    import memlib

    with memlib.mitigate(pipe, "pad-swap"):
        picture = pipe("a prompt").images[0]

Only the pipeline object's `encode_prompt` is wrapped, and it goes on doing the encoding: LoRA weights and scales, textual
inversion, `clip_skip`, half precision and offloading act as they do without. (For `clip_skip`, diffusers up to 0.42.1 looks for the text encoder's
last norm where transformers from 5.6 on no longer has it; a call that asks for it is refused with the line that helps.) Scheduler, VAE and the negative or
unconditional embedding are left alone, and so is the U-Net, except where a mitigation changes guidance: then what it gives to this
pipeline is changed while it denoises (`memlib.mitigations.pipeline_guidance`). Parts that other pipelines share are not touched. It works with every
pipeline that has the text path of Stable Diffusion 1.x, 2.x or XL: text to image, image to image, inpainting, ControlNet, AnimateDiff.

In Stable Diffusion XL the states of each of the two text encoders are edited by that encoder's own tokens and padding token. The pooled embedding is
left as the pipeline makes it: it is read at the second encoder's first ``<eot>``, before all padding, so that another padding or zeros in it do not
reach it; and where the ``<eot>`` *states* are set to zero, it stays, since the method is about what cross-attention reads, and a pooled embedding
of zeros is what this model has learnt as no prompt at all. A prompt whose text is changed has the pooled embedding of its new text. Sizes and
cropping (the added time ids) are no part of the text, and no edit sees them.
"""

from __future__ import annotations

import inspect
import re
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from memlib.base.errors import InputError
from memlib.mitigations.base import Mitigation, get
from memlib.mitigations.pipeline_guidance import GuidedLoop, guides, refuse_other_loops
from memlib.mitigations.pipeline_text import POOLED, Reader, readers_of
from memlib.prompts.embedding import CONTEXT_LENGTH, MAX_PROMPT_TOKENS, Tokens, tokenize, tokens_of_ids

# Whatever the usual syntaxes take out of a text: fox++, ((fox)), [fox], {fox}, (a fox)1.2, (fox:1.2), ("a fox", "a cat").blend(1, 1), <lora:fox:1>, BREAK.
WEIGHTED = re.compile(r"[(){}<\[\]]|\w[+-]+(?=\s|[,.]|$)|\b(BREAK|AND)\b")
SAME = 0.05  # States nearer to each other, as a share of their length, than ids one place apart make them.
Texts = str | Sequence[str]


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
        self.pipe, self.mitigation, self._readers = pipe, mitigation, _checked(pipe, mitigation)
        self.remark = _remark(mitigation, self._readers)
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

    def embed(self, prompts: Texts, clip_skip: int | None = None, prompts_2: Texts | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Return the mitigated embeddings [N, 77, d] of prompts on the pipeline's device, to be passed as `prompt_embeds`.

        For Stable Diffusion XL, whose second encoder may be given other texts (`prompts_2`), a pair: what to pass as `prompt_embeds`
        [N, 77, 2048] and as `pooled_prompt_embeds` [N, 1280].
        """
        texts = self._rewritten(self._texts(prompts, prompts_2))
        made = self._plain(texts, clip_skip)
        states = self._edit(made["prompt_embeds"], texts, clip_skip)
        return (states, made[POOLED]) if POOLED in made else states

    def edit(
        self, prompt_embeds: Tensor, prompts: Texts | Tensor, clip_skip: int | None = None, prompts_2: Texts | Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the given embeddings [N, 77, d] (weighted, for instance) mitigated, to be passed as `prompt_embeds`.

        `prompts` are the texts that they belong to, as they were encoded, or the token ids [N, 77] that were: they say which states are
        padding. Where something else parsed the texts (``fox++``, ``(fox:1.2)``), the ids alone do. `prompts_2` are those of Stable Diffusion XL's
        second encoder where they differ. Another padding token replaces the
        padding states by those of encoding the plain text, and leaves the given states of the prompt in place, since
        what comes before the padding does not depend on it. Make this the last change: the pipeline
        takes the tensor returned here, and no copy of it. Raises InputError for shapes that do not fit, for texts with marks of
        weights that were not encoded as they stand, and for a mitigation that changes the text.
        """
        if self.mitigation.rewrites:
            raise InputError(f"{self.mitigation.name} changes the text of prompts and not given prompt_embeds: use embed(prompts).")
        return self._edit(prompt_embeds, self._texts(prompts, prompts_2), clip_skip)

    def _edit(self, prompt_embeds: Tensor, texts: dict[str, Any], clip_skip: int | None) -> Tensor:
        tokens = self._tokens(texts)
        if tuple(prompt_embeds.shape[:2]) != (len(tokens[0]), CONTEXT_LENGTH):
            raise InputError(
                f"prompt_embeds of shape {tuple(prompt_embeds.shape)} do not fit {len(tokens[0])} prompts: they must be "
                f"[{len(tokens[0])}, {CONTEXT_LENGTH}, width]; longer ones, of several chunks, cannot be mitigated."
            )
        plain = {reader.argument: list(own.prompts) for reader, own in zip(self._readers, tokens, strict=True)}
        if not isinstance(texts["prompt"], Tensor):
            self._check_marks(prompt_embeds, tokens, plain, clip_skip)
        states = prompt_embeds
        if self.mitigation.padding is not None:
            with self._other_padding(tokens):
                swapped = self._plain(plain, clip_skip)["prompt_embeds"]
            given = zip(self._apart(swapped), self._apart(prompt_embeds.to(swapped)), tokens, strict=True)
            states = torch.cat([new.where(own.pad.to(new.device)[..., None], old) for new, old, own in given], -1)
        return self._seal(self._edited_states(states, tokens))

    def _apart(self, states: Tensor) -> Sequence[Tensor]:
        """The states of each text encoder."""
        return states.split([reader.width for reader in self._readers], -1) if len(self._readers) > 1 else [states]

    def _edited_states(self, states: Tensor, tokens: list[Tokens]) -> Tensor:
        edited = [self.mitigation.edit(own, of) for own, of in zip(self._apart(states), tokens, strict=True)]
        return torch.cat(edited, -1) if len(edited) > 1 else edited[0]

    def _check_marks(self, prompt_embeds: Tensor, tokens: list[Tokens], texts: dict[str, Any], clip_skip: int | None) -> None:
        """Refuse states of texts with marks of weights whose padding is not where these texts, read as they stand, have it."""
        marked = [torch.tensor([bool(WEIGHTED.search(prompt)) for prompt in own.prompts]) for own in tokens]
        if not any(rows.any() for rows in marked):
            return
        plain = self._plain(texts, clip_skip)["prompt_embeds"]
        for right, given, own, rows in zip(self._apart(plain), self._apart(prompt_embeds.to(plain)), tokens, marked, strict=True):
            apart = (right - given).float().norm(dim=-1) > SAME * right.float().norm(dim=-1)
            for row in (apart.cpu() & (own.pad | own.eot) & rows[:, None]).any(1).nonzero().flatten().tolist():
                raise InputError(
                    f"The states of {own.prompts[row]!r} are not those of this text as it stands, which has marks of weights, so that their padding "
                    f"cannot be told: pass the token ids [N, {CONTEXT_LENGTH}] that were encoded in place of the text."
                )

    def _texts(self, prompts: Any, prompts_2: Any) -> dict[str, Any]:
        if prompts_2 is not None and len(self._readers) == 1:
            raise InputError(f"{type(self.pipe).__name__} reads its prompts with one text encoder: leave prompts_2 out.")
        return {"prompt": prompts, "prompt_2": prompts_2}

    def _rewritten(self, given: dict[str, Any]) -> dict[str, Any]:
        """The texts of an encoding, each changed for the encoder that reads it; where the second one reads the first text, it goes on doing so."""

        def changed(texts: Texts, tokenizer: Any) -> Texts:
            return self.mitigation.rewrite(texts, tokenizer) if isinstance(texts, str) else [self.mitigation.rewrite(text, tokenizer) for text in texts]

        texts = {reader: given.get(reader.argument) for reader in self._readers}
        return {reader.argument: changed(own, reader.tokenizer) if own or reader is self._readers[0] else None for reader, own in texts.items()}

    def _seal(self, states: Tensor) -> Tensor:
        states = states.clone()
        self._edited = [known for known in self._edited if known() is not None] + [weakref.ref(states)]
        return states

    @torch.no_grad()
    def _plain(self, texts: dict[str, Any], clip_skip: int | None) -> dict[str, Tensor]:
        self._refuse_skip(clip_skip)
        options: dict[str, Any] = {"clip_skip": clip_skip} if "clip_skip" in self._signature.parameters else {}
        options["device"] = getattr(self.pipe, "_execution_device", None) or self.pipe.device
        return self._conditional({**texts, **options})

    def _refuse_skip(self, clip_skip: int | None) -> None:
        # Stable Diffusion XL takes an earlier state as it is, without the last norm.
        if clip_skip is not None and POOLED not in self._signature.parameters and not hasattr(self.pipe.text_encoder, "text_model"):
            raise InputError(
                "clip_skip does not work with these versions of diffusers and transformers, with a mitigation or without: diffusers looks for the text "
                "encoder's last norm inside `text_model`; leave it out, or say first vars(pipe.text_encoder)['text_model'] = pipe.text_encoder."
            )

    def _conditional(self, call: dict[str, Any]) -> dict[str, Tensor]:
        """What an encoding gives for the prompts alone, each once: their states, and the pooled embedding where there is one."""
        alone = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False, "negative_prompt": None, "negative_prompt_embeds": None}
        return dict(zip(("prompt_embeds", POOLED), self._original(**{**call, **alone})[::2], strict=False))

    def _tokens(self, texts: dict[str, Any]) -> list[Tokens]:
        """The tokens that each text encoder reads."""
        found = []
        for place, reader in enumerate(self._readers):
            own = texts.get(reader.argument)
            own = texts["prompt"] if own is None or len(own) == 0 else own
            read = tokens_of_ids(own, reader.tokenizer) if isinstance(own, Tensor) else tokenize(reader.tokenizer, own)
            found.append(replace(read, encoder=place))
        if self.mitigation.needs_padding and any(bool((tokens.lengths == MAX_PROMPT_TOKENS).any()) for tokens in found):
            warnings.warn(
                f"A prompt fills all {MAX_PROMPT_TOKENS} positions and leaves no padding: {self.mitigation.name} does to it {self.mitigation.full_prompt}.",
                stacklevel=4,
            )
        return found

    def _other_padding(self, tokens: list[Tokens]) -> ExitStack:
        """Let the text encoders read the mitigation's padding token, if it has one, in place of their own, in calls of this pipeline."""
        with ExitStack() as stack:
            for reader, own in zip(self._readers, tokens, strict=True):
                if self.mitigation.padding is not None:
                    stack.enter_context(reader.padded(own, self.mitigation.padding))
            return stack.pop_all()

    def _encode_prompt(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
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
        call = {**call, **self._rewritten(call)}
        tokens = self._tokens(call)
        with self._other_padding(tokens):
            made = self._conditional(call)
        # The second call repeats each prompt's states for its pictures and encodes the negative prompt.
        return self._original(**{**call, **made, "prompt_embeds": self._edited_states(made["prompt_embeds"], tokens)})


def mitigate(pipe: Any, name: str | Mitigation, **params: Any) -> Mitigated:
    """Put a mitigation in place on a diffusers pipeline and return its handle (`undo()`, or use it in ``with``).

    `name` is a key of `memlib.mitigations.REGISTRY` or a mitigation, `params` are its parameters
    (``memlib.mitigate(pipe, "pad-mask", fraction=0.5)``). A prompt of 75 tokens or more leaves no padding: a
    warning says what the mitigation then does (`full_prompt`). Raises InputError for an unknown name or parameter, a pipeline
    without the text path of Stable Diffusion 1.x, 2.x or XL, one that is mitigated already, a mitigation that acts elsewhere than on
    embedding and guidance, and, when the pipeline is called, a guidance_scale of 1 or less where guidance is to be changed.
    Source: `clip` Section 4.2; `basin` Section 5.
    """
    mitigation = name.with_params(**params) if isinstance(name, Mitigation) else get(name, **params)
    return Mitigated(pipe, mitigation)


def _checked(pipe: Any, mitigation: Mitigation) -> tuple[Reader, ...]:
    """The text encoders of a pipeline that this mitigation can be put into; raises InputError for any other."""
    if (earlier := getattr(getattr(pipe, "encode_prompt", None), "mitigated", None)) is not None:
        raise InputError(f"This pipeline is mitigated by {earlier.mitigation.name!r} already: undo that first.")
    readers = readers_of(pipe)
    if mitigation.sampled:
        only = f"{mitigation.name} acts while sampling and not on embedding and guidance alone"
        if any(reader.encoder_name != "text_encoder" for reader in readers):
            raise InputError(f"{only}, and memlib itself samples Stable Diffusion 1.x and 2.x: it cannot be had for {type(pipe).__name__}.")
        raise InputError(f"{only}: sample with memlib.experiment.run or memlib.sampling.stored.")
    if guides(mitigation):
        refuse_other_loops(pipe, mitigation)
    return readers


def _remark(mitigation: Mitigation, readers: Sequence[Reader]) -> str:
    """Where the mitigation does less than its name says on this pipeline, in a sentence; else empty."""
    less = [reader for reader in readers if mitigation.remark(reader.tokenizer)]
    if len(less) in (0, len(readers)):
        return mitigation.remark(readers[0].tokenizer)
    others = ", ".join(reader.encoder_name for reader in readers if reader not in less)
    return f"The prompt's padding in {less[0].encoder_name} is {mitigation.padding!r} already, so {mitigation.name} changes that of {others} alone."
