"""Builders of tiny checkpoints with random weights, configured as the published ones are.

Everything that changes behaviour (classes, activation, prediction type, scheduler file, tokenizer files,
padding) follows CompVis/stable-diffusion-v1-4 and stabilityai/stable-diffusion-2-1; only sizes shrink.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

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


def build_sdxl(force_zeros: bool = True) -> StableDiffusionXLPipeline:
    """Return a tiny pipeline like Stable Diffusion XL base 1.0: two text encoders of their own widths and paddings, text and sizes beside the time."""
    common = {"vocab_size": 49_408, "num_attention_heads": 4, "num_hidden_layers": 3, "max_position_embeddings": 77, "layer_norm_eps": 1e-5,
              "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}  # fmt: skip
    second = 48
    with torch.random.fork_rng():
        torch.manual_seed(3)
        text_encoder = CLIPTextModel(CLIPTextConfig(hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=WIDTH, hidden_act="quick_gelu", **common))
        text_encoder_2 = CLIPTextModelWithProjection(
            CLIPTextConfig(hidden_size=second, intermediate_size=4 * second, projection_dim=second, hidden_act="gelu", **common)
        )
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 8, 16), norm_num_groups=4,
            cross_attention_dim=WIDTH + second, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 1, 2), attention_head_dim=(2, 2, 4),
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=second + 6 * 8,
        )  # fmt: skip
        vae = AutoencoderKL(
            in_channels=3, out_channels=3, latent_channels=4, sample_size=64, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
            scaling_factor=0.13025, force_upcast=True,
        )  # fmt: skip
        with torch.no_grad():
            for name, weight in unet.named_parameters():
                if name.endswith("weight") and ("attn2" in name or "add_embedding" in name):
                    weight.mul_(3)  # as in `_build`, and for the pooled embedding
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", interpolation_type="linear", timestep_spacing="leading", steps_offset=1,
        use_karras_sigmas=False, prediction_type="epsilon",
    )  # fmt: skip
    pipe = StableDiffusionXLPipeline(
        vae=vae, text_encoder=text_encoder.eval(), text_encoder_2=text_encoder_2.eval(), unet=unet.eval(), scheduler=scheduler,
        tokenizer=build_clip_tokenizer(END_TOKEN, split_special_tokens=False), tokenizer_2=build_clip_tokenizer("!", split_special_tokens=False),
        force_zeros_for_empty_prompt=force_zeros, add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # of the attention in the published autoencoder


def as_published(tiny: Path, folder: Path) -> Path:
    """Write a tiny checkpoint of `build_sd1` with all that the repository CompVis/stable-diffusion-v1-4 holds, in the form that it has there.

    Weights twice as safetensors (single and half precision) and twice pickled, those of the U-Net without moving average, a safety checker, a
    checkpoint in a single file; the autoencoder's attention under its old names and without its scale, the text encoder with its table of positions.
    """
    shutil.copytree(tiny, folder)
    for part in ("text_encoder", "unet", "vae"):
        [path] = (folder / part).glob("*.safetensors")
        weights = load_file(path)
        if part == "vae":
            weights = {re.sub(r"(?<=attentions\.0\.)(to_[qkv]|to_out\.0)", lambda found: OLD_NAMES[found[0]], name): w for name, w in weights.items()}
            config = json.loads((folder / part / "config.json").read_text())
            config = {name: value for name, value in config.items() if name in VAE_ENTRIES} | {"_diffusers_version": "0.7.0.dev0"}
            (folder / part / "config.json").write_text(json.dumps(config))
        if part == "text_encoder":
            weights = {name if name.startswith("text_model.") else f"text_model.{name}": w for name, w in weights.items()}
            weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        half = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
        pickled = "pytorch_model" if part == "text_encoder" else path.stem
        for variant, own in (("", weights), (".fp16", half)):
            save_file(own, path.with_name(f"{path.stem}{variant}.safetensors"), {"format": "pt"})
            torch.save(own, path.with_name(f"{pickled}{variant}.bin"))
        if part == "unet":
            save_file({name: torch.zeros_like(w) for name, w in weights.items()}, path.with_name(f"{path.stem}.non_ema.safetensors"), {"format": "pt"})
    for name, content in (("safety_checker/config.json", {"_name_or_path": "clip-vit-large-patch14", "model_type": "clip"}),
                          ("feature_extractor/preprocessor_config.json", {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224})):  # fmt: skip
        (folder / name).parent.mkdir()
        (folder / name).write_text(json.dumps(content))
    for name in ("safety_checker/model.safetensors", "safety_checker/pytorch_model.bin", "sd-v1-4.ckpt", "README.md"):
        (folder / name).write_bytes(b"not read")
    index = json.loads((folder / "model_index.json").read_text())
    index = {name: value for name, value in index.items() if name != "requires_safety_checker"} | {
        "_diffusers_version": "0.2.2", "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


VAE_ENTRIES = ("_class_name", "act_fn", "block_out_channels", "down_block_types", "in_channels", "latent_channels", "layers_per_block",
               "norm_num_groups", "out_channels", "sample_size", "up_block_types")  # fmt: skip


def shard(path: Path, name: str) -> None:
    """Put the weights of a file into two, called by `name` with the number of each, and an index of them."""
    weights = load_file(path)
    names = sorted(weights)
    places = {key: name.format(f"{1 + (place > len(names) // 2):05d}-of-00002") for place, key in enumerate(names)}
    for file in set(places.values()):
        save_file({key: weights[key] for key in names if places[key] == file}, path.with_name(file), {"format": "pt"})
    stem, *variant = re.sub(r"-{}", "", name).removesuffix(".safetensors").split(".")
    index = {"metadata": {"total_size": path.stat().st_size}, "weight_map": places}
    path.with_name(".".join([stem, "safetensors", "index", *variant, "json"])).write_text(json.dumps(index))
    path.unlink()
