"""The same attack under every mitigation: which of them hide a memorized picture, and which make it unreachable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from memlib.base.errors import InputError, NotMeasured
from memlib.experiment.run import Experiment
from memlib.probes.attack.runs import Attack, Attacked
from memlib.probes.attack.search import Budget
from memlib.probes.attack.targets import Targets
from memlib.prompts.embedding import encode_prompts


@dataclass(frozen=True)
class Survey:
    """Attacks from the P pictures' own prompts by mitigation, with knowledge of it (`under`); why others were not attacked (`left_out`).

    `unaware` has by mitigation whether a picture comes up under it from the trigger found *without* it, [P]: 1, 0, or NaN where none was found.
    """

    under: Mapping[str, Attacked]
    left_out: Mapping[str, str]
    unaware: Mapping[str, np.ndarray]


def survey(run: Experiment, budget: Budget, names: Sequence[str], aims: Targets) -> Survey:
    """Attack the pictures `aims` under each mitigation, and give it the triggers that are found from another prompt without any.

    A mitigation that cannot be used or attacked on this substrate is left out with the reason.
    """
    under: dict[str, Attacked] = {}
    left_out: dict[str, str] = {}
    for name in names:
        try:
            under[name] = Attack(run, budget, name).run(aims)
        except (InputError, NotMeasured) as error:
            left_out[name] = str(error)
    blind = Attack(run, budget, "none").run(aims, "other")
    had, unaware = blind.brought_back, {}
    if had.any():
        blind = blind.of(had)
        given = encode_prompts(run.substrate, list(blind.targets.prompts))
        for name in under:
            attack = Attack(run, budget, name)
            reached = attack.similarities(torch.from_numpy(blind.states[:, 0]), given, blind.targets.pictures) >= attack.threshold
            unaware[name] = np.full(len(had), np.nan)
            unaware[name][had] = reached.all(1)
    return Survey(under, left_out, unaware)
