"""Checking, hashing and reading a diffusers folder of the Stable Diffusion 1.x / 2.x kind.

Everything that can be wrong with a folder is found here, before or while it is loaded, and ends in one
sentence. Weights are read from safetensors files only; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from memlib.base.errors import InputError
from memlib.base.paths import folder_from
from memlib.base.writing import write_text
from memlib.models.fitting import check_schedule

PARTS = {
    "tokenizer": ("tokenizer_config.json",),
    "text_encoder": ("config.json",),
    "unet": ("config.json",),
    "vae": ("config.json",),
    "scheduler": ("scheduler_config.json",),
}
WEIGHTED = ("text_encoder", "unet", "vae")
INCIDENTAL = ("torch_dtype", "dtype", "transformers_version", "architectures")
SHARD = re.compile(r"-\d{5}-of-(\d{5})")
HASH_CACHE_BYTES = 2**28  # Below this, hashing takes less than a second and is not remembered on disk.


def check_folder(folder: Path) -> str | None:
    """Raise InputError if `folder` is not a complete, sound SD 1.x/2.x checkpoint; return the weights' variant.

    The variant is None for ordinary files and "fp16" for a folder that has only half-precision ones.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(f"{folder} is not a diffusers checkpoint: it has no model_index.json, so give the folder of a Stable Diffusion 1.x or 2.x pipeline.")
    content = _read_json(index)
    kind = str(content.get("_class_name"))
    if "XL" in kind or "text_encoder_2" in content or (folder / "text_encoder_2").exists():
        raise InputError(f"{folder} holds a Stable Diffusion XL checkpoint: only Stable Diffusion 1.x and 2.x, with one text encoder, are supported.")
    if kind != "StableDiffusionPipeline":
        raise InputError(f"{folder} holds a {kind}: only folders of a StableDiffusionPipeline are supported.")
    for part, files in PARTS.items():
        for name in files:
            if not (folder / part / name).is_file():
                raise InputError(f"{folder} lacks a part: {part}/{name} is missing, so copy or download the folder again.")
    words = folder / "tokenizer"
    if not (words / "tokenizer.json").is_file() and (absent := [name for name in ("vocab.json", "merges.txt") if not (words / name).is_file()]):
        raise InputError(f"{folder} lacks a part: tokenizer/{absent[0]} is missing, so copy or download the folder again.")
    check_schedule(folder, _read_json(folder / "scheduler" / "scheduler_config.json"))
    variants = {part: _variant(folder, part) for part in WEIGHTED}
    variant = "fp16" if "fp16" in variants.values() else None
    for path in weight_files(folder, variant):
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is corrupt or incomplete ({error}): copy or download the file again.") from error
    return variant


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """Return the safetensors files of text encoder, U-Net and VAE that are read for a variant, sorted."""
    files = []
    for part in WEIGHTED:
        plain, half = _split_by_variant(folder / part)
        files += half if variant == "fp16" and half else plain
    return files


def weights_hash(folder: Path, variant: str | None = None) -> str:
    """Return a SHA-256 (64 hex digits) over the weights and the configurations of all weighted parts.

    Configurations count because the same weights with another number of heads or another VAE scaling
    give other pictures; version notes in them do not. Large files' hashes are remembered by path, size
    and time of change.
    """
    whole = hashlib.sha256()
    for path in weight_files(folder, variant):
        whole.update(f"{path.relative_to(folder)} {_file_hash(path)}\n".encode())
    for part in WEIGHTED:
        config = _read_json(folder / part / "config.json")
        kept = {name: value for name, value in config.items() if not name.startswith("_")}
        kept = {name: value for name, value in kept.items() if name not in INCIDENTAL}
        whole.update(json.dumps([part, kept], sort_keys=True).encode())
    return whole.hexdigest()


