"""Published architectures with random weights: what a model costs, in time and memory, without its weights.

The time of a forward or backward pass does not depend on the values of the weights. What is drawn means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from memlib.base.errors import InputError
from memlib.models.devices import device_of
from memlib.models.substrate import Substrate, precision_of
from memlib.models.tokenizer import build_clip_tokenizer


def sd14_parts() -> dict[str, Any]:
    """Return U-Net, VAE and text encoder of Stable Diffusion 1.4, on torch's default device.

    Source: the configuration files of CompVis/stable-diffusion-v1-4; 859,520,964, 83,653,863 and 123,060,480 parameters.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(
        sample_size=64, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=768, attention_head_dim=8, norm_num_groups=32, norm_eps=1e-5, act_fn="silu", downsample_padding=1,
        mid_block_scale_factor=1, center_input_sample=False, flip_sin_to_cos=True, freq_shift=0,
    )  # fmt: skip
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=512, layers_per_block=2, block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=32, act_fn="silu",
        scaling_factor=0.18215,
    )  # fmt: skip
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49_408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            max_position_embeddings=77, projection_dim=768, hidden_act="quick_gelu", layer_norm_eps=1e-5,
            bos_token_id=49_406, eos_token_id=49_407, pad_token_id=49_407,
        )
    )  # fmt: skip
    return {"unet": unet, "vae": vae, "text_encoder": text_encoder}


ARCHITECTURES: dict[str, Callable[[], dict[str, Any]]] = {"sd14": sd14_parts}


def build(name: str, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto", force: bool = False) -> Substrate:
    """Return a substrate of the architecture `name` with random weights, always the same ones on one kind of device.

    "auto" is float16 on a GPU and float32 on a CPU. Raises InputError for an unknown name or precision, and for a CPU unless `force`.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"Unknown architecture {name!r}: use one of {', '.join(ARCHITECTURES)}.")
    target = device_of(device)
    if target.type != "cuda" and not force:
        raise InputError(f"The full-size architecture {name} takes minutes a picture on a CPU: use a machine with a GPU, or add --force.")
    precision = precision_of(dtype, target, torch.float32)
    with torch.random.fork_rng([target] if target.type == "cuda" else []), target:
        torch.manual_seed(0)
        parts = ARCHITECTURES[name]()
    for part in parts.values():
        part.requires_grad_(False).eval().to(precision)
        if target.type == "cuda" and part is not parts["text_encoder"]:
            part.to(memory_format=torch.channels_last)
    return Substrate(f"{name} with random weights", _pipeline(parts), target, precision, f"random weights of {name}")


def _pipeline(parts: dict[str, Any]) -> Any:
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, set_alpha_to_one=False,
        skip_prk_steps=True, steps_offset=1,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        **parts, tokenizer=build_clip_tokenizer(), scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe
