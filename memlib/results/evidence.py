"""What a page stands on: rows of a reference run that were checked now, or rows that were measured now.

A page says what it measures of a group of prompts as one function, a *measurement*: from a group to rows of the table of scores
(`memlib.results.table`). `gather` runs it on all prompts or on a few of them, as the profile of the run says:

- reference: all prompts and seeds, and what was measured becomes ``data/scores/<page>-<substrate>.parquet``, with commit and hardware;
- check: a few prompts with one seed, compared with that file, whose rows are then taken. Where there is no file for the substrate, as live;
- live: all prompts and seeds that the parameters name, and nothing is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from memlib.base.errors import InputError
from memlib.base.numbers import counted
from memlib.experiment.group import Group
from memlib.experiment.page import NOT_MEASURED, told
from memlib.experiment.run import Experiment
from memlib.experiment.settings import Edit
from memlib.judging.bounded import Ends, student_change, student_contrast, student_mean, student_ratio
from memlib.judging.estimates import Estimate, bootstrap, wilson
from memlib.judging.judge import registration
from memlib.prompts.sets import PromptSet
from memlib.results.comparison import TOLERANCE, Comparison, require_agreement
from memlib.results.measure import scored
from memlib.results.table import KEYS, fingerprints, join, matrix, path_of, prompt_names, read, write
from memlib.sampling.batches import SAMPLER_VERSION

Measurement = Callable[[Group], pd.DataFrame]
PROFILES = ("live", "reference", "check")
MEMORIZED, SEEN_ONCE, DESCRIPTIONS = "memorized", "titles seen once", "descriptions"
# The first word of scores that have ends, for their intervals: of pictures, and of states of a text encoder.
ENDS: dict[str, Ends] = {"similarity": (0.0, 1.0), "cosine": (-1.0, 1.0), "silhouette": (-1.0, 1.0)}
CHECKED = {MEMORIZED: 4, SEEN_ONCE: 2, DESCRIPTIONS: 0}  # prompts that a check measures anew, with one seed: half a minute of a core


@dataclass
class Evidence:
    """Groups of prompts by label with rows of each: `groups` are at hand now with their pictures, `rows` are what figures and tables come from.

    Methods below take an edit (an intervention's key or a mitigation), and `of`, the label of a group; they return None where something was not
    measured. Intervals are those of the registration: scores with ends by `bounded_mean`, others by Student's t, over prompts.
    """

    groups: dict[str, Group]
    rows: dict[str, pd.DataFrame]
    words: str
    bounds: dict[str, float] = field(default_factory=dict)

    def values(self, metric: str, edit: Edit = "none", of: str = MEMORIZED) -> np.ndarray | None:
        """A metric as [P, S], or [P] where it was taken over seeds."""
        return matrix(self.rows[of], metric, edit) if of in self.rows else None

    def mean(self, metric: str, edit: Edit = "none", of: str = MEMORIZED) -> Estimate | None:
        values = self.values(metric, edit, of)
        return None if values is None else student_mean(values, ENDS.get(metric.split()[0]))

    def change(self, metric: str, edit: Edit, baseline: Edit = "none", of: str = MEMORIZED) -> Estimate | None:
        """Mean under `edit` minus under `baseline`, paired by prompt and seed."""
        first, second = self.values(metric, edit, of), self.values(metric, baseline, of)
        return None if first is None or second is None else student_change(first, second, ENDS.get(metric.split()[0]))

    def share(self, metric: str, edit: Edit, baseline: Edit = "none", of: str = MEMORIZED) -> Estimate | None:
        """Mean under `edit` as a share of that under `baseline`, paired by prompt and seed."""
        first, second = self.values(metric, edit, of), self.values(metric, baseline, of)
        return None if first is None or second is None or second.mean() <= 0 else student_ratio(first, second)

    def contrast(self, metric: str, edit: Edit = "none", of: str = MEMORIZED, against: str = SEEN_ONCE) -> Estimate | None:
        """Mean of one group minus that of another under the same edit: whether an effect is about memorization."""
        first, second = self.values(metric, edit, of), self.values(metric, edit, against)
        return None if first is None or second is None else student_contrast(first, second, ENDS.get(metric.split()[0]))

    def above(self, metric: str, edit: Edit = "none", bound: str = "lax", of: str = MEMORIZED) -> Estimate | None:
        """Share of prompts whose mean over seeds is at or above a bound of the registration by name, with Wilson's interval."""
        values = self.values(metric, edit, of)
        if values is None or bound not in self.bounds:
            return None
        table = values.reshape(len(values), -1)
        return wilson(int((table.mean(1) >= self.bounds[bound]).sum()), *table.shape)

    def agreement(self, metric: str, reported: Mapping[Edit, float], of: str = MEMORIZED) -> Estimate | None:
        """Spearman's rank correlation, over edits, of a text's figures with the means measured; bootstrap over prompts."""
        values = {edit: self.values(metric, edit, of) for edit in reported}
        if len(values) < 3 or any(found is None for found in values.values()):
            return None
        table = np.stack([found.reshape(len(found), -1).mean(1) for found in values.values() if found is not None], axis=1)
        ranks = rankdata(list(reported.values()))

        def correlations(weights: np.ndarray) -> np.ndarray:
            return np.array([np.corrcoef(ranks, rankdata(means))[0, 1] for means in weights @ table])

        whole = float(correlations(np.full((1, len(table)), 1 / len(table)))[0])
        return bootstrap(correlations, [table], whole, resamples=2_000)

    def by_prompt(self, metric: str, edits: Sequence[Edit], name: Callable[[Edit], str] = str) -> pd.DataFrame:
        """A metric's mean over seeds for plots: one row for each group, edit and prompt (columns prompts, edit, and the metric)."""
        found = []
        for label in self.rows:
            for edit in edits:
                if (values := self.values(metric, edit, label)) is not None:
                    means = values.reshape(len(values), -1).mean(1)
                    found.append(pd.DataFrame({"prompts": label, "edit": name(edit), metric: means}))
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["prompts", "edit", metric])

    def summary(self, edits: Sequence[Edit], metrics: Sequence[str], name: Callable[[Edit], str] = str, copies: str | None = None) -> pd.DataFrame:
        """Means with intervals, a row for each group and edit, a column for each metric; of the metric `copies` first the shares of prompts
        above the lax and the strict bound, since its values have two humps."""
        lines = []
        for label in self.rows:
            for edit in edits:
                line = {"prompts": f"{label} ({self.count(label)})", "edit": name(edit)}
                if copies and self.bounds:
                    line |= {f"prompts at or above {self.bounds[bound]:.2f} ({bound}), {copies}": told(self.above(copies, edit, bound, label))
                             for bound in ("lax", "strict")}  # fmt: skip
                lines.append(line | {metric: told(self.mean(metric, edit, label)) for metric in metrics})
        return pd.DataFrame(lines).set_index(["prompts", "edit"])

    def count(self, of: str = MEMORIZED) -> str:
        """How many prompts and seeds a group's rows have, ``18 × 2``."""
        rows = self.rows.get(of)
        return NOT_MEASURED if rows is None or rows.empty else f"{rows['prompt'].replace('', np.nan).nunique()} × {max(1, rows['seed'].nunique())}"


