"""The loss of an attack: how well the model, conditioned on an embedding, finds the noise in one noised picture."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from memlib.mitigations import Mitigation
from memlib.models.protocol import Substrate
from memlib.prompts.embedding import Embedding, Tokens
from memlib.sampling.batches import Batch
from memlib.sampling.first_step import GRADIENT_SHARE
from memlib.sampling.guidance import as_rule
from memlib.sampling.loop import Cost

SMALL = 128  # pixels; below, memory is no limit


class DenoisingLoss:
    """Mean over samples of || eps - eps_theta(sqrt(abar) x_0 + sqrt(1 - abar) eps, t, y) ||^2 for each of G runs, by latent element.

    `clean` [G, C, h, w] are the pictures' latents, `tokens` those of the pictures' own prompts, which say where an edit of states acts and
    which prompt the weights were pruned for. The mitigation's edit is applied to the states, and its patch to the model, as far as
    `patch` (see `memlib.probes.attack.reach`) says. `times` are those that samples are drawn from. U-Net rows are added to `cost`, those that a
    gradient goes back through twice. Source: Finding Dori, as recollected.
    """

    def __init__(
        self, substrate: Substrate, clean: Tensor, tokens: Tokens, mitigation: Mitigation, patch: str, times: Tensor, uncond: Tensor, cost: Cost,
    ):  # fmt: skip
        self.substrate, self.clean, self.tokens, self.mitigation, self.patch = substrate, clean, tokens, mitigation, patch
        self.times, self.uncond, self.cost = times, uncond, cost
        self.alphas = substrate.scheduler("ddim", 50).alphas_cumprod.cpu().float()

    def at_once(self, samples: int) -> int:
        """How many runs are differentiated together."""
        size = self.substrate.batch_size()
        rows = size if self.substrate.resolution <= SMALL else max(1, size // GRADIENT_SHARE)
        return max(1, rows // (samples * (2 if self.patch == "guided" else 1)))

    def draw(self, generator: torch.Generator, samples: int) -> tuple[Tensor, Tensor]:
        """Return the times [samples] and the noise [samples, C, h, w] of one step of one run; times are spread over equal parts.

        One time from each of as many equal parts of `times` as there are samples: the mean over samples varies less, and is the same.
        """
        parts = (torch.arange(samples) + torch.rand(samples, generator=generator)) / samples
        places = (parts * len(self.times)).long().clamp_max(len(self.times) - 1)
        return self.times[places], torch.randn((samples, *self.clean.shape[1:]), generator=generator)

    def __call__(self, states: Tensor, runs: Sequence[int], draws: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the losses [A] of the runs with the numbers `runs` at `states` [A, 77, d] (CPU), with gradients back to the states."""
        runs, samples = list(runs), len(draws[0][0])
        rows = [place for place in range(len(runs)) for _ in range(samples)]
        own = torch.tensor([runs[place] for place in rows])
        times, noise = torch.cat([t for t, _ in draws]), torch.cat([n for _, n in draws])
        edited = self.mitigation.apply(self.substrate, Embedding(states, self.tokens.select(runs)))
        embedding = edited.select(rows)
        a = self.alphas[times].view(-1, 1, 1, 1)
        noisy = a.sqrt() * self.clean[own] + (1 - a).sqrt() * noise
        predicted = self._noise(noisy, times, a, embedding)
        return (predicted - noise.to(predicted)).square().flatten(1).mean(1).view(len(runs), samples).mean(1)

    def _noise(self, noisy: Tensor, times: Tensor, a: Tensor, embedding: Embedding) -> Tensor:
        s = self.substrate
        batch = Batch(list(range(len(noisy))), [0] * len(noisy), embedding.replace(embedding.states.detach()), self.uncond, noisy, 50, as_rule(7.5), "ddim")
        text, x, t = embedding.states.to(s.device, s.dtype), noisy.to(s.device, s.dtype), times.to(s.device)
        if self.patch == "guided":
            text = torch.cat([self.uncond.to(text).expand(len(text), -1, -1), text])
            x, t = torch.cat([x, x]), torch.cat([t, t])
        patching = self.patch in ("conditional", "guided")
        with self.mitigation.around(s, batch, Cost()) if patching else nullcontext():
            output = s.unet(x, t, encoder_hidden_states=text, return_dict=False)[0].float()
        self.cost.evaluations += 2 * len(x)
        output, noisy, a = output[-len(noisy) :], noisy.to(output.device), a.to(output.device)
        if s.prediction_type == "v_prediction":
            return a.sqrt() * output + (1 - a).sqrt() * noisy
        return output
