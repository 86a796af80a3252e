"""The flip that a trace predicts against the flip that a sweep of switch-on steps finds (`basin` Section 4, claim B2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from memlib.experiment.tables import mean_of_those
from memlib.judging.estimates import Estimate, mean_interval, share_interval
from memlib.probes.switch_on import REFERENCE_STEPS, comes_back, crossing_step, prediction_error


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

    def quantities(self) -> dict[str, Estimate | None]:
        """What claim B2 is judged by. Where hardly any run has both steps, the error counts as the whole schedule."""
        crossing = np.any(self.crosses, axis=1)
        error = mean_of_those(np.abs(self.error())) if crossing.any() else None
        if error is None or error.n_prompts < 2:
            whole = float(REFERENCE_STEPS)
            error = Estimate(whole, whole, whole, len(self.similarity), self.similarity.shape[1])
        return {
            "similarity_first": mean_interval(self.similarity[..., 0]),
            "similarity_last": mean_interval(self.similarity[..., -1]),
            "share_predicted": self._share_predicted(crossing),
            "error": error,
        }

    def _share_predicted(self, crossing: np.ndarray) -> Estimate:
        if not crossing.any():
            return share_interval(np.zeros(len(self.similarity)))
        shares = np.where(self.crosses, self.both.astype(float), np.nan)[crossing]
        # All or none of the runs: the bootstrap has no width there, Wilson's interval over prompts has.
        if np.nanmean(shares) in (0, 1):
            return share_interval(np.nanmean(shares, axis=1))
        return mean_interval(shares, missing="drop")
