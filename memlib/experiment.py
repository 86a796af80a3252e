"""What every notebook does: load a substrate once, take prompt sets, edit, sample through the store, score, summarise.

`Experiment` holds what a run shares; `Group` is one prompt set under it. Pictures and scores come from the store when
they were made before.
"""

from __future__ import annotations

import html
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memlib.embeddings import Embedding, encode_prompts
from memlib.errors import InputError
from memlib.interventions import INTERVENTIONS, apply
from memlib.keys import digest
from memlib.metrics import metrics_for
from memlib.prompts import PromptSet, load_prompts
from memlib.sampling import Cost
from memlib.stats import Estimate, mean_interval, paired_difference
from memlib.store import Store
from memlib.substrates import Substrate, load

# Prompt sets a role stands for, by the substrate's family.
ROLES = {
    "memorized": {"minisd": "minisd-memorized", "sd": "webster-mv86"},
    "not memorized": {"minisd": "minisd-heldout", "sd": "nonmem-coco"},
}
SCORES = ("similarity to original", "similarity to training", "alignment", "quality")


class Experiment:
    """A substrate with its metrics, the store, and how pictures are sampled (`clip` Section 3: 50 steps, guidance 7.5).

    `n_seeds` seeds 0..n-1 are used for every prompt. Raises InputError for an unknown substrate, zero steps or seeds.
    """

    def __init__(
        self,
        substrate: str,
        *,
        n_seeds: int = 4,
        steps: int = 50,
        guidance: float = 7.5,
        scheduler: str = "ddim",
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | None = None,
        store: str | Path | None = None,
        progress: bool = False,
    ):
        self.started = time.monotonic()
        if not isinstance(n_seeds, int) or n_seeds < 1:
            raise InputError(f"n_seeds is {n_seeds!r}: use a whole number of at least 1.")
        self.substrate: Substrate = load(substrate, device, dtype)
        self.substrate.scheduler(scheduler, steps)  # refuses impossible steps before anything is sampled
        self.seeds = tuple(range(n_seeds))
        self.steps, self.guidance, self.scheduler = steps, guidance, scheduler
        self.batch_size, self.progress = batch_size, progress
        self.store, self.cost = Store(store), Cost()
        self.metrics = metrics_for(self.substrate, reference=self._real_pictures())

    def _real_pictures(self) -> np.ndarray | None:
        if self.substrate.family != "minisd":
            return None
        from memlib.minisd.prompt_sets import held_out_pictures

        return held_out_pictures()

    @property
    def thresholds(self) -> dict[str, float]:
        """The numbers that criteria name: `copy_threshold`; empty where the copy metric is not at hand."""
        copy = self.metrics.copy
        return {"copy_threshold": copy.threshold} if copy.available else {}

    def group(self, prompts: str | PromptSet, count: int | None = None, label: str | None = None) -> Group:
        """The prompt set `prompts`: "memorized" or "not memorized" for the substrate's own, a name, or a file.

        At most `count` prompts, drawn with a fixed seed where there are more.
        """
        name = ROLES.get(prompts, {}).get(self.substrate.family, prompts) if isinstance(prompts, str) else None
        found = prompts if name is None else load_prompts(name)
        if count is not None and count < 1:
            raise InputError(f"{count} prompts were asked for: ask for at least 1.")
        if count is not None and count < len(found):
            found = found.sample(count, seed=0)
        return Group(self, found, label or (prompts if isinstance(prompts, str) else prompts.name))

    def provenance(self) -> Provenance:
        """Where the figures of this run come from; the last line of every notebook."""
        import diffusers
        import torch
        import transformers

        s = self.substrate
        hardware = torch.cuda.get_device_name(s.device) if s.device.type == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
        return Provenance(
            {
                "substrate": f"{s.name} ({s.revision or 'weights ' + s.weights_hash[:12]})",
                "seeds": f"{self.seeds[0]} to {self.seeds[-1]}",
                "sampler": f"{self.scheduler}, {self.steps} steps, guidance {self.guidance:g}, {str(s.dtype).removeprefix('torch.')}",
                "commit": _commit(),
                "versions": f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}",
                "hardware": hardware,
                "pictures": f"{self.store.made} sampled or scored here, {self.store.found} from the store",
                "run": f"{time.strftime('%Y-%m-%d')}, {(time.monotonic() - self.started) / 60:.1f} minutes",
            }
        )


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() or "not in a repository"


@dataclass(frozen=True)
class Provenance:
    """Names and values, shown as one quiet line."""

    facts: Mapping[str, str]

    def __str__(self) -> str:
        return "; ".join(f"{k}: {v}" for k, v in self.facts.items())

    def _repr_html_(self) -> str:
        items = " · ".join(f"<strong>{html.escape(k)}</strong> {html.escape(v)}" for k, v in self.facts.items())
        return f"<p class='memlib-provenance'><small>{items}</small></p>"


