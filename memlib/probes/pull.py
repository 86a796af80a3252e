"""What traces of the prompt's pull say about the basin: how it falls when the transition is passed, and whether it stays high under guidance.

The pull is the magnitude of conditional minus unconditional prediction, [N, S, T] by prompt, seed and step (`memlib.probes.transitions.trace`).
"""

from __future__ import annotations

import numpy as np


def log_magnitude(values: np.ndarray) -> np.ndarray:
    """Natural logarithm of magnitudes, which are above zero; the smallest normal number stands in for a zero."""
    return np.log(np.maximum(values, np.finfo(np.float32).tiny))


def log_ratio_after(guided: np.ndarray, free: np.ndarray, transitions: np.ndarray) -> np.ndarray:
    """Logarithm [N, S] of the mean pull from the transition on under guidance over that without; NaN where a trace has no transition.

    `guided` and `free` are [N, S, T], `transitions` [N, S] with -1 for none.
    """
    late = np.arange(guided.shape[-1]) >= transitions[..., None]
    found = log_magnitude(_mean_where(guided, late)) - log_magnitude(_mean_where(free, late))
    return np.where(transitions >= 0, found, np.nan)


def log_ratio_at_end(guided: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Logarithm [N, S] of the mean pull over the last tenth of the steps under guidance over that without, both [N, S, T]."""
    last = -max(1, round(0.1 * guided.shape[-1]))
    return log_magnitude(guided[..., last:].mean(-1)) - log_magnitude(free[..., last:].mean(-1))


def _mean_where(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    counts = chosen.sum(-1)
    return np.where(counts > 0, (values * chosen).sum(-1) / np.maximum(counts, 1), np.nan)
