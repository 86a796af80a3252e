"""What every notebook does: load a substrate once, take prompt sets, edit, sample through the store, score, summarise.

`Experiment` holds what a run shares; `Group` is one prompt set under it. Pictures and scores come from the store when
they were made before.
"""

from __future__ import annotations

import copy
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
from memlib.guidance import Rule
from memlib.interventions import INTERVENTIONS, apply
from memlib.keys import digest
from memlib.metrics import metrics_for
from memlib.mitigations import REGISTRY, Mitigation
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
# Scores that are known by name and shown where a notebook asks for them.
FURTHER_SCORES = ("diversity", "alignment with prompt")
# What is done to a prompt: the key of an intervention, or a mitigation (`memlib.mitigations.get`).
Edit = str | Mitigation


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
        found = choose_prompts(prompts, self.substrate.family, count)
        return Group(self, found, label or (prompts if isinstance(prompts, str) else prompts.name))

    def control(self, prompts: str | PromptSet = "auto", count: int | None = None, label: str = "same kind, seen once") -> Group | None:
        """Prompts of the memorized ones' kind that are not memorized, for telling memorization from wording; None where there are none.

        "auto" takes MiniSD's titles with one copy in the training data (its memorized prompts are titles, its held-out ones
        descriptions), and nothing for other families; "none" is none; else as in `group`.
        """
        if isinstance(prompts, str) and prompts in ("auto", "none"):
            if prompts == "none" or self.substrate.family != "minisd":
                return None
            titles = load_prompts("minisd-duplicated")
            prompts = titles.select(titles.table["copies"].astype(int) == 1)
        return self.group(prompts, count, label)

    def provenance(self) -> Provenance:
        """Where the figures of this run come from; the last line of every notebook."""
        s = self.substrate
        facts = {
            "substrate": f"{s.name} ({s.revision or 'weights ' + s.weights_hash[:12]})",
            "seeds": f"{self.seeds[0]} to {self.seeds[-1]}",
            "sampler": f"{self.scheduler}, {self.steps} steps, guidance {self.guidance:g}, {str(s.dtype).removeprefix('torch.')}",
            "pictures": f"{self.store.made} sampled or scored here, {self.store.found} from the store",
        }
        return provenance(facts, self.started, s.device)


def choose_prompts(prompts: str | PromptSet, family: str, count: int | None = None) -> PromptSet:
    """The prompt set that `prompts` stands for: a role ("memorized", "not memorized") by family, a name, a file or a set.

    At most `count` prompts, drawn with a fixed seed where there are more.
    """
    name = ROLES.get(prompts, {}).get(family, prompts) if isinstance(prompts, str) else None
    found = prompts if name is None else load_prompts(name)
    if count is not None and count < 1:
        raise InputError(f"{count} prompts were asked for: ask for at least 1.")
    return found.sample(count, seed=0) if count is not None and count < len(found) else found


