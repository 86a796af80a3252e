"""How the text-encoder states of a prompt lie to each other: cosines, effective rank, clusters, and planes to look at.

The four spans are those of memlib.prompts.embedding: sot, pr, eot, pad. Nothing here samples a picture. Source: `clip` Section
4.1, Appendix C and Figure 14, which shows principal components and t-SNE and gives no figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from memlib.base.errors import InputError
from memlib.prompts.embedding import CONTEXT_LENGTH, Embedding, Tokens

SPANS = ("sot", "pr", "eot", "pad")
METHODS = ("pca", "tsne")
PERPLEXITY = 30.0


def eot_cosines(embedding: Embedding) -> Tensor:
    """Return [N, 77]: the cosine of each prompt's <eot> state with its state at every position."""
    states = _unit(embedding.states)
    eot = states[embedding.tokens.eot]
    return torch.einsum("npd,nd->np", states, eot)


def cosines_behind_eot(embedding: Embedding, offsets: Sequence[int]) -> Tensor:
    """Return [N, K]: cosine of the <eot> state with the state K places behind it (before it where negative).

    Places outside the 77 positions, and <sot>, are NaN, so that every column compares prompt or padding states only.
    """
    cosines, places = eot_cosines(embedding), embedding.tokens.lengths[:, None] + 1 + torch.as_tensor(offsets)[None]
    inside = (places >= 1) & (places < CONTEXT_LENGTH)
    found = cosines.gather(1, places.clamp(0, CONTEXT_LENGTH - 1))
    return found.masked_fill(~inside, torch.nan)


def span_cosines(embedding: Embedding) -> Tensor:
    """Return [N, 4, 4]: the mean cosine between states of two spans of the same prompt, in the order of SPANS.

    Within a span, pairs of different positions count. NaN where a span is empty, or has one state on the diagonal.
    """
    states = _unit(embedding.states)
    masks = torch.stack([getattr(embedding.tokens, span) for span in SPANS], dim=1).float()  # [N, 4, 77]
    pairs = torch.eye(CONTEXT_LENGTH).logical_not().float() * torch.einsum("npd,nqd->npq", states, states)
    sums = torch.einsum("nap,npq,nbq->nab", masks, pairs, masks)
    sizes = masks.sum(-1)
    counts = sizes[:, :, None] * sizes[:, None, :] - torch.diag_embed(sizes)
    return torch.where(counts > 0, sums / counts.clamp(min=1), torch.nan)


def effective_rank(states: Tensor) -> float:
    """Return the effective rank of states [P, d]: exp of the entropy of the singular values over their sum, 1 to min(P, d).

    The states are not centred: identical states have rank 1. NaN for no states or only zeros. Source: Roy and Vetterli,
    The effective rank, EUSIPCO 2007.
    """
    if states.ndim != 2:
        raise InputError(f"An effective rank needs states of shape [positions, width], not {tuple(states.shape)}.")
    values = torch.linalg.svdvals(states.double()) if len(states) else torch.zeros(1)
    total = values.sum()
    if total == 0:
        return float("nan")
    shares = values / total
    return float(torch.exp(torch.special.entr(shares).sum()))


def span_ranks(embedding: Embedding, span: str = "pad") -> np.ndarray:
    """Return float[N]: the effective rank of each prompt's block of states in `span`; NaN where it is empty."""
    mask = _mask(embedding.tokens, span)
    return np.array([effective_rank(states[rows]) for states, rows in zip(embedding.states, mask)])


