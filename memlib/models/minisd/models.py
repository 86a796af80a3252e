"""MiniSD's parts as diffusers and transformers classes, from the blocks of data/minisd/training.yml."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from memlib.models.tokenizer import CONTEXT_LENGTH, VOCABULARY_SIZE

EOT, SOT = 49_407, 49_406


def autoencoder(channels: list[int], latent_channels: int) -> AutoencoderKL:
    """Pictures in [-1,1] to latents; every block but the last halves the side, so three blocks take 64 to 16 pixels."""
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=64,
    )


def text_encoder(width: int, layers: int, heads: int) -> CLIPTextModel:
    """Causal text transformer over the real CLIP vocabulary; pools at <eot> as OpenAI's CLIP does."""
    config = CLIPTextConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
        max_position_embeddings=CONTEXT_LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=SOT,
        eos_token_id=EOT,
        pad_token_id=EOT,
    )
    return CLIPTextModel(config)


def unet(channels: list[int], attention: list[bool], layers: int, heads: int, latent_channels: int, width: int, side: int = 16) -> UNet2DConditionModel:
    """The U-Net; `attention` says at which resolutions, from the highest, there is self- and cross-attention."""
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        layers_per_block=layers,
        down_block_types=["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in attention],
        up_block_types=["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention)],
        cross_attention_dim=width,
        attention_head_dim=heads,  # diffusers' name for the number of heads here
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion v1.4's noise schedule: scaled-linear betas, 1,000 steps, leading spacing, offset 1."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(nn.functional.gelu(self.norms[1](self.first(nn.functional.gelu(self.norms[0](x))))))


class PictureEncoder(nn.Module):
    """A small residual network: pictures [N,3,64,64] in [-1,1] to vectors [N, dimensions]."""

    def __init__(self, channels: list[int], dimensions: int):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 4, stride=4)]
        for i, width in enumerate(channels):
            layers += [Residual(width)]
            if i + 1 < len(channels):
                layers += [nn.Conv2d(width, channels[i + 1], 2, stride=2)]
        self.body = nn.Sequential(*layers)
        self.norm = nn.GroupNorm(8, channels[-1])
        self.head = nn.Linear(channels[-1] * 5, dimensions)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = nn.functional.gelu(self.norm(self.body(x)))
        # Four quadrants and their mean: position matters for captions that say left and right, and for copies.
        pooled = torch.cat([nn.functional.adaptive_avg_pool2d(features, 2).flatten(1), features.mean((2, 3))], 1)
        return self.head(pooled)
