"""The search of SAIL (Jeon et al. 2025): rounds of Adam on candidates for the initial noise, until enough have a low loss."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from memlib.sampling.first_step import FirstStep, as_leaves, directions, gradient_scale, losses_and_gradients, move, norms

# From noise [b, C, h, w] and rows of a batch to the difference there, as `FirstStep.gap` gives it.
Gap = Callable[[Tensor, Sequence[int]], Tensor]

Key = TypeVar("Key", bound=Hashable)

RISE, RISE_AFTER = 0.1, 3
PUBLISHED_BUDGET, PUBLISHED_PICTURES = 8, 4


def sharpness_loss(gap: Gap, noise: Tensor, rows: Sequence[int], alpha: float, objective: str = "gap", stale: Tensor | None = None) -> Tensor:
    """Return the loss [b] of noise [b, C, h, w].

    With `stale` noise the direction is computed there, while its gradient still counts as that of `noise`: the program's
    copy of the first noise, which is not refreshed.
    """
    here = gap(noise if stale is None else noise + (stale - noise).detach(), rows)
    there = gap(noise + directions(here), rows)
    return norms(there if objective == "gap" else there - here) + alpha * norms(noise)


def published_gap(first: FirstStep) -> Gap:
    """For a model of velocity, the gap as the program reads it: divided by -sqrt(1 - abar)."""
    if first.solver.config.prediction_type != "v_prediction":
        return first.gap
    factor = -1 / float((1 - first.solver.alphas_cumprod[int(first.t)]).sqrt())
    return lambda noise, rows: factor * first.gap(noise, rows)


@dataclass
class Owner:
    """Pictures that share their candidates: a `row` of the batch for the text, how many are `needed`, a `seed` for the
    candidates' noise, and the `first` candidate's noise, where it is given."""

    row: int
    needed: int
    seed: int
    first: Tensor | None = None
    accepted: list[Tensor] = field(default_factory=list)
    lowest: list[tuple[float, Tensor]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return len(self.accepted) >= self.needed


@dataclass
class Search:
    """The search for accepted noise of this `shape`; `run` does all rounds for a batch's owners at once, each as if it were alone.

    The other fields are those of `memlib.mitigations.sail.Sail`; `rise` is added to the threshold after every third failed round.
    """

    first: FirstStep
    shape: Sequence[int]
    threshold: float
    rise: float
    alpha: float
    objective: str = "gap"
    lr: float = 0.05
    steps: int = 10
    candidates: int = 1
    rounds: int = 12
    as_published: bool = False

    def run(self, owners: dict[Key, Owner]) -> dict[Key, list[Tensor]]:
        """Return `needed` noises [C, h, w] for each owner: those accepted, in order, then those with the lowest loss."""
        for number in range(self.rounds):
            searching = [owner for owner in owners.values() if not owner.done]
            if not searching:
                break
            self._round(searching, number)
        return {key: (owner.accepted + [noise for _, noise in owner.lowest])[: owner.needed] for key, owner in owners.items()}

    def _noise(self, owner: Owner, number: int) -> list[Tensor]:
        if self.as_published:
            return list(drawn((PUBLISHED_BUDGET, *self.shape), owner.seed, number // RISE_AFTER))
        noise = [drawn(tuple(self.shape), owner.seed, number, place) for place in range(self.candidates)]
        return [owner.first, *noise[1:]] if number == 0 and owner.first is not None else noise

    def _round(self, owners: list[Owner], number: int) -> None:
        starts = [(owner, noise) for owner in owners for noise in self._noise(owner, number)]
        whose = [owner for owner, _ in starts]
        leaves = as_leaves([noise.to(self.first.noise.device) for _, noise in starts])
        begun = [leaf.detach().clone() for leaf in leaves] if self.as_published else None
        optimizer = torch.optim.Adam(leaves, lr=self.lr)
        threshold = self.threshold + self.rise * (number // RISE_AFTER)
        taken: set[int] = set()
        best: dict[int, tuple[float, Tensor]] = {}
        for _ in range(self.steps):
            live = [place for place, owner in enumerate(whose) if not owner.done]
            if not live:
                break
            losses, found = self._gradients(leaves, live, whose, threshold, begun)
            for place, loss in zip(live, losses, strict=True):
                noise = leaves[place].detach()
                if loss <= threshold and place not in taken and not whose[place].done:
                    taken.add(place)
                    # The program keeps a view, and not a copy: the optimizer goes on moving it.
                    whose[place].accepted.append(noise if self.as_published else noise.clone())
                if not loss >= best.get(place, (float("inf"),))[0]:
                    best[place] = (loss, noise.clone())
            gradients = {place: back for place, back in zip(live, found, strict=True) if not whose[place].done}
            move(optimizer, leaves, [gradients.get(place) for place in range(len(leaves))])
        for place, entry in best.items():
            owner = whose[place]
            if not owner.done and place not in taken:
                owner.lowest = sorted([*owner.lowest, entry], key=lambda pair: pair[0])[: owner.needed]

    def _gradients(self, leaves: list[Tensor], live: list[int], whose: list[Owner], threshold: float, begun: list[Tensor] | None) -> Any:
        first = self.first
        gap = published_gap(first) if self.as_published else first.gap
        of_noise = partial(sharpness_loss, gap, alpha=self.alpha, objective=self.objective)

        def loss(x: Tensor, places: list[int]) -> Tensor:
            stale = None if begun is None else torch.stack([begun[place] for place in places])
            return of_noise(x, [whose[place].row for place in places], stale=stale)

        return losses_and_gradients(
            loss, [leaves[place] for place in live], live, threshold if begun is None else float("-inf"),
            at_once=first.at_once, scale=gradient_scale(first.substrate), counted=partial(first.count_gradient, calls=2),
        )  # fmt: skip


def drawn(shape: tuple[int, ...], *numbers: int) -> Tensor:
    """Return standard normal noise that depends on the numbers alone."""
    name = hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()[:7]
    return torch.randn(shape, generator=torch.Generator().manual_seed(int.from_bytes(name)))
