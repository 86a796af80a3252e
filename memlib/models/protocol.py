"""What sampling, metrics and probes ask of a model: the one interface between them and how a model was loaded."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from memlib.models.data import SubstrateData
from memlib.models.speed import Speed


class Substrate(Protocol):
    """A text-to-image latent diffusion model of the Stable Diffusion 1.x / 2.x kind, on a device, with what judges its pictures.

    `memlib.models.substrate.load` returns one. The parts are diffusers' and transformers' own classes, or stand-ins that are called alike:
    `unet(latents [B, C, h, w], t, encoder_hidden_states=[B, 77, d], return_dict=False)[0]` is the raw prediction [B, C, h, w], and
    `vae.decode(latents, return_dict=False)[0]` pictures [B, 3, H, W] in [-1, 1].
    """

    @property
    def name(self) -> str:
        """Its name in tables and messages."""

    @property
    def weights_hash(self) -> str:
        """A text that differs for every model that gives other pictures: SHA-256 (64 hex digits) of a loaded one's weights and configurations.

        Every key of the store that depends on the model has it. Raises InputError where the model was changed in a way that no text can tell.
        """

    @property
    def revision(self) -> str | None:
        """The hub's commit, where known."""

    @property
    def data(self) -> SubstrateData:
        """Its prompt sets, training pictures and metrics."""

    @property
    def speed(self) -> Speed:
        """How it computes."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations; latents and schedulers stay in float32."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def text_encoder(self) -> Any: ...

    @property
    def unet(self) -> Any: ...

    @property
    def vae(self) -> Any: ...

    @property
    def pad_id(self) -> int:
        """The token that fills a prompt up to 77."""

    @property
    def prediction_type(self) -> str:
        """What the U-Net predicts: "epsilon", "v_prediction" or "sample"."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""

    @property
    def resolution(self) -> int:
        """Side of a picture in pixels."""

    def scheduler(self, kind: str = "ddim", steps: int = 50) -> Any:
        """Return a fresh diffusers scheduler of a kind, set to `steps` steps on the device; raises InputError where that is not possible."""

    def batch_size(self) -> int:
        """How many pictures can be sampled at once in the memory that is free, at least 1."""
