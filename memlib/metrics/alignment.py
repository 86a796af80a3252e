"""Text alignment: the plain cosine between CLIP embeddings of picture and prompt.

Not the 2.5-fold clipped CLIPScore of Hessel et al. 2021: the texts compared here print values around
0.3, which are plain cosines (`clip` Tables 2 to 5). Figures of different CLIP models do not compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memlib.base.errors import InputError, NotMeasured
from memlib.metrics.pictures import centred, flat, in_batches, through_pil
from memlib.metrics.similarity import folder_fingerprint
from memlib.metrics.weights import read_state, weight_file
from memlib.models.minisd.judges import load_evaluator


class TextAlignment:
    """A CLIP model as a judge: pictures and texts to unit vectors of one space, compared by cosine.

    `prepare` makes of uint8 pictures [M, H, W, 3] what `encode_image` takes.
    """

    available = True
    role = "alignment"

    def __init__(
        self,
        name: str,
        encode_image: Callable[[torch.Tensor], torch.Tensor],
        encode_text: Callable[[list[str]], torch.Tensor],
        prepare: Callable[[np.ndarray], torch.Tensor],
        *,
        fingerprint: str = "",
        device: Any = "cpu",
        batch_size: int = 64,
    ):
        self.name, self.fingerprint = name, fingerprint
        self.device, self.batch_size = device, batch_size
        self.encode_image, self._encode_text, self.prepare = encode_image, encode_text, prepare

    def pictures(self, pictures: Any) -> np.ndarray:
        """Return float32 unit vectors [..., D] for uint8 pictures [..., H, W, 3]."""
        rows, shape = flat(pictures)
        vectors = in_batches(self.encode_image, self.prepare, rows, self.device, self.batch_size)
        return torch.nn.functional.normalize(vectors, dim=-1).numpy().reshape(*shape, -1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 unit vectors [N, D] for N texts."""
        if isinstance(texts, str) or not len(texts):
            raise InputError("Text alignment needs a list with at least one prompt: pass a list of texts.")
        starts = range(0, len(texts), self.batch_size)
        parts = [self._encode_text(list(texts[start : start + self.batch_size])) for start in starts]
        vectors = torch.cat([part.float().cpu() for part in parts])
        return torch.nn.functional.normalize(vectors, dim=-1).numpy()

    def __call__(self, pictures: Any, prompts: Sequence[str]) -> np.ndarray:
        """Return cosines [N] or [N, S] of pictures [N, H, W, 3] or [N, S, H, W, 3] with their N prompts."""
        pictures = np.asarray(pictures)
        if isinstance(prompts, str) or len(pictures) != len(prompts) or pictures.ndim not in (4, 5):
            raise InputError(f"Pictures of shape {list(pictures.shape)} do not go with {len(prompts)} prompts: pass [prompts, (seeds,) height, width, 3].")
        seen, said = self.pictures(pictures), self.texts(prompts)
        return np.einsum("n...d,nd->n...", seen, said)


def load_open_clip(which: str = "openai_clip_vit_l_14", device: Any = "cpu") -> TextAlignment:
    """Return an OpenCLIP judge from checked weights: `openai_clip_vit_l_14` or `laion_clip_vit_b_32`.

    Pictures are resized (bicubic, shortest side 224), cropped and normalised as for training. Raises
    NotMeasured if the weights are not at hand. Source: Radford et al. 2021; Cherti et al. 2023.
    """
    # OpenAI's models were trained with the QuickGELU activation; without it the figures differ.
    architectures = {"openai_clip_vit_l_14": "ViT-L-14-quickgelu", "laion_clip_vit_b_32": "ViT-B-32"}
    if which not in architectures:
        raise InputError(f"Unknown CLIP judge {which!r}: choose one of {', '.join(architectures)}.")
    return open_clip_judge(which, architectures[which], weight_file(which), device)


def open_clip_judge(name: str, architecture: str, path: Path, device: Any = "cpu") -> TextAlignment:
    """Return a judge of an OpenCLIP `architecture` with the (already checked) weights at `path`."""
    import open_clip

    model = open_clip.CLIP(**open_clip.get_model_config(architecture))
    model.load_state_dict(_clip_state(path))
    model = model.to(device).eval()
    transform = open_clip.image_transform(model.visual.image_size, is_train=False)
    tokenizer = open_clip.get_tokenizer(architecture)
    return TextAlignment(
        name,
        model.encode_image,
        lambda texts: model.encode_text(tokenizer(texts).to(device)),
        lambda pictures: through_pil(pictures, transform),
        fingerprint=name,
        device=device,
        batch_size=32,
    )


def _clip_state(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return read_state(path)
    # OpenAI publishes TorchScript archives: the tensors are taken out and the program is not run. The
    # settings, and the causal mask that some archives hold, are not weights.
    state = torch.jit.load(str(path), map_location="cpu").state_dict()
    for setting in ("input_resolution", "context_length", "vocab_size", "attn_mask"):
        state.pop(setting, None)
    return {name: tensor.float() for name, tensor in state.items()}


def load_minisd_evaluator(folder: Path, device: Any = "cpu") -> TextAlignment:
    """Return MiniSD's evaluator CLIP from `folder`; the generator never saw it.

    Raises NotMeasured if the folder is not there.
    """
    if not folder.is_dir():
        raise NotMeasured(f"MiniSD's evaluator is not in {folder}: train it with `memlib minisd train evaluator`.")
    evaluator = load_evaluator(folder).to(device)
    return TextAlignment(
        "MiniSD evaluator",
        evaluator.encode_image,
        evaluator.encode_text,
        centred,
        fingerprint=folder_fingerprint(folder),
        device=device,
        batch_size=256,
    )
