"""The same attack under every mitigation: which of them hide a memorized picture, and which make it unreachable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from memlib.base.errors import InputError, NotMeasured
from memlib.experiment.run import Experiment
from memlib.judging.estimates import Estimate, share_interval
from memlib.mitigations import get
from memlib.probes.attack.outcomes import share
from memlib.probes.attack.reach import reach
from memlib.probes.attack.runs import Attack, Attacked
from memlib.probes.attack.search import Budget
from memlib.probes.attack.targets import Targets
from memlib.prompts.embedding import encode_prompts


def outcome_table(found: Mapping[tuple[str, ...], Attacked], names: Sequence[str]) -> pd.DataFrame:
    """One row a set of attacks: pictures brought up by their prompts at once, brought back by attack, steps and similarity reached."""
    rows = {}
    for key, one in found.items():
        back = share(one.brought_back[~one.at_once[:, 0]])
        rows[key] = {
            "pictures": len(one.targets), "at once": int(one.at_once.sum()), "brought back": int((one.steps > 0).sum()),
            "share of the others brought back": "-" if back is None else back.text(2), **_effort(one),
        }  # fmt: skip
    return pd.DataFrame(rows).T.rename_axis(list(names))


def _effort(one: Attacked) -> dict[str, str]:
    steps = one.steps[one.steps > 0]
    return {"median steps": f"{np.median(steps):.0f}" if len(steps) else "-", "highest similarity": f"{one.best.mean():.2f}"}


@dataclass(frozen=True)
class Survey:
    """Attacks from the pictures' own prompts by mitigation, with knowledge of it (`under`); why others were not attacked (`left_out`).

    `unaware` is the share of pictures that come up under a mitigation from triggers found *without* it, over the pictures that had such a trigger.
    """

    under: Mapping[str, Attacked]
    left_out: Mapping[str, str]
    unaware: Mapping[str, Estimate | None]

    def shares(self) -> dict[str, tuple[Estimate, Estimate]]:
        """By mitigation the shares of pictures brought up by their prompt, and after attack."""
        return {name: (share_interval(one.at_once[:, 0]), share_interval(one.brought_back)) for name, one in self.under.items()}

    def table(self, guidance: float) -> pd.DataFrame:
        """One row a mitigation: shares without attack, from triggers found without it and after attack, and what of it the attacker sees."""
        return pd.DataFrame(
            {
                name: {
                    "without attack": before.text(2), "triggers found without it": told.text(2) if (told := self.unaware.get(name)) else "-",
                    "after attack": after.text(2), **_effort(self.under[name]), "what the attacker sees": reach(get(name), guidance).words,
                }
                for name, (before, after) in self.shares().items()
            }
        ).T  # fmt: skip


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
    unaware: dict[str, Estimate | None] = {}
    if blind.brought_back.any():
        blind = blind.of(blind.brought_back)
        given = encode_prompts(run.substrate, list(blind.targets.prompts))
        for name in under:
            attack = Attack(run, budget, name)
            reached = attack.similarities(torch.from_numpy(blind.states[:, 0]), given, blind.targets.pictures) >= attack.threshold
            unaware[name] = share(reached.all(1))
    return Survey(under, left_out, unaware)
