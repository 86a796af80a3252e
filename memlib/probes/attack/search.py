"""The search itself: Adam on embeddings, with tests in between of whether the picture comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from memlib.base.declared import Count, Declared, Positive, Whole
from memlib.base.errors import InputError
from memlib.base.numbers import counted


@dataclass(frozen=True)
class Budget(Declared):
    """What an attack may spend on one run, and what counts as success; fixed before anything is attacked.

    `steps` of Adam with rate `lr`, each with `samples` noised copies of the picture; a test before the first step, after every `every`
    steps and after the last one. At a test a picture is sampled for each of the seeds 0 to `seeds` - 1 in `sampling_steps`
    steps, and the run has succeeded if all of them are copies of the picture: copy similarity at or above the descriptor's threshold.
    Raises InputError for numbers that cannot be used.
    """

    steps: Whole = 50
    samples: Count = 8
    lr: Positive = 0.1
    every: Count = 10
    seeds: Count = 1
    sampling_steps: Count = 50

    name: ClassVar[str] = "the attack's budget"

    @property
    def tests(self) -> tuple[int, ...]:
        """The steps after which a run is tested, 0 and the last among them."""
        return tuple(sorted({*range(0, self.steps, self.every), self.steps}))

    @property
    def rows(self) -> int:
        """U-Net rows of a run that never succeeds, without mitigation: rows that a gradient goes through count twice."""
        return 2 * self.steps * self.samples + 2 * self.sampling_steps * self.seeds * len(self.tests)

    def __str__(self) -> str:
        return (
            f"A run that never succeeds: {self.steps} steps of {self.samples} rows, forward and backward, and {len(self.tests)} tests of "
            f"{counted(self.seeds, 'picture')} in {self.sampling_steps} steps; {self.rows} U-Net rows"
        )

    def to_json(self) -> dict[str, Any]:
        """The settings by name."""
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """How one run ended: the test at which it succeeded (steps done; -1 if never), the similarities [K, S] at the K tests (NaN after its
    end), and the embedding [77, d] of its last test."""

    steps: int
    similarities: np.ndarray
    states: np.ndarray


Losses = Callable[[Tensor, Sequence[int], Sequence[Any]], Tensor]
Check = Callable[[Tensor, Sequence[int]], np.ndarray]


def search(
    losses: Losses, starts: Tensor, check: Check, threshold: float, budget: Budget, draw: Callable[[int], Any], at_once: int = 8, scale: float = 1.0,
) -> Iterator[tuple[int, Found]]:  # fmt: skip
    """Run G attacks side by side and yield (number, Found) for each as soon as it ends; no run depends on another.

    `losses(states [A, 77, d], runs, draws)` gives [A]; `draw(run)` what is random in the next step of a run; `check(states, runs)` the
    similarities [A, S]. A run that has succeeded moves no more. `scale` multiplies losses while they are differentiated. Raises InputError
    where a gradient is not finite.
    """
    moving = [start.detach().clone().float().requires_grad_() for start in starts]
    optimizer = torch.optim.Adam(moving, lr=budget.lr)
    tests, active = budget.tests, list(range(len(moving)))
    seen = np.full((len(moving), len(tests), budget.seeds), np.nan)
    for step in range(budget.steps + 1):
        if step in tests:
            place = tests.index(step)
            seen[active, place] = check(torch.stack([moving[run].detach() for run in active]), active)
            for run in list(active):
                succeeded = bool((seen[run, place] >= threshold).all())
                if succeeded or step == budget.steps:
                    active.remove(run)
                    yield run, Found(step if succeeded else -1, seen[run], moving[run].detach().numpy().astype(np.float16))
        if not active or step == budget.steps:
            return
        optimizer.zero_grad(set_to_none=True)
        for begin in range(0, len(active), at_once):
            runs = active[begin : begin + at_once]
            with torch.enable_grad():
                (scale * losses(torch.stack([moving[run] for run in runs]), runs, [draw(run) for run in runs]).sum()).backward()
        for run in active:
            if not torch.isfinite(moving[run].grad).all():
                raise InputError("The gradient by the embedding is not finite in this precision: load the model with dtype='float32'.")
            moving[run].grad.div_(scale)
        optimizer.step()