def scoring(edits: Sequence[Edit], metrics: Sequence[str]) -> Measurement:
    """The measurement of scores of a group's pictures under edits or mitigations."""
    return lambda group: scored(group, edits, metrics)


def gather(
    page: str, run: Experiment, sets: Mapping[str, str | PromptSet], measurement: Measurement, profile: str = "check", n_prompts: int | None = None,
    checked: Mapping[str, int | None] = CHECKED, anew: Measurement | None = None,
) -> Evidence:  # fmt: skip
    """Measure groups of prompts, or take the reference run's rows and check some of them, as `profile` says (see the module).

    `page` is the notebook's name; `sets` has by label a prompt set as `memlib.experiment.Experiment.control` takes it ("auto" for what was seen
    once, "none" for no such group); at most `n_prompts` of each are measured live or for the reference. A check measures `checked` prompts of each
    label (2 where it is not named, None for all, 0 for none), by the measurement `anew` where that is less than all. Raises InputError for another
    profile, and where rows measured anew differ from the reference by more than TOLERANCE.
    """
    if profile not in PROFILES:
        raise InputError(f"Unknown profile {profile!r}: use one of {', '.join(PROFILES)}.")
    strict = run.thresholds.get("copy_threshold")
    bounds = {} if strict is None else _bounds(strict)
    path = path_of(page, run.substrate.name)
    whole = {label: group for label, prompts in sets.items() if (group := run.control(prompts, None, label)) is not None}
    kept = {label: fitting(rows, group) for label, group in whole.items()} if profile == "check" and len(rows := read(path)) else {}
    if all(len(rows) for rows in kept.values()) and kept:
        few = {label: run.group(whole[label].prompts, count, label).part(None, 1) for label in whole if (count := checked.get(label, 2)) != 0}
        now = {label: (anew or measurement)(group) for label, group in few.items()}
        found = require_agreement(join(now.values()), join(kept.values()), path)
        return Evidence(few, kept, _words(few, kept, found), bounds)
    groups = {label: run.group(group.prompts, n_prompts, label) for label, group in whole.items()}
    measured = {label: measurement(group) for label, group in groups.items()}
    if profile == "reference":
        write(path, join([_without(read(path), join(measured.values())), *measured.values()]))
    unfit = " The reference run was made with other weights, settings or metrics." if profile == "check" and path.is_file() else ""
    return Evidence(
        {label: group for label, group in groups.items() if group is not None}, measured, f"Everything on this page was measured now.{unfit}", bounds
    )