def provenance(facts: Mapping[str, str], started: float, device: Any = None) -> Provenance:
    """`facts` with what every run has: commit, versions, hardware, day and duration since `started` (time.monotonic)."""
    import diffusers
    import torch
    import transformers

    on_gpu = device is not None and device.type == "cuda"
    hardware = torch.cuda.get_device_name(device) if on_gpu else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return Provenance(
        {
            **facts,
            "commit": _commit(),
            "versions": f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}",
            "hardware": hardware,
            "run": f"{time.strftime('%Y-%m-%d')}, {(time.monotonic() - started) / 60:.1f} minutes",
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
    """One prompt set under an experiment: embeddings, pictures and scores by edit (an intervention's key or a mitigation)."""

    experiment: Experiment
    prompts: PromptSet
    label: str
    _pictures: dict[Edit, np.ndarray] = field(default_factory=dict, repr=False)

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

    def part(self, n_prompts: int | None = None, n_seeds: int | None = None) -> Group:
        """The first prompts and seeds of this group: their pictures under "none" and the interventions are the same ones."""
        fewer = copy.copy(self.experiment)
        fewer.seeds = self.experiment.seeds[:n_seeds]
        group = Group(fewer, self.prompts.first(n_prompts), self.label)
        # Rows of one embedding, not encoded again: in another batch the last digits, and with them the keys, may differ.
        group.embedding = self.embedding.select(slice(n_prompts))
        return group

    def edited(self, edit: Edit) -> Embedding:
        """The embedding under an intervention of `memlib.interventions` or a mitigation."""
        if isinstance(edit, Mitigation):
            return edit.apply(self.experiment.substrate, self.embedding)
        return apply(edit, self.embedding)

    def pictures(self, edit: Edit = "none") -> np.ndarray:
        """Pictures under an intervention of `memlib.interventions` or a mitigation, uint8 [N, S, H, W, 3]."""
        if edit not in self._pictures:
            self._pictures[edit] = self.sample(self.edited(edit), edit if isinstance(edit, Mitigation) else None)
        return self._pictures[edit]

    def rows(self, edits: Sequence[Edit], count: int = 8) -> dict[str, np.ndarray]:
        """Rows for `memlib.plots.montage`: the first seed's pictures of `count` prompts, one row per edit, and the
        training pictures last where they are at hand."""
        shown = {_row_label(edit): self.pictures(edit)[:count, 0] for edit in edits}
        if self.training is not None:
            shown["training picture"] = np.stack([pictures[0] for pictures in self.training[:count]])
        return shown

    def sample(self, embedding: Embedding, mitigation: Mitigation | None = None, guidance: float | Rule | None = None) -> np.ndarray:
        """Pictures of any edited embedding of these prompts, uint8 [N, S, H, W, 3], through the store.

        Of a mitigation, guidance and what it does while sampling are applied here, its edit of the embedding is not. `guidance` stands in
        for the experiment's own, as a number or a rule per step (`memlib.guidance`).
        """
        x = self.experiment
        guidance = x.guidance if guidance is None else guidance
        guidance = guidance if mitigation is None else mitigation.guidance(guidance)
        return x.store.pictures(x.substrate, embedding, x.seeds, x.steps, guidance, x.scheduler, batch_size=x.batch_size,
                                progress=x.progress, cost=x.cost,
                                mitigation=mitigation if mitigation is not None and mitigation.sampled else None)  # fmt: skip

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

        return [read_pictures([Path(path) for path in entry.split(" | ")]) for entry in table["training_picture"]]

    def score(self, name: str, edit: Edit = "none") -> np.ndarray | None:
        """One of SCORES or FURTHER_SCORES per prompt and seed, [N, S] ([N] for diversity); None where it cannot be measured.

        "alignment with prompt" judges against the prompt itself, "alignment" against `descriptions`.
        """
        _refuse_unknown_score(name)
        return self.score_of(name, self.pictures(edit))

    def score_of(self, name: str, pictures: np.ndarray) -> np.ndarray | None:
        """A score, as in `score`, of any pictures of these prompts and seeds, uint8 [N, S, H, W, 3]."""
        _refuse_unknown_score(name)
        x = self.experiment
        roles = {"alignment": "alignment", "alignment with prompt": "alignment", "quality": "quality", "diversity": "diversity"}
        metric = x.metrics[roles.get(name, "copy")]
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
            compute = lambda: nearest_training(metric, pictures, training)  # noqa: E731
        elif metric is x.metrics["alignment"]:
            texts = self.descriptions if name == "alignment" else list(self.prompts.prompts)
            made_from.append(texts)
            compute = lambda: metric(pictures, texts)  # noqa: E731
            name = "alignment"  # the same texts give the same score under either name
        else:
            compute = lambda: metric(pictures)  # noqa: E731
        return x.store.score({"score": name, "metric": metric.fingerprint, "of": made_from}, compute)

    def mean(self, name: str, edit: Edit = "none") -> Estimate | None:
        """Mean of a score with its interval by bootstrap over prompts."""
        values = self.score(name, edit)
        return None if values is None else mean_interval(values)

    def change(self, name: str, edit: Edit, baseline: Edit = "none") -> Estimate | None:
        """Mean of a score under `edit` minus under `baseline`, paired by prompt and seed."""
        first, second = self.score(name, edit), self.score(name, baseline)
        return None if first is None or second is None else paired_difference(first, second)


def nearest_training(metric: Any, pictures: np.ndarray, training: Sequence[np.ndarray]) -> np.ndarray:
    """Copy similarity [N, S] of pictures [N, S, H, W, 3] to the nearest of each prompt's training pictures [K, H, W, 3]."""
    vectors = metric(pictures)
    return np.stack([(vectors[i] @ metric(t).T).max(1) for i, t in enumerate(training)])


def _refuse_unknown_score(name: str) -> None:
    if name not in (*SCORES, *FURTHER_SCORES):
        raise InputError(f"Unknown score {name!r}: use one of {', '.join((*SCORES, *FURTHER_SCORES))}.")


def _row_label(edit: Edit) -> str:
    if isinstance(edit, Mitigation):
        return edit.label if edit == REGISTRY.get(edit.name) else edit.title
    return "original" if edit == "none" else f"({edit}) {INTERVENTIONS[edit].label}"


def edit_name(edit: Edit) -> str:
    """How tables and figures call an edit."""
    if isinstance(edit, Mitigation):
        return edit.title
    return "original" if edit == "none" else edit


def summary(groups: Sequence[Group], edits: Sequence[Edit], scores: Sequence[str] = SCORES, digits: int = 2) -> pd.DataFrame:
    """Means with intervals, one row per group and edit, one column per score; "not measured" where it is not."""
    rows = []
    for group in groups:
        for key in edits:
            means = {score: group.mean(score, key) for score in scores}
            rows.append({"prompts": f"{group.label} ({len(group)})", "edit": edit_name(key),
                         **{k: "not measured" if m is None else m.text(digits) for k, m in means.items()}})  # fmt: skip
    return pd.DataFrame(rows).set_index(["prompts", "edit"])


def long_table(groups: Sequence[Group], edits: Sequence[Edit], score: str) -> pd.DataFrame:
    """One row per group, edit and prompt: the score's mean over seeds, for plots."""
    rows = []
    for group in groups:
        for key in edits:
            values = group.score(score, key)
            if values is None:
                continue
            per_prompt = values if values.ndim == 1 else values.mean(1)
            rows += [{"prompts": group.label, "edit": edit_name(key), score: float(v)} for v in per_prompt]
    return pd.DataFrame(rows, columns=["prompts", "edit", score])
