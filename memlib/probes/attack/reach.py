"""How far an attacker who knows a mitigation can see through it.

The attacker chooses the states that the text encoder would have given; whatever a mitigation does after that stays in place. Its edit of
states and its patches of the model are differentiated through where that is possible. Where it is not, the gradient is that of the model
without it, and the mitigation acts when it is tested whether the picture came.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memlib.mitigations import Mitigation
from memlib.models.protocol import Substrate
from memlib.sampling.guidance import Constant, Scheduled, StepInfo, as_rule


@dataclass(frozen=True)
class Reach:
    """`text`: the mitigation rewrites prompts, which an attacker who gives states goes around. `patch`: "" (nothing to see through, or not
    possible), "conditional" or "guided" (see `Mitigation.through`). `words` say how the attack treats the mitigation."""

    text: bool
    patch: str
    words: str


def reach(mitigation: Mitigation, guidance: float = 7.5) -> Reach:
    """Return how the attack treats a mitigation."""
    if mitigation.rewrites:
        return Reach(True, "", "goes around it: only texts are rewritten")
    edits = mitigation.padding is not None or type(mitigation).edit is not Mitigation.edit
    rule = as_rule(mitigation.guidance(guidance))
    seen, unseen = [], []
    if edits:
        seen.append("its edit of the states")
    if not isinstance(rule, Constant):
        if isinstance(rule, Scheduled):
            seen.append("its times of guidance")
        else:
            unseen.append("its choice of guidance")
    if mitigation.sampled and mitigation.through:
        seen.append("what it does to the model")
    elif mitigation.sampled:
        unseen.append("what it does before or while sampling")
    words = "; ".join([*(f"gradient sees {what}" for what in seen), *(f"gradient does not see {what}" for what in unseen)])
    return Reach(False, mitigation.through, words or "nothing in the way")


def times_with_guidance(substrate: Substrate, mitigation: Mitigation, guidance: float, steps: int, scheduler: str) -> Tensor:
    """Return the training times [K] at which the prompt draws the picture towards it, that is, where the scale is above 0.

    A time has the scale of the nearest step of the schedule. All times for rules that decide while sampling.
    """
    solver = substrate.scheduler(scheduler, steps)
    every = torch.arange(solver.config.num_train_timesteps)
    rule = as_rule(mitigation.guidance(guidance))
    if not isinstance(rule, Scheduled):
        return every
    scales, nothing = rule.start(1), torch.zeros(1, 1, 1, 1)
    schedule = solver.timesteps.cpu().float()
    found = torch.cat([scales(StepInfo(i, len(schedule), float(t), nothing, nothing, nothing)) for i, t in enumerate(schedule)])
    nearest = (every[:, None] - schedule).abs().argmin(1)
    kept = every[found[nearest] > 0]
    return kept if len(kept) else every