def silhouettes(embedding: Embedding, first: str = "eot", second: str = "pad") -> np.ndarray:
    """Return float[N]: how well the states of two spans fall apart into two clusters, per prompt, -1 to 1.

    The states of all prompts enter, labelled by span; each has the silhouette (b - a) / max(a, b) with a its mean distance
    to its own label and b that to the other, distance being one minus cosine. A prompt's figure is the mean of its two
    spans' means, so that many padding states do not outweigh one <eot> state. NaN for a prompt that lacks a span. Raises
    InputError unless there are two prompts with both. Above 0.5 speaks for clusters, 0.25 and below for none. Source:
    Rousseeuw, Silhouettes, J. Comput. Appl. Math. 20, 1987; limits: Kaufman and Rousseeuw, Finding groups in data, 1990.
    """
    spans = [_mask(embedding.tokens, span) for span in (first, second)]
    if min(int(mask.any(1).sum()) for mask in spans) < 2:
        raise InputError(f"Clusters of {first} and {second} states need two prompts with both: give more or shorter prompts.")
    unit = torch.nn.functional.normalize(embedding.states.double(), dim=-1)
    # One minus cosine is linear in the other state, so that a mean distance needs only the mean state and no pairs.
    distances = [1 - unit @ unit[mask].mean(0) for mask in spans]
    means = []
    for own, (mask, to_other) in enumerate(zip(spans, distances[::-1])):
        count = mask.sum()
        a = (distances[own] * count / (count - 1)).clamp(min=0)  # without the state itself, at distance zero
        b = to_other.clamp(min=0)
        means.append(_masked_mean((b - a) / torch.maximum(a, b).clamp(min=1e-12), mask))
    return torch.stack(means).mean(0).numpy()


@dataclass(frozen=True)
class Projection:
    """States in the plane: `table` has a row per state (prompt, position, span, x, y); `explained` the share of variance
    that each axis holds (PCA only).
    """

    table: pd.DataFrame
    explained: tuple[float, ...] = ()


def project(embedding: Embedding, method: str = "pca", pads: int | None = 8, seed: int = 0) -> Projection:
    """Return the states of all prompts in two dimensions, by principal components or t-SNE (scikit-learn).

    At most `pads` padding states of each prompt enter, evenly spaced from the first to the last (None: all); the others
    all do. `seed` fixes t-SNE, whose perplexity is 30 or a third of the states if they are few. Source: `clip` Figure 14.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if method not in METHODS:
        raise InputError(f"Unknown projection {method!r}: use one of {', '.join(METHODS)}.")
    rows, positions, names = _places(embedding.tokens, pads)
    states = embedding.states[rows, positions].double().numpy()
    if len(states) < 4:
        raise InputError(f"A projection needs at least 4 states, not {len(states)}: give more prompts.")
    explained: tuple[float, ...] = ()
    if method == "pca":
        pca = PCA(n_components=2, svd_solver="full")
        xy = pca.fit_transform(states)
        explained = tuple(map(float, pca.explained_variance_ratio_))
    else:
        perplexity = min(PERPLEXITY, (len(states) - 1) / 3)
        xy = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(states)
    table = pd.DataFrame({"prompt": rows, "position": positions, "span": names, "x": xy[:, 0], "y": xy[:, 1]})
    return Projection(table, explained)


def _places(tokens: Tokens, pads: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, position and span of the states that a projection shows."""
    if pads is not None and pads < 1:
        raise InputError(f"{pads} padding states a prompt were asked for: ask for at least 1, or None for all.")
    rows, positions, names = [], [], []
    for span in SPANS:
        for row, mask in enumerate(_mask(tokens, span)):
            found = mask.nonzero().flatten().numpy()
            if span == "pad" and pads is not None and len(found) > pads:
                found = found[np.linspace(0, len(found) - 1, pads).round().astype(int)]
            rows += [row] * len(found)
            positions += found.tolist()
            names += [span] * len(found)
    return np.array(rows), np.array(positions), np.array(names, dtype=object)


def _mask(tokens: Tokens, span: str) -> Tensor:
    if span not in SPANS:
        raise InputError(f"Unknown span {span!r}: use one of {', '.join(SPANS)}.")
    return getattr(tokens, span)


def _unit(states: Tensor) -> Tensor:
    return torch.nn.functional.normalize(states.double(), dim=-1).float()


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` [N, P] where `mask` is true; NaN for a row without any."""
    return values.masked_fill(~mask, 0).sum(1) / torch.where(mask.any(1), mask.sum(1), torch.nan)
