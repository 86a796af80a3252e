"""Which tokens a prompt's magnitude hangs on: Wen et al.'s trigger tokens, by the gradient at the first step (2024, Section 5)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from memlib.base.declared import check
from memlib.experiment.group import Group
from memlib.models.protocol import Substrate
from memlib.probes.detectors.runs import need_signal, per_sample
from memlib.sampling.batches import Batch
from memlib.sampling.first_step import FirstStep, as_leaves, gradient_scale, losses_and_gradients, norms
from memlib.sampling.loop import Cost


def token_significance(group: Group, as_published: bool = False) -> np.ndarray:
    """Return how much the magnitude at the first step changes with the state at each position, [N, S, 77].

    The magnitude is that of `memlib.probes.detectors.magnitude`; its gradient by a picture's own embedding has a length at each position, over
    the features. Positions are those of the text encoder's states, ``<sot>``, ``<eot>`` and padding among them. Kept in the group's store.

    `as_published` does what the public program does with the S pictures of a prompt, [N, 77]: one norm over all of them together, lengths of
    its gradient by each picture's embedding, and their sum over the rows of a guided batch, unconditional ones too, divided by their number 2 S.
    Raises NotMeasured where the schedule's first step has no signal. Source: Wen et al. 2024, program.
    """
    check(as_published, bool, "as_published of token_significance")
    x = group.experiment
    schedule = x.substrate.scheduler(x.scheduler, x.steps)
    need_signal(x.substrate, schedule, schedule.timesteps[0])
    found = per_sample(group, {"measure": "token significance"}, _by_position)
    lengths, magnitude = found["lengths"], found["magnitude"]
    if not as_published:
        return lengths
    # The gradient of a root of summed squares by one picture is that of its own norm, times this norm's share of the whole.
    share = magnitude / np.linalg.norm(magnitude, axis=1, keepdims=True)
    return (lengths * share[..., None]).sum(1) / (2 * magnitude.shape[1])


def _by_position(substrate: Substrate, batch: Batch, cost: Cost) -> dict[str, np.ndarray]:
    first, rows = FirstStep(substrate, batch, cost), list(range(len(batch.rows)))

    def magnitude(states: Tensor, which: list[int]) -> Tensor:
        return norms(first.difference(states, which))

    leaves = as_leaves(list(batch.embedding.states.to(substrate.device)))
    # A norm is never below 0: every gradient is wanted.
    found, gradients = losses_and_gradients(magnitude, leaves, rows, -1.0, at_once=first.at_once, scale=gradient_scale(substrate))
    lengths = torch.stack([gradient.norm(dim=-1) for gradient in gradients if gradient is not None])
    return {"lengths": lengths.cpu().numpy(), "magnitude": np.array(found, np.float32)}
