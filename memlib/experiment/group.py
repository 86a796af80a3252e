"""One prompt set under an experiment: its embeddings, pictures and scores under every edit of the prompts.

Pictures and scores come from the store when they were made before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from memlib.base.errors import InputError, NotMeasured
from memlib.base.hashing import digest
from memlib.experiment import picture_policy as care
from memlib.experiment import scores
from memlib.experiment.settings import Edit, Settings, forget_other_models
from memlib.judging.estimates import Estimate, mean_interval, paired_difference
from memlib.mitigations import REGISTRY, Mitigation
from memlib.prompts.embedding import Embedding, encode_prompts
from memlib.prompts.interventions import INTERVENTIONS, apply
from memlib.prompts.sets import PromptSet
from memlib.sampling.guidance import Rule
from memlib.sampling.recipe import described_guidance

# Bytes of pictures that a group keeps in memory; others are read from the store when they are needed again.
HELD_BYTES = 8 * 2**30


@dataclass
class Group:
    """One prompt set under an experiment: embeddings, pictures and scores by edit (an intervention's key or a mitigation)."""

    experiment: Settings
    prompts: PromptSet
    label: str
    _pictures: dict[Edit, np.ndarray] = field(default_factory=dict, repr=False)
    _embeddings: dict[Edit, Embedding] = field(default_factory=dict, repr=False)
    _embedding: Embedding | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def embedding(self) -> Embedding:
        """The unedited embedding, N x 77 x width, under the substrate's own padding; it can be set to what was encoded elsewhere."""
        self._forget_other_models()
        if self._embedding is None:
            self._embedding = encode_prompts(self.experiment.substrate, self.prompts.prompts)
        return self._embedding

    @embedding.setter
    def embedding(self, encoded: Embedding) -> None:
        self._forget_other_models()
        self._embedding = encoded

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
        """The embedding under an intervention of `memlib.prompts.interventions` or a mitigation."""
        if isinstance(edit, Mitigation):
            return edit.apply(self.experiment.substrate, self.embedding)
        return apply(edit, self.embedding)

    def pictures(self, edit: Edit = "none") -> np.ndarray:
        """Pictures under an intervention of `memlib.prompts.interventions` or a mitigation, uint8 [N, S, H, W, 3]."""
        self._forget_other_models()
        if edit not in self._pictures:
            self._pictures[edit] = self.sample(self._edited(edit), edit if isinstance(edit, Mitigation) else None)
            while len(self._pictures) > 1 and sum(pictures.nbytes for pictures in self._pictures.values()) > HELD_BYTES:
                del self._pictures[next(iter(self._pictures))]
        return self._pictures[edit]

    def make(self, edits: Iterable[Edit]) -> dict[Edit, float]:
        """Make the absent pictures of several edits in common batches, for small groups that fill none by themselves.

        Only edits that are guided alike and do nothing while sampling can share a batch; the others, and edits that cannot be used here,
        are left to `pictures`. Returns the U-Net rows that a picture took, for the edits of batches in which pictures were made.
        """
        x, rows = self.experiment, dict[Edit, float]()
        alike: dict[str, tuple[float | Rule, dict[Edit, torch.Tensor]]] = {}
        if len(self) * len(x.seeds) >= (x.batch_size or x.substrate.batch_size()):
            return rows  # Full batches by themselves, and too many embeddings to hold them all at once.
        for edit in dict.fromkeys(edits):
            guidance, mitigation = self._guided(edit if isinstance(edit, Mitigation) else None, None)
            if edit in self._pictures or mitigation is not None:
                continue
            with suppress(InputError, NotMeasured):  # `pictures` says what is wrong
                alike.setdefault(digest(described_guidance(guidance)), (guidance, {}))[1][edit] = self._edited(edit).states
        for guidance, states in alike.values():
            if len(states) < 2:
                continue
            # What tokens they had no longer matters: nothing but the states is looked at where no mitigation acts.
            together = self.embedding.select(list(range(len(self))) * len(states)).replace(torch.cat(list(states.values())))
            before = x.cost.evaluations, x.cost.pictures
            x.store.ensure(x.substrate, together, x.seeds, x.recipe(guidance), batch_size=x.batch_size, progress=x.progress, cost=x.cost)
            if made := x.cost.pictures - before[1]:
                rows |= dict.fromkeys(states, (x.cost.evaluations - before[0]) / made)
        return rows

    def some_pictures(self, edit: Edit, rows: Sequence[int], n_seeds: int | None = None) -> np.ndarray:
        """The pictures of these prompts alone, with the first `n_seeds` seeds, uint8 [R, S, H, W, 3]; as `pictures`, and no others are made."""
        self._forget_other_models()
        if edit in self._pictures:
            return self._pictures[edit][list(rows), :n_seeds]
        fewer = copy.copy(self.experiment)
        fewer.seeds = self.experiment.seeds[:n_seeds]
        part = Group(fewer, self.prompts.select(rows), self.label)
        return part.sample(self._edited(edit).select(list(rows)), edit if isinstance(edit, Mitigation) else None)

    def _edited(self, edit: Edit) -> Embedding:
        """`edited`, once for each edit: a padding that is encoded again takes time."""
        self._forget_other_models()
        if edit not in self._embeddings:
            self._embeddings[edit] = self.edited(edit)
        return self._embeddings[edit]

    def _forget_other_models(self) -> None:
        if forget_other_models(self, self.experiment.substrate):
            self._embedding = None
            self._pictures.clear()
            self._embeddings.clear()

    def hold(self, edit: Edit, embedding: Embedding) -> None:
        """Take `embedding` for what an edit makes of these prompts, as it was made elsewhere."""
        self._embeddings[edit] = embedding

    def keys(self, edit: Edit = "none") -> list[list[str]]:
        """The store's keys [N][S] of the pictures under an edit; none of them is made or read."""
        x = self.experiment
        guidance, mitigation = self._guided(edit if isinstance(edit, Mitigation) else None, None)
        return x.store.asked(x.substrate, self._edited(edit), x.seeds, x.recipe(guidance), mitigation=mitigation).keys

    def rows(self, edits: Sequence[Edit], count: int = 8) -> dict[str, np.ndarray]:
        """Rows for `memlib.results.figures.montage`: the first seed's pictures of `count` prompts, one row per edit, and the
        training pictures last where they are at hand."""
        rows = range(min(count, len(self)))
        shown = {_row_label(edit): self.some_pictures(edit, rows, 1)[:, 0] for edit in edits}
        if self.training is not None and care.training_allowed():
            shown["training picture"] = np.stack([pictures[0] for pictures in self.training[:count]])
        return shown

    def sample(self, embedding: Embedding, mitigation: Mitigation | None = None, guidance: float | Rule | None = None) -> np.ndarray:
        """Pictures of any edited embedding of these prompts, uint8 [N, S, H, W, 3], through the store.

        Of a mitigation, guidance and what it does while sampling are applied here, its edit of the embedding is not. `guidance` stands in
        for the experiment's own, as a number or a rule per step (`memlib.sampling.guidance`).
        """
        x = self.experiment
        guidance, mitigation = self._guided(mitigation, guidance)
        options = {"batch_size": x.batch_size, "progress": x.progress, "cost": x.cost, "mitigation": mitigation}
        return x.store.pictures(x.substrate, embedding, x.seeds, x.recipe(guidance), **options)

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
        data = self.experiment.substrate.data
        found = [data.training_pictures(entry) for entry in table["training_picture"]]
        return found if data.free else [care.withhold(pictures) for pictures in found]

    def score(self, name: str, edit: Edit = "none") -> np.ndarray | None:
        """One of SCORES or FURTHER_SCORES (`memlib.experiment.scores`) per prompt and seed, [N, S] ([N] for diversity); None where it cannot be measured.

        "alignment with prompt" judges against the prompt itself, "alignment" against `descriptions`. Raises InputError for an unknown score.
        """
        return scores.score(self, name, edit)

    def score_of(self, name: str, pictures: np.ndarray) -> np.ndarray | None:
        """A score, as in `score`, of any pictures of these prompts and seeds, uint8 [N, S, H, W, 3]."""
        return scores.score_of(self, name, pictures)

    def mean(self, name: str, edit: Edit = "none") -> Estimate | None:
        """Mean of a score with its interval by bootstrap over prompts."""
        values = self.score(name, edit)
        return None if values is None else mean_interval(values)

    def change(self, name: str, edit: Edit, baseline: Edit = "none") -> Estimate | None:
        """Mean of a score under `edit` minus under `baseline`, paired by prompt and seed."""
        first, second = self.score(name, edit), self.score(name, baseline)
        return None if first is None or second is None else paired_difference(first, second)


def _row_label(edit: Edit) -> str:
    if isinstance(edit, Mitigation):
        return edit.label if edit == REGISTRY.get(edit.name) else edit.title
    return "original" if edit == "none" else f"{INTERVENTIONS[edit].label} ({edit})"
