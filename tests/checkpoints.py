"""Builders of tiny checkpoints with random weights, configured as the published ones are.

Everything that changes behaviour (classes, activation, prediction type, scheduler file, tokenizer files,
padding) follows CompVis/stable-diffusion-v1-4 and stabilityai/stable-diffusion-2-1; only sizes shrink.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from memlib.models.tokenizer import END_TOKEN, START_TOKEN, build_clip_tokenizer, read_merges

WIDTH = 32
SCHEDULE = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def build_sd1(folder: Path, **changes) -> Path:
    """Write a tiny checkpoint like Stable Diffusion 1.4: <eot> padding, epsilon prediction, PNDM file."""
    scheduler = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0.dev0", **SCHEDULE}
    text = {"hidden_act": "quick_gelu", "num_hidden_layers": 3}
    return _build(folder, END_TOKEN, scheduler, text, {"attention_head_dim": 2}, seed=1, **changes)


def build_sd2(folder: Path, **changes) -> Path:
    """Write a tiny checkpoint like Stable Diffusion 2.1: ! padding, v-prediction, gelu text encoder.

    The published text encoder has 23 of OpenCLIP's 24 layers, the last one cut off; so this is a text
    encoder whose ordinary output is what the penultimate layer of a longer one would be.
    """
    scheduler = {
        "_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0",
        **SCHEDULE, "prediction_type": "v_prediction",
    }  # fmt: skip
    text = {"hidden_act": "gelu", "num_hidden_layers": 2}
    unet = {"attention_head_dim": [2, 2, 4, 4], "use_linear_projection": True, "upcast_attention": True}
    return _build(folder, "!", scheduler, text, unet, seed=2, **changes)


def _build(
    folder: Path, pad: str, scheduler: dict, text: dict, unet: dict, seed: int,
    latent_channels: int = 4, vae_options: dict | None = None,
) -> Path:  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49_408, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_attention_heads=4,
                max_position_embeddings=77, layer_norm_eps=1e-5, projection_dim=WIDTH,
                pad_token_id=1, bos_token_id=0, eos_token_id=2, **text,
            )
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=latent_channels, out_channels=latent_channels, layers_per_block=1,
            block_out_channels=(8, 8, 16, 16), norm_num_groups=4, cross_attention_dim=WIDTH,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            center_input_sample=False, flip_sin_to_cos=True, freq_shift=0, **unet,
        )  # fmt: skip
        vae = AutoencoderKL(
            in_channels=3, out_channels=3, latent_channels=latent_channels, sample_size=64,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
            **(vae_options or {"scaling_factor": 0.18215}),
        )  # fmt: skip
        with torch.no_grad():
            # Fresh weights barely react to the text; larger ones make two prompts visibly differ.
            for name, weight in unet.named_parameters():
                if "attn2" in name and name.endswith("weight"):
                    weight.mul_(3)
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, unet=unet, tokenizer=build_clip_tokenizer(pad),
        scheduler=DDIMScheduler.from_config(scheduler), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder, safe_serialization=True)
    shutil.rmtree(folder / "tokenizer")
    write_tokenizer(folder / "tokenizer", pad)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def write_tokenizer(folder: Path, pad: str) -> None:
    """Write the tokenizer files that the published checkpoints have (no tokenizer.json)."""

    def added(content: str, typed: bool) -> dict:
        token = {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        return {"__type": "AddedToken", **token} if typed else token

    def special(typed: bool) -> dict:
        names = {"bos_token": START_TOKEN, "eos_token": END_TOKEN, "unk_token": END_TOKEN}
        return {key: added(token, typed) for key, token in names.items()} | {"pad_token": pad}

    folder.mkdir(parents=True, exist_ok=True)
    merges = "\n".join(" ".join(pair) for pair in read_merges())
    config = {
        "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer", **special(typed=True),
    }  # fmt: skip
    (folder / "vocab.json").write_text(json.dumps(build_clip_tokenizer().get_vocab()))
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special(typed=False)))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
