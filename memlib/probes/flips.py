"""The flip that a trace predicts against the flip that a sweep of switch-on steps finds (`basin` Section 4, claim B2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from memlib.probes.switch_on import comes_back, crossing_step, prediction_error


@dataclass(frozen=True)
class Flips:
    """Runs of N prompts and S seeds: `similarity` [N, S, K] to training by switch-on step `switches` [K], and the `predicted` steps [N, S], -1 for none.

    `threshold` is the similarity below which a picture is no copy, `steps` those of the schedule.
    """

    similarity: np.ndarray
    switches: list[int]
    predicted: np.ndarray
    threshold: float
    steps: int

    @property
    def found(self) -> np.ndarray:
        """The switch-on step [N, S] at which a picture stops being a copy, NaN where none does."""
        return crossing_step(self.similarity, self.switches, self.threshold)

    @property
    def crosses(self) -> np.ndarray:
        """Whether [N, S] a picture stops being a copy at some switch-on step."""
        return ~np.isnan(self.found)

    @property
    def comes_back(self) -> np.ndarray:
        """Whether [N, S] a picture that stopped being a copy is one again at a later switch-on step."""
        return self.crosses & comes_back(self.similarity, self.threshold)

    @property
    def both(self) -> np.ndarray:
        """Whether [N, S] there is a flip and a prediction of it."""
        return self.crosses & (self.predicted >= 0)

    def error(self, predicted: Any = None) -> np.ndarray:
        """Found minus predicted [N, S] in steps of a 50-step schedule, NaN where one is missing; of other predictions where they are given."""
        return prediction_error(self.found, self.predicted if predicted is None else predicted, self.steps)
