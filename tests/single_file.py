"""A diffusers folder written as one file, under the names that Stable Diffusion's first trainers gave to its weights: the way back from `memlib convert`."""

from __future__ import annotations

from pathlib import Path

from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file


def write_single_file(folder: Path, path: Path) -> Path:
    """Write a diffusers folder of Stable Diffusion 1.x as one file, with the names that its first trainers gave to the weights."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    weights = {f"model.diffusion_model.{_unet_name(name, pipe.unet)}": value for name, value in pipe.unet.state_dict().items()}
    for name, value in pipe.vae.state_dict().items():
        # Attention of the autoencoder was made of 1 x 1 convolutions.
        flat = "attentions" in name and value.ndim == 2
        weights[f"first_stage_model.{_vae_name(name, len(pipe.vae.config.block_out_channels))}"] = value[..., None, None] if flat else value
    for name, value in pipe.text_encoder.state_dict().items():
        weights[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    return path


RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3",
          "conv_shortcut": "skip_connection"}  # fmt: skip
OUTSIDE = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0",
           "conv_out": "out.2"}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _unet_name(name: str, unet) -> str:
    for ours, theirs in OUTSIDE.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    if name.startswith("mid_block"):
        _, kind, place, *rest = name.split(".")
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(place)}.{_inside(kind, rest)}"
    side, block, kind, place, *rest = name.split(".")
    layers = unet.config.layers_per_block
    if side == "down_blocks":
        number = 1 + int(block) * (layers + 1) + (layers if kind == "downsamplers" else int(place))
        return f"input_blocks.{number}.{1 if kind == 'attentions' else 0}.{_inside(kind, rest)}"
    number = int(block) * (layers + 1) + (layers if kind == "upsamplers" else int(place))
    slot = {"resnets": 0, "attentions": 1, "upsamplers": 2 if "CrossAttn" in unet.config.up_block_types[int(block)] else 1}[kind]
    return f"output_blocks.{number}.{slot}.{_inside(kind, rest)}"


def _inside(kind: str, rest: list[str]) -> str:
    if kind == "resnets":
        return ".".join([RESNET[rest[0]], *rest[1:]])
    return ".".join(rest).replace("conv.", "op.", 1) if kind == "downsamplers" else ".".join(rest)


def _vae_name(name: str, blocks: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if ".mid_block.attentions.0." in name:
        for ours, theirs in VAE_ATTENTION.items():
            name = name.replace(f"attentions.0.{ours}.", f"attn_1.{theirs}.")
        return name.replace("mid_block", "mid")
    if ".mid_block.resnets." in name:
        head, _, rest = name.partition(".mid_block.resnets.")
        return f"{head}.mid.block_{int(rest[0]) + 1}{rest[1:]}"
    for ours, theirs in (("down_blocks", "down"), ("up_blocks", "up")):
        if f".{ours}." in name:
            side, _, block, *rest = name.split(".")
            # The decoder's blocks are counted from the picture and not from the latents.
            number = int(block) if theirs == "down" else blocks - 1 - int(block)
            inner = ".".join(rest).replace("resnets", "block").replace(f"{theirs}samplers.0", f"{theirs}sample")
            return f"{side}.{theirs}.{number}.{inner}"
    return name