def read_pipeline(folder: Path, variant: str | None, dtype: torch.dtype) -> Any:
    """Load the folder as a `StableDiffusionPipeline` on the CPU, safety checker off.

    Raises InputError if weights are missing from a file or do not fit the configuration.
    """
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    try:
        with _silent_loading():
            # The text encoder is loaded apart because transformers fills missing weights at random with
            # no more than a warning.
            own = {part: variant if _split_by_variant(folder / part)[1] else None for part in WEIGHTED}
            text_encoder, info = CLIPTextModel.from_pretrained(
                folder / "text_encoder", variant=own["text_encoder"], dtype=dtype, use_safetensors=True,
                local_files_only=True, output_loading_info=True,
            )  # fmt: skip
            missing = sorted(key for key in info["missing_keys"] if not key.endswith("position_ids"))
            if missing:
                raise ValueError(f"weight {missing[0]} of text_encoder missing")
            if info["mismatched_keys"]:
                raise ValueError("a weight of text_encoder has another shape than its configuration says")
            # A part without the variant that another one has only: the pipeline would look for it in all of them.
            plain = {
                part: kind.from_pretrained(folder / part, dtype=dtype, use_safetensors=True, local_files_only=True)
                for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)) if own[part] != variant
            }  # fmt: skip
            pipe = StableDiffusionPipeline.from_pretrained(
                folder, text_encoder=text_encoder, **plain, variant=variant, dtype=dtype, use_safetensors=True,
                local_files_only=True, safety_checker=None, feature_extractor=None,
                requires_safety_checker=False,
            )  # fmt: skip
        # Weights that a file lacks stay without storage: diffusers, too, does no more than warn.
        for part in WEIGHTED:
            empty = [name for name, weight in getattr(pipe, part).named_parameters() if weight.is_meta]
            if empty:
                raise ValueError(f"weight {empty[0]} of {part} missing")
        return pipe
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the tokenizers' own errors have no class of their own
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= 200 else reason[:199] + "…"
        raise InputError(
            f"{folder} cannot be loaded ({reason}): its weights and configurations must be those of one Stable Diffusion 1.x or 2.x pipeline."
        ) from error


def _split_by_variant(part: Path) -> tuple[list[Path], list[Path]]:
    files = sorted(part.glob("*.safetensors"))
    # Names such as model.fp16.safetensors, and of files in several shards, whose number stands before the variant or behind it;
    # "non_ema" and other variants are never read.
    variants = [SHARD.sub("", path.name).split(".")[1:-1] for path in files]
    plain, half = ([path for path, own in zip(files, variants, strict=True) if own == wanted] for wanted in ([], ["fp16"]))
    return plain, half


def _variant(folder: Path, part: str) -> str | None:
    plain, half = _split_by_variant(folder / part)
    for path in plain or half:
        if (shard := SHARD.search(path.name)) and len(plain or half) < int(shard[1]):
            raise InputError(f"{folder} lacks a part: {part} has {len(plain or half)} of {int(shard[1])} shards, so copy or download the folder again.")
    if plain or half:
        return None if plain else "fp16"
    if any((folder / part).glob("*.bin")):
        raise InputError(f"{folder} has no safetensors weights for {part}, only pickled ones, which are not read: download the safetensors files.")
    raise InputError(f"{folder} lacks a part: {part} has no weights, so copy or download the folder again.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: copy or download the file again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object: copy or download the file again.")
    return content


def _file_hash(path: Path) -> str:
    state = path.stat()
    label = f"{path.resolve()}:{state.st_size}:{state.st_mtime_ns}"
    cache = (folder_from("XDG_CACHE_HOME", "~/.cache") or Path()) / "memlib" / "file-hashes" / hashlib.sha256(label.encode()).hexdigest()
    remember = state.st_size >= HASH_CACHE_BYTES
    if remember and cache.is_file():
        known = cache.read_text()
        if len(known) == 64:
            return known
    with path.open("rb") as file:
        result = hashlib.file_digest(file, "sha256").hexdigest()
    if remember:
        with suppress(OSError):  # Only a saving of time is lost.
            write_text(cache, result)
    return result


@contextmanager
def _silent_loading() -> Iterator[None]:
    """Switch the libraries' loading bars off: they would fill the notebooks' outputs."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [library for library in (of_diffusers, of_transformers) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
