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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from memlib import care
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
# The metric's role behind a score, where it is not the copy descriptor; those that judge against a text.
ROLE_OF = {"alignment": "alignment", "alignment with prompt": "alignment", "quality": "quality", "diversity": "diversity"}
TEXTS = ("alignment", "alignment with prompt")
# Bytes of pictures that a group keeps in memory; others are read from the store when they are needed again.
HELD_BYTES = 8 * 2**30
SCORED_AT_ONCE = 64  # Prompts whose pictures are held together while they are scored.
# What is done to a prompt: the key of an intervention, or a mitigation (`memlib.mitigations.get`).
Edit = str | Mitigation


class Experiment:
    """A substrate with its metrics, the store, and how pictures are sampled (`clip` Section 3: 50 steps, guidance 7.5).

    `n_seeds` seeds 0..n-1 are used for every prompt. `loaded` is the substrate where it was loaded before;
    `pictures` says how pages show pictures (`memlib.care`). Raises InputError for an unknown substrate, zero steps or seeds.
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
        loaded: Substrate | None = None,
        pictures: str = "auto",
    ):
        self.started = time.monotonic()
        if not isinstance(n_seeds, int) or n_seeds < 1:
            raise InputError(f"n_seeds is {n_seeds!r}: use a whole number of at least 1.")
        self.substrate: Substrate = load(substrate, device, dtype) if loaded is None else loaded
        care.choose(pictures, self.substrate.family)
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
    _embeddings: dict[Edit, Embedding] = field(default_factory=dict, repr=False)

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
            self._pictures[edit] = self.sample(self._edited(edit), edit if isinstance(edit, Mitigation) else None)
            while len(self._pictures) > 1 and sum(pictures.nbytes for pictures in self._pictures.values()) > HELD_BYTES:
                del self._pictures[next(iter(self._pictures))]
        return self._pictures[edit]

    def some_pictures(self, edit: Edit, rows: Sequence[int], n_seeds: int | None = None) -> np.ndarray:
        """The pictures of these prompts alone, with the first `n_seeds` seeds, uint8 [R, S, H, W, 3]; as `pictures`, and no others are made."""
        if edit in self._pictures:
            return self._pictures[edit][list(rows), :n_seeds]
        fewer = copy.copy(self.experiment)
        fewer.seeds = self.experiment.seeds[:n_seeds]
        part = Group(fewer, self.prompts.select(rows), self.label)
        return part.sample(self._edited(edit).select(list(rows)), edit if isinstance(edit, Mitigation) else None)

    def _edited(self, edit: Edit) -> Embedding:
        """`edited`, once for each edit: a padding that is encoded again takes time."""
        if edit not in self._embeddings:
            self._embeddings[edit] = self.edited(edit)
        return self._embeddings[edit]

    def hold(self, edit: Edit, embedding: Embedding) -> None:
        """Take `embedding` for what an edit makes of these prompts, as it was made elsewhere."""
        self._embeddings[edit] = embedding

    def keys(self, edit: Edit = "none") -> list[list[str]]:
        """The store's keys [N][S] of the pictures under an edit; none of them is made or read."""
        x = self.experiment
        guidance, mitigation = self._guided(edit if isinstance(edit, Mitigation) else None, None)
        return x.store.asked(x.substrate, self._edited(edit), x.seeds, x.steps, guidance, x.scheduler, mitigation=mitigation).keys

    def rows(self, edits: Sequence[Edit], count: int = 8) -> dict[str, np.ndarray]:
        """Rows for `memlib.plots.montage`: the first seed's pictures of `count` prompts, one row per edit, and the
        training pictures last where they are at hand."""
        rows = range(min(count, len(self)))
        shown = {_row_label(edit): self.some_pictures(edit, rows, 1)[:, 0] for edit in edits}
        if self.training is not None and care.training_allowed():
            shown["training picture"] = np.stack([pictures[0] for pictures in self.training[:count]])
        return shown

    def sample(self, embedding: Embedding, mitigation: Mitigation | None = None, guidance: float | Rule | None = None) -> np.ndarray:
        """Pictures of any edited embedding of these prompts, uint8 [N, S, H, W, 3], through the store.

        Of a mitigation, guidance and what it does while sampling are applied here, its edit of the embedding is not. `guidance` stands in
        for the experiment's own, as a number or a rule per step (`memlib.guidance`).
        """
        x = self.experiment
        guidance, mitigation = self._guided(mitigation, guidance)
        return x.store.pictures(x.substrate, embedding, x.seeds, x.steps, guidance, x.scheduler, batch_size=x.batch_size,
                                progress=x.progress, cost=x.cost, mitigation=mitigation)  # fmt: skip

    def _guided(self, mitigation: Mitigation | None, guidance: float | Rule | None) -> tuple[float | Rule, Mitigation | None]:
        """Guidance under a mitigation, and the mitigation itself where it acts while sampling."""
        guidance = self.experiment.guidance if guidance is None else guidance
        if mitigation is None:
            return guidance, None
        return mitigation.guidance(guidance), mitigation if mitigation.sampled else None

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

        return [care.withhold(read_pictures([Path(path) for path in entry.split(" | ")])) for entry in table["training_picture"]]

    def score(self, name: str, edit: Edit = "none") -> np.ndarray | None:
        """One of SCORES or FURTHER_SCORES per prompt and seed, [N, S] ([N] for diversity); None where it cannot be measured.

        "alignment with prompt" judges against the prompt itself, "alignment" against `descriptions`.
        """
        _refuse_unknown_score(name)
        x, metric = self.experiment, self._metric(name)
        if metric is None or (name == "similarity to training" and self.training is None):
            return None
        pictures, made_with = self.keys(edit), self._compared_with(name)
        keys = [{"score": _stored_as(name), "metric": metric.fingerprint, "pictures": made, "with": other}
                for made, other in zip(pictures, made_with, strict=True)]  # fmt: skip

        def compute(absent: list[int]) -> Iterator[tuple[int, np.ndarray]]:
            for start in range(0, len(absent), SCORED_AT_ONCE):
                rows = absent[start : start + SCORED_AT_ONCE]
                yield from zip(rows, self._judge(metric, name, self.some_pictures(edit, rows), rows), strict=True)

        return np.stack(x.store.scores(keys, compute))

    def _metric(self, name: str) -> Any | None:
        """The metric behind a score, or None where it cannot be measured."""
        x = self.experiment
        metric = x.metrics[ROLE_OF.get(name, "copy")]
        return None if not metric.available or (name == "diversity" and len(x.seeds) < 2) else metric

    def _compared_with(self, name: str) -> list[Any]:
        """What each prompt's pictures are compared with under a score, as a part of the store's key."""
        if name == "similarity to original":
            return self.keys()
        if name == "similarity to training":
            return [digest(pictures) for pictures in self.training]
        if name in TEXTS:
            return self._texts(name)
        return [None] * len(self)

    def _texts(self, name: str) -> list[str]:
        return self.descriptions if name == "alignment" else list(self.prompts.prompts)

    def _judge(self, metric: Any, name: str, pictures: np.ndarray, rows: Sequence[int] | None = None) -> np.ndarray:
        """A score of the pictures of prompts `rows` (None: all), [R, S] or [R]."""
        rows = list(range(len(self)) if rows is None else rows)
        if name == "similarity to original":
            return metric.similarity(pictures, self.some_pictures("none", rows, pictures.shape[1]))
        if name == "similarity to training":
            return nearest_training(metric, pictures, [self.training[row] for row in rows])
        if name in TEXTS:
            texts = self._texts(name)
            return metric(pictures, [texts[row] for row in rows])
        return metric(pictures)

    def score_of(self, name: str, pictures: np.ndarray) -> np.ndarray | None:
        """A score, as in `score`, of any pictures of these prompts and seeds, uint8 [N, S, H, W, 3]."""
        _refuse_unknown_score(name)
        x, metric = self.experiment, self._metric(name)
        if metric is None or (name == "similarity to training" and self.training is None):
            return None
        made_from: list[Any] = [digest(pictures)]
        if name == "similarity to original":
            made_from.append(digest(self.pictures()))
        elif name == "similarity to training":
            made_from.append([digest(t) for t in self.training])
        elif name in TEXTS:
            made_from.append(self._texts(name))
        key = {"score": _stored_as(name), "metric": metric.fingerprint, "of": made_from}
        return x.store.score(key, lambda: self._judge(metric, name, pictures), pictures.shape[: 1 if name == "diversity" else 2])

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


def _stored_as(name: str) -> str:
    """How the store calls a score: the same texts give the same alignment under either name."""
    return "alignment" if name in TEXTS else name


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
