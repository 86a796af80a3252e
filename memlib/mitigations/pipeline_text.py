"""How a diffusers pipeline reads its prompts: which CLIP text encoders it has, and which pipelines are refused, with the reason.

Stable Diffusion 1.x and 2.x read a prompt with one encoder. Stable Diffusion XL reads it with two, whose penultimate states lie side by side in
each of the 77 positions; each has a tokenizer, and so a padding token, of its own. The projection of the second encoder's last ``<eot>`` state, the
pooled embedding, goes into the U-Net apart from them, beside the time.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from memlib.base.errors import InputError
from memlib.mitigations.pipeline_parts import standing_in
from memlib.prompts.embedding import CONTEXT_LENGTH, Tokens

NEEDED = {"prompt", "device", "num_images_per_prompt", "do_classifier_free_guidance", "negative_prompt", "prompt_embeds"}
POOLED = "pooled_prompt_embeds"
CLIP = "clip_text_model"  # what the configuration of a CLIP text encoder calls itself, in whatever a model is wrapped


@dataclass(frozen=True)
class Reader:
    """One text encoder of a pipeline, by the names of its parts, and the argument of `encode_prompt` that its texts come in."""

    pipe: Any
    argument: str
    tokenizer_name: str
    encoder_name: str

    @property
    def tokenizer(self) -> Any:
        return getattr(self.pipe, self.tokenizer_name)

    @property
    def width(self) -> int:
        """Values of its states at a position."""
        return getattr(self.pipe, self.encoder_name).config.hidden_size

    @contextmanager
    def padded(self, tokens: Tokens, padding: str) -> Iterator[None]:
        """Let the encoder read the prompts of `tokens` with another padding token, in calls of this pipeline."""
        padded = tokens.repad(padding, self.tokenizer).ids

        def swapped(encoder: Any, *args: Any, **kwargs: Any) -> Any:
            ids: Tensor = args[0] if args else kwargs["input_ids"]
            if ids.shape != padded.shape:
                raise InputError(
                    f"This pipeline encodes ids of shape {tuple(ids.shape)} where {tuple(padded.shape)} are expected, so that which of them are "
                    "padding cannot be told."
                )
            ids = padded.to(ids.device)
            return encoder(ids, *args[1:], **kwargs) if args else encoder(**{**kwargs, "input_ids": ids})

        with standing_in(self.pipe, self.encoder_name, swapped):
            yield


def readers_of(pipe: Any) -> tuple[Reader, ...]:
    """The text encoders of a pipeline in the order in which their states lie side by side: one, or two in Stable Diffusion XL.

    Raises InputError, with the reason, for every other pipeline.
    """
    encode = getattr(pipe, "encode_prompt", None)
    known = set(inspect.signature(encode).parameters) if callable(encode) else set()
    both = POOLED in known
    readers = [Reader(pipe, "prompt", "tokenizer", "text_encoder"), *([Reader(pipe, "prompt_2", "tokenizer_2", "text_encoder_2")] if both else [])]
    # The refiner of Stable Diffusion XL has the second one alone, which then reads the first text.
    readers = [r for r in readers if not (both and getattr(pipe, r.encoder_name, None) is None)]
    if reason := _other_text(pipe, readers) or ("" if known >= NEEDED else "has no encode_prompt that gives the states which its U-Net reads"):
        raise InputError(
            f"{type(pipe).__name__} {reason}: mitigations are put into pipelines with the text path of Stable Diffusion 1.x, 2.x or XL (CLIP text encoders, "
            "whose states a U-Net reads by cross-attention)."
        )
    if both and len(readers) == 1:
        readers = [Reader(pipe, "prompt", readers[0].tokenizer_name, readers[0].encoder_name)]
    for reader in readers:
        if (length := reader.tokenizer.model_max_length) != CONTEXT_LENGTH:
            # Diffusers pads to this number: without one, it cannot encode a prompt either.
            raise InputError(
                f"The {reader.tokenizer_name} of this pipeline says that it reads {length} tokens, and mitigations work on {CONTEXT_LENGTH}: where it says so "
                f"only because its files name no length, set pipe.{reader.tokenizer_name}.model_max_length = {CONTEXT_LENGTH}."
            )
    return tuple(readers)


def _other_text(pipe: Any, readers: list[Reader]) -> str:
    """What stands against mitigating the text of a pipeline: empty where nothing does."""
    names = [name for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4") if getattr(pipe, name, None) is not None]
    kinds = {name: getattr(getattr(getattr(pipe, name), "config", None), "model_type", CLIP) for name in names}
    if foreign := [f"{type(getattr(pipe, name)).__name__} ({name})" for name in names if kinds[name] != CLIP]:
        return (
            f"reads its prompts with {', '.join(foreign)}, and edits of padding and <eot> mean something in CLIP's causal encoder alone, where the padding "
            "follows from the text and changes nothing before it"
        )
    if getattr(pipe, "unet", None) is None:
        return "has no U-Net that reads the text by cross-attention; another network takes it in"
    if not readers or any(getattr(pipe, part, None) is None for r in readers for part in (r.tokenizer_name, r.encoder_name)):
        return "has no text encoder with a tokenizer of its own: what conditions its U-Net is not a prompt's states"
    if extra := set(names) - {r.encoder_name for r in readers}:
        return f"has another text encoder ({', '.join(sorted(extra))}) whose states are not among those that encode_prompt takes"
    return ""
