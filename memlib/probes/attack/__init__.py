"""Adversarial text embeddings: can a model still be made to give a training picture, whatever was done to hide it?

    from memlib.probes.attack import Attack, Budget
    from memlib.probes.attack import targets

    attack = Attack(experiment, Budget(), get("nemo"))
    found = attack.run(targets(group))            # a run for each picture, started from its prompt
    found.brought_back                            # [P] whether any run of a picture succeeded

An embedding of 77 states is thousands of free numbers and may spell out a picture that the model never saw. Only what it takes more
for pictures never seen (`memlib.probes.attack.targets`) says that a picture is still in the weights. Source: `dori`; the loss and its settings
are recollected from Finding Dori (arXiv 2507.16880) and every value is a parameter.
"""

from __future__ import annotations

from memlib.probes.attack.reach import reach
from memlib.probes.attack.runs import Attack, Attacked
from memlib.probes.attack.search import Budget
from memlib.probes.attack.starts import STARTS, start_states
from memlib.probes.attack.targets import Targets, never_seen, targets

__all__ = ["STARTS", "Attack", "Attacked", "Budget", "Targets", "never_seen", "reach", "start_states", "targets"]
