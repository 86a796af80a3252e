"""Filters: samples that look memorized are left out of the loss of their mini-batch.

A filter scores every sample that has a caption from the forward pass that the loss needs anyway (Wen et al. 2024: and one without text),
and leaves out those beyond a threshold (`basin` Section 2.3.1). The published thresholds are numbers for Stable Diffusion's latents.
Here the threshold is a quantile of the latest scores of samples that training shows once, so that every filter gives up the same share of
them, whatever the scale of its score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from memlib.base.errors import InputError
from memlib.base.numbers import is_whole
from memlib.base.registry import enter
from memlib.models.hooks import answering
from memlib.sampling.attention.record import cross_attention_layers, entropy
from memlib.training.minisd.mitigations.base import Noised, TrainingMitigation


@dataclass(frozen=True)
class SampleFilter(TrainingMitigation):
    """Leaves out the samples whose score is beyond the `quantile` of the last `window` scores of samples seen once.

    The published filters have one threshold for all noise levels, and so has this. 0.95 gives up one in twenty samples seen once; 512
    scores come together in some 35 steps of 64, long before the rate of learning is up, and hold that share to within one in a hundred.
    `sign` is 1 where large scores are left out, -1 where small ones are.
    """

    quantile: float = 0.95
    window: int = 512

    sign: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1 or not is_whole(self.window, 1):
            raise InputError(f"A filter at quantile {self.quantile} of {self.window} scores is not possible: use 0 < quantile < 1 and a window of 1 or more.")

    def flagged(self, scores: Tensor, reference: Tensor) -> Tensor:
        """Return which of `scores` [B] are beyond the threshold that `reference`, scores of samples seen once, gives: bool [B].

        None is while there are fewer than `window` of those.
        """
        if len(reference) < self.window:
            return torch.zeros(len(scores), dtype=torch.bool)
        return self.sign * scores > torch.quantile(self.sign * reference, self.quantile)


@enter
@dataclass(frozen=True)
class MagnitudeFilter(SampleFilter):
    """Wen et al.: the norm of what the text adds to the predicted noise, at the sample's own time; large means memorized.

    Their program leaves a sample out from a norm of 2 on, over latents of 4 x 64 x 64.
    """

    name = "magnitude-filter"

    def forward(self, unet: Any, batch: Noised, empty: Tensor) -> tuple[Tensor, Tensor]:
        # The pass with gradient comes first: autocast keeps the weights that it has cast, and those cast without gradient would have none.
        predicted = unet(batch.noisy, batch.times, batch.states).sample
        rows = ~batch.dropped
        scores = torch.zeros(len(rows))
        with torch.no_grad():
            plain = unet(batch.noisy[rows], batch.times[rows], empty.expand(int(rows.sum()), -1, -1)).sample
            scores[rows] = (predicted[rows].float() - plain.float()).flatten(1).norm(dim=1).cpu()
        return predicted, scores


@enter
@dataclass(frozen=True)
class EntropyFilter(SampleFilter):
    """Ren et al.: entropy of cross-attention over the 77 positions, at the sample's own time; above the threshold is left out.

    Attention is averaged over pixels, heads and layers first, as in `memlib.sampling.attention.record.entropy`. That samples *above* the threshold are
    left out is how `basin` describes it and how the public program scores; the training code itself is not public.
    """

    name = "entropy-filter"

    def prepare(self, unet: Any) -> None:
        unet.set_attn_processor(AttnProcessor())  # fused kernels do not show the probabilities

    def forward(self, unet: Any, batch: Noised, empty: Tensor) -> tuple[Tensor, Tensor]:
        with watched_attention(unet) as shares:
            predicted = unet(batch.noisy, batch.times, batch.states).sample
        scores = torch.from_numpy(entropy(torch.stack(shares)[None].cpu().numpy())[0]).float()
        return predicted, scores.masked_fill(batch.dropped, 0)


@enter
@dataclass(frozen=True)
class ConcentrationFilter(EntropyFilter):
    """The entropy filter turned round: samples *below* the threshold are left out, those with the most concentrated attention.

    This is the reading of `attn`'s abstract by its words, attention focused on few tokens, and of `clip` Section 2.3.
    """

    name = "concentration-filter"

    sign = -1


@contextmanager
def watched_attention(unet: nn.Module) -> Iterator[list[Tensor]]:
    """Collect each cross-attention layer's probabilities, mean over heads and pixels, float32 [B, 77], in the order they run.

    They are the ones the layer uses, taken without gradient. Only diffusers' plain processor shows them (`AttnProcessor`).
    """
    shares: list[Tensor] = []

    def scores(layer: Any, plain: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        probabilities = plain(*args, **kwargs)
        shares.append(probabilities.detach().unflatten(0, (-1, layer.heads)).mean((1, 2), dtype=torch.float32))
        return probabilities

    with answering(cross_attention_layers(unet).values(), "get_attention_scores", scores):
        yield shares