@dataclass
class Group:
    """One prompt set under an experiment: embeddings, pictures and scores by intervention."""

    experiment: Experiment
    prompts: PromptSet
    label: str
    _pictures: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def embedding(self) -> Embedding:
        """The unedited embedding, N x 77 x width, under the substrate's own padding."""
        return encode_prompts(self.experiment.substrate, self.prompts.prompts)

    @cached_property
    def descriptions(self) -> list[str]:
        """The text that alignment is judged against: the column `description` where a row has one, else the prompt.

        MiniSD's memorized captions are titles that do not say what their picture shows; its description does.
        """
        table = self.prompts.table
        described = table["description"].fillna("") if "description" in table else [""] * len(table)
        return [d or p for d, p in zip(described, self.prompts.prompts, strict=True)]

    def pictures(self, intervention: str = "none") -> np.ndarray:
        """Pictures under an intervention of `memlib.interventions`, uint8 [N, S, H, W, 3]."""
        if intervention not in self._pictures:
            self._pictures[intervention] = self.sample(apply(intervention, self.embedding))
        return self._pictures[intervention]

    def rows(self, interventions: Sequence[str], count: int = 8) -> dict[str, np.ndarray]:
        """Rows for `memlib.plots.montage`: the first seed's pictures of `count` prompts, one row per intervention, and the
        training pictures last where they are at hand."""
        shown = {"original" if k == "none" else f"({k}) {INTERVENTIONS[k].label}": self.pictures(k)[:count, 0] for k in interventions}
        if self.training is not None:
            shown["training picture"] = np.stack([pictures[0] for pictures in self.training[:count]])
        return shown

    def sample(self, embedding: Embedding) -> np.ndarray:
        """Pictures of any edited embedding of these prompts, uint8 [N, S, H, W, 3], through the store."""
        x = self.experiment
        return x.store.pictures(x.substrate, embedding, x.seeds, x.steps, x.guidance, x.scheduler, batch_size=x.batch_size,
                                progress=x.progress, cost=x.cost)  # fmt: skip

    @cached_property
    def training(self) -> list[np.ndarray] | None:
        """The training pictures of each prompt (uint8 [K, H, W, 3], K = 1 but for templates), or None if they are not at hand."""
        table = self.prompts.table
        if "training_picture" not in table or not table["training_picture"].fillna("").astype(bool).all():
            return None
        if self.experiment.substrate.family == "minisd":
            from memlib.minisd.prompt_sets import training_pictures

            return [training_pictures(name) for name in table["training_picture"]]
        from memlib.metrics.pictures import read_pictures

        return [read_pictures([Path(path)]) for path in table["training_picture"]]

    def score(self, name: str, intervention: str = "none") -> np.ndarray | None:
        """One of SCORES or "diversity" per prompt and seed, [N, S] ([N] for diversity); None where it cannot be measured."""
        if name not in (*SCORES, "diversity"):
            raise InputError(f"Unknown score {name!r}: use one of {', '.join((*SCORES, 'diversity'))}.")
        x, pictures = self.experiment, self.pictures(intervention)
        metric = x.metrics[{"alignment": "alignment", "quality": "quality", "diversity": "diversity"}.get(name, "copy")]
        if not metric.available or (name == "diversity" and len(x.seeds) < 2):
            return None
        made_from: list[Any] = [digest(pictures)]
        if name == "similarity to original":
            original = self.pictures()
            made_from.append(digest(original))
            compute = lambda: metric.similarity(pictures, original)  # noqa: E731
        elif name == "similarity to training":
            if (training := self.training) is None:
                return None
            made_from.append([digest(t) for t in training])
            compute = lambda: _nearest_training(metric, pictures, training)  # noqa: E731
        elif name == "alignment":
            made_from.append(self.descriptions)
            compute = lambda: metric(pictures, self.descriptions)  # noqa: E731
        else:
            compute = lambda: metric(pictures)  # noqa: E731
        return x.store.score({"score": name, "metric": metric.fingerprint, "of": made_from}, compute)

    def mean(self, name: str, intervention: str = "none") -> Estimate | None:
        """Mean of a score with its interval by bootstrap over prompts."""
        values = self.score(name, intervention)
        return None if values is None else mean_interval(values)

    def change(self, name: str, intervention: str, baseline: str = "none") -> Estimate | None:
        """Mean of a score under `intervention` minus under `baseline`, paired by prompt and seed."""
        first, second = self.score(name, intervention), self.score(name, baseline)
        return None if first is None or second is None else paired_difference(first, second)


def _nearest_training(metric: Any, pictures: np.ndarray, training: list[np.ndarray]) -> np.ndarray:
    vectors = metric(pictures)
    return np.stack([(vectors[i] @ metric(t).T).max(1) for i, t in enumerate(training)])


def summary(groups: Sequence[Group], interventions: Sequence[str], scores: Sequence[str] = SCORES, digits: int = 2) -> pd.DataFrame:
    """Means with intervals, one row per group and intervention, one column per score; "not measured" where it is not."""
    rows = []
    for group in groups:
        for key in interventions:
            means = {score: group.mean(score, key) for score in scores}
            rows.append({"prompts": f"{group.label} ({len(group)})", "edit": "original" if key == "none" else key,
                         **{k: "not measured" if m is None else m.text(digits) for k, m in means.items()}})  # fmt: skip
    return pd.DataFrame(rows).set_index(["prompts", "edit"])


def long_table(groups: Sequence[Group], interventions: Sequence[str], score: str) -> pd.DataFrame:
    """One row per group, intervention and prompt: the score's mean over seeds, for plots."""
    rows = []
    for group in groups:
        for key in interventions:
            values = group.score(score, key)
            if values is None:
                continue
            per_prompt = values if values.ndim == 1 else values.mean(1)
            rows += [{"prompts": group.label, "edit": "original" if key == "none" else key, score: float(v)} for v in per_prompt]
    return pd.DataFrame(rows, columns=["prompts", "edit", score])