def fitting(rows: pd.DataFrame, group: Group) -> pd.DataFrame:
    """Those of `rows` that are of this group's weights, prompt set, protocol, sampler and metrics, whatever their seeds."""
    x = group.experiment
    same = {"substrate": x.substrate.name, "training": x.substrate.weights_hash[:12], "prompt_set": group.label,
            "steps": x.steps, "guidance": x.guidance, "scheduler": x.scheduler}  # fmt: skip
    rows = rows[np.logical_and.reduce([(rows[key] == value).fillna(False).to_numpy(bool) for key, value in same.items()])]
    rows = rows[rows["prompt"].isin(["", *prompt_names(group)])]
    alike = {}
    for run in set(rows["run"]):
        facts = json.loads(run or "{}")
        alike[run] = facts.get("sampler version") == SAMPLER_VERSION and facts.get("metrics") == fingerprints(group)
    return rows[rows["run"].map(alike).astype(bool)]


def _bounds(strict: float) -> dict[str, float]:
    return registration().bounds_for(strict)


def _without(rows: pd.DataFrame, anew: pd.DataFrame) -> pd.DataFrame:
    """Those rows of a file that a new run does not stand for: of other groups, protocols, methods and metrics, whatever their prompts and seeds."""
    about = [key for key in KEYS if key not in ("prompt", "seed", "n", "training")]
    measured = set(anew[about].itertuples(index=False, name=None))
    return rows[[line not in measured for line in rows[about].itertuples(index=False, name=None)]]


def _words(few: Mapping[str, Group], kept: Mapping[str, pd.DataFrame], found: Comparison) -> str:
    """One line for the page: what was measured now, what in the reference run."""
    anew = ", ".join(f"{len(group)} {label}" for label, group in few.items())
    runs = {run for rows in kept.values() for run in rows["run"]}
    facts = [json.loads(run) for run in sorted(runs) if run]
    commits, hardware = ({fact.get(key, "unknown") for fact in facts} for key in ("commit", "hardware"))
    sizes = ", ".join(
        f"{rows.loc[rows['prompt'] != '', 'prompt'].nunique()} {label} × {counted(max(1, rows['seed'].nunique()), 'seed')}" for label, rows in kept.items()
    )
    far = f"at most {found.apart:.2g} standard deviations apart ({found.where})" if found.apart > 1e-9 else "all the same"
    return (
        f"Measured now, or found in this machine's store: the pictures shown and {found.rows:,} values of {anew} with one seed. Compared with the reference "
        f"run they are {far}; {TOLERANCE:g} is allowed. From the reference run (commit {', '.join(sorted(commits))}; {', '.join(sorted(hardware))}): "
        f"all tables, intervals and verdicts, on {sizes}."
    )
