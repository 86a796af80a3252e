"""Whether the parts of a loaded pipeline fit each other, as far as their own configurations and the tokenizer can tell."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memlib.base.errors import InputError
from memlib.base.numbers import is_number, is_whole
from memlib.models.tokenizer import CONTEXT_LENGTH, MERGE_COUNT, VOCABULARY_SIZE

PREDICTIONS = ("epsilon", "v_prediction", "sample")
# Words and their ids in CLIP's vocabulary, which Stable Diffusion 1.x and 2.x share.
SPECIAL = (49_406, 49_407)  # of start and end
WORDS = {"a": 320, "photo": 1125, "of": 539, "cat": 2368, "dog": 1929, "red": 736}
# SHA-256 of CLIP's vocabulary and merges as `_rules` writes them (Radford et al. 2021).
CLIP_RULES = "2626c2978135e9281cf70ece70573216bc6446f310f14882a2d5b6dddf10d839"


def check_parts(folder: Path, pipe: Any) -> None:
    """Raise InputError, in one sentence, for a pipeline whose parts do not fit or that this project's sampling cannot run."""
    unet, vae, text = pipe.unet.config, pipe.vae.config, pipe.text_encoder.config
    if unet.in_channels != vae.latent_channels:
        raise InputError(
            f"{folder} has a U-Net with {unet.in_channels} input channels for latents of {vae.latent_channels}: inpainting and depth checkpoints "
            "are not supported."
        )
    if unet.out_channels != unet.in_channels:
        raise InputError(f"{folder} has a U-Net with {unet.in_channels} input and {unet.out_channels} output channels: both must be those of the latents.")
    width = unet.get("encoder_hid_dim") or unet.cross_attention_dim
    if any(each != text.hidden_size for each in ([width] if isinstance(width, int) else width)):
        raise InputError(f"{folder} has a text encoder of width {text.hidden_size} and a U-Net that reads {width}: take both from one pipeline.")
    for what in ("class_embed_type", "num_class_embeds", "addition_embed_type", "time_cond_proj_dim"):
        if unet.get(what) is not None:
            raise InputError(f"{folder} has a U-Net that asks for more than latents, time and text ({what}): such models are not supported.")
    if not (math.isfinite(vae.scaling_factor) and vae.scaling_factor > 0):
        raise InputError(f"{folder} has a VAE with the scaling factor {vae.scaling_factor!r}: a number above 0 is possible.")
    _check_tokenizer(folder, pipe.tokenizer, text)


def check_schedule(folder: Path, schedule: Mapping[str, Any]) -> None:
    """Raise InputError for a scheduler's configuration that no scheduler can be made from."""
    if not is_whole(schedule.get("num_train_timesteps", 1000), 1):
        raise InputError(f"{folder} has a scheduler of {schedule['num_train_timesteps']!r} training steps: a whole number from 1 on is possible.")
    if schedule.get("prediction_type", "epsilon") not in PREDICTIONS:
        raise InputError(f"{folder} has a scheduler for the prediction type {schedule['prediction_type']!r}: known are {', '.join(PREDICTIONS)}.")
    for name in ("beta_start", "beta_end"):
        if not (is_number(schedule.get(name, 0.01)) and 0 < schedule.get(name, 0.01) < 1):
            raise InputError(f"{folder} has a scheduler with a {name} of {schedule[name]!r}: a number between 0 and 1 is possible.")


def _check_tokenizer(folder: Path, tokenizer: Any, text: Any) -> None:
    """A tokenizer whose vocabulary or merges are missing or cut reads every word as unknown, or letter by letter, without a word."""
    again = "copy or download the tokenizer's files again"
    found = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in WORDS}
    if not all(found.values()) or len({tuple(ids) for ids in found.values()}) < len(WORDS):
        raise InputError(f"{folder} has a tokenizer that cannot tell {', '.join(WORDS)} apart: {again}.")
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    whole = tokenizer("a")["input_ids"]
    highest = max([*(max(ids) for ids in found.values()), *(number for number in special.values() if number is not None)])
    if highest >= text.vocab_size:
        raise InputError(f"{folder} has a tokenizer with the id {highest} and a text encoder with {text.vocab_size} entries: take both from one pipeline.")
    if None in special.values() or whole[0] != special["bos"] or special["eos"] not in whole[1:]:
        raise InputError(f"{folder} has a tokenizer that does not put its start and end around a prompt, or has no token to pad with: {again}.")
    vocabulary, merges = _model(tokenizer)
    entries = {*vocabulary.values(), *tokenizer.get_added_vocab().values()}
    if entries != set(range(len(entries))):
        raise InputError(f"{folder} has a tokenizer whose vocabulary lacks entries, {max(entries) + 1 - len(entries)} of {max(entries) + 1}: {again}.")
    if text.vocab_size - len(entries - {*vocabulary.values()}) != VOCABULARY_SIZE:
        return  # a vocabulary of its own
    if (len(vocabulary), len(merges)) != (VOCABULARY_SIZE, MERGE_COUNT):
        raise InputError(
            f"{folder} has a text encoder for CLIP's {VOCABULARY_SIZE:,} entries and {MERGE_COUNT:,} merges, and a tokenizer of {len(vocabulary):,} entries "
            f"and {len(merges):,} merges: {again}."
        )
    if any(found[word] != [number] for word, number in WORDS.items()) or (special["bos"], special["eos"]) != SPECIAL:
        raise InputError(f"{folder} has a tokenizer whose words are not those of CLIP's vocabulary, which its text encoder has: {again}.")


def _model(tokenizer: Any) -> tuple[dict[str, int], list[list[str]]]:
    """A tokenizer's vocabulary and merges, without tokens that were added to it."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return model.get("vocab") or {}, [pair if isinstance(pair, list) else pair.split(" ") for pair in model.get("merges", [])]


def _rules(tokenizer: Any) -> str:
    return hashlib.sha256(json.dumps(_model(tokenizer), sort_keys=True).encode()).hexdigest()


def with_tokenizer(weights: str, tokenizer: Any) -> str:
    """Return the hash of weights together with the tokenizer, where that is not the one that all published models share.

    CLIP's own leaves the hash as it is, with either padding: what it makes of a prompt is seen in the embedding.
    """
    rules = _rules(tokenizer)
    added = {str(token): number for token, number in tokenizer.get_added_vocab().items() if number >= VOCABULARY_SIZE}
    if rules == CLIP_RULES and not added and tokenizer.model_max_length == CONTEXT_LENGTH:
        return weights
    return hashlib.sha256(f"{weights} {rules} {sorted(added.items())} {tokenizer.model_max_length}".encode()).hexdigest()
