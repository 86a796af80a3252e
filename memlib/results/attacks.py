"""Attacks as rows of the table: by picture, the steps until one comes back, similarities on the way, and where its triggers lie.

Rows of an attack have the method ``<mitigation> from <start>, run <r>``. Values hang on picture and start alone, so that rows of a few pictures
can be compared with those of many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from memlib.experiment.group import Group
from memlib.probes.attack import Attack, Attacked, Budget, Targets, never_seen, targets
from memlib.probes.attack.survey import survey
from memlib.probes.triggers import between, spread
from memlib.prompts.embedding import encode_prompts
from memlib.results.evidence import MEMORIZED
from memlib.results.table import join, rows_of
from memlib.sampling.calibration import reference_prompts

NEVER = "pictures never seen"
# Steps until success: 0 where the start itself gives the picture, -1 where no test does.
STEPS, BEGIN, HIGHEST = "steps to success", "similarity at the start", "highest similarity"
UNAWARE, DISTANCE, LINE = "trigger found without it", "distance", "similarity on the line"
DISTANCES = ("triggers", "starts", "moved")  # of `memlib.probes.triggers.Spread`
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the second trigger, on the line between two
PRUNED = ("nemo", "wanda")
ORDINARY = 32  # prompts that are not memorized, whose mean distance is the unit of distances


def aims_of(group: Group) -> Targets | None:
    """The pictures that an attack on a group aims at: of NEVER those held out with its captions, of others the training pictures; None where they, or
    the copy descriptor, are not at hand."""
    if not group.experiment.metrics.copy.available:
        return None
    return never_seen(group) if group.label == NEVER else targets(group)


def method_of(name: str, start: str = "prompt", run: int = 1) -> str:
    """How the table calls an attack under a mitigation by its start and number."""
    return f"{name} from {start}, run {run}"


def rows_from(group: Group, name: str, one: Attacked, start: str = "prompt") -> pd.DataFrame:
    """The rows of a group's attacks: steps, similarity at the first test, and the highest at any."""
    found = {STEPS: one.steps, BEGIN: one.similarities[:, :, 0].mean(-1), HIGHEST: one.best}
    return join(rows_of(group, method_of(name, start, r + 1), metric, values[:, r], n=1) for metric, values in found.items() for r in range(values.shape[1]))


def after_pruning(group: Group, budget: Budget, n_elsewhere: int) -> pd.DataFrame:
    """Attacks on every picture of a group from its prompt, without pruning and with it, and on the first `n_elsewhere` of the pruned models from
    elsewhere: memorized pictures from other prompts and random points, NEVER from other prompts. NEVER also from other prompts without pruning."""
    aims = aims_of(group)
    if aims is None:
        return join([])
    x, few, known = _run(group), group.part(n_elsewhere), group.label == MEMORIZED
    rows = [rows_from(group, name, Attack(x, budget, name).run(aims)) for name in ("none", *PRUNED)]
    starts = ("other", "random") if known else ("other",) if group.label == NEVER else ()
    rows += [rows_from(few, name, Attack(x, budget, name).run(aims.first(n_elsewhere), start), start) for name in PRUNED for start in starts]
    if group.label == NEVER:
        rows.append(rows_from(group, "none", Attack(x, budget).run(aims, "other"), "other"))
    return join(rows)


def under_mitigations(group: Group, budget: Budget, names: Sequence[str]) -> pd.DataFrame:
    """Attacks on a group under each mitigation (method ``under <name> from prompt, run 1``), and whether triggers found without it do; prints why a
    mitigation is left out."""
    aims = aims_of(group)
    if aims is None:
        return join([])
    every = survey(_run(group), budget, names, aims)
    for name, reason in every.left_out.items():
        print(f"{name} is not attacked: {reason}")
    rows = [rows_from(group, f"under {name}", one) for name, one in every.under.items()]
    return join([*rows, *(rows_of(group, f"under {name}", UNAWARE, values, n=1) for name, values in every.unaware.items())])


def where_triggers_lie(group: Group, budget: Budget, restarts: int) -> pd.DataFrame:
    """Attacks without any mitigation from other prompts and random points, distances by DISTANCES, and similarity on the line between two triggers."""
    aims, x = aims_of(group), _run(group)
    if aims is None:
        return join([])
    attack = Attack(x, budget)
    one = attack.run(aims, "other", restarts)
    rows = [rows_from(group, "none", one, "other"), rows_from(group, "none", attack.run(aims, "random"), "random")]
    ordinary = encode_prompts(x.substrate, list(reference_prompts(x.substrate)[:ORDINARY])).states
    apart = spread(one.states, one.starts, one.succeeded, ordinary)
    rows += [rows_of(group, what, DISTANCE, getattr(apart, what), n=1) for what in DISTANCES]
    if (line := between(attack, one, SHARES)) is not None:
        found = np.full((len(group), len(SHARES)), np.nan)
        found[one.succeeded.sum(1) >= 2] = line.mean(-1)
        rows += [rows_of(group, f"{share:.0%} of the second", LINE, values, n=1) for share, values in zip(SHARES, found.T, strict=True)]
    return join(rows)


def begun(group: Group, budget: Budget, names: Sequence[str]) -> pd.DataFrame:
    """The test before the first step of an attack alone: what the prompt gives under each mitigation. Seconds in place of minutes."""
    aims, first = aims_of(group), replace(budget, steps=0)
    found = {} if aims is None else {name: Attack(_run(group), first, name).run(aims).best[:, 0] for name in names}
    return join(rows_of(group, method_of(name), BEGIN, values, n=1) for name, values in found.items())


def _run(group: Group) -> Any:
    """The `Experiment` of a group, which it knows by its settings alone."""
    return group.experiment
