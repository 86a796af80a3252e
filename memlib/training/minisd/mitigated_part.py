"""A U-Net trained under a training-time mitigation, and the record of which samples it acted on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memlib.training.minisd.mitigations import TrainingMitigation
from memlib.training.minisd.mitigations.filters import SampleFilter
from memlib.training.minisd.parts import UnetPart
from memlib.training.minisd.trainer import autocast

STAGES = 10  # of a training, in which the record counts


class MitigatedPart(UnetPart):
    """A `UnetPart` with a mitigation; noise, times, dropped captions and order are those of the plain part with the same seed.

    Samples whose caption is dropped train the prediction without text; no filter leaves them out. What a filter remembers, the latest
    scores of samples seen once, is part of the checkpoint, so that a resumed run makes the same weights.
    """

    def __init__(self, mitigation: TrainingMitigation, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.mitigation = mitigation
        mitigation.prepare(self.module)
        repeated = self.corpus.repeated
        copies = Counter[str]()
        for pair in repeated:
            copies[pair.caption] += pair.copies
        kinds = [(pair.group, copies[pair.caption]) for pair in repeated]
        self._kinds = [*sorted(set(kinds)), ("fresh", 1)]
        # Fresh scenes have the index -1, which is the last one.
        self._kind_of = torch.tensor([self._kinds.index(kind) for kind in kinds] + [len(self._kinds) - 1])
        self._reference = torch.zeros(0)
        self._counts = torch.zeros(STAGES, len(self._kinds), 2, dtype=torch.int64)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold beside the weights."""
        return {"reference": self._reference, "counts": self._counts}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._reference, self._counts = state["reference"].cpu(), state["counts"].cpu()

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        examples = self.examples(step)
        rng = np.random.default_rng([self.settings["seed"], step, 19])
        captions = [self.mitigation.caption(example, self.corpus, self.tokenizer, rng) for example in examples]
        batch = self.noised(step, captions)
        with autocast(self.device, self.half):
            predicted, scores = self.mitigation.forward(self.module, batch, self.empty)
        indices = torch.tensor([index for _, _, index in examples])
        shown = ~batch.dropped
        if scores is None:
            marked = torch.tensor([new != old for new, (_, old, _) in zip(captions, examples, strict=True)]) & shown
            kept = torch.ones(len(marked))
        else:
            marked = self._flagged(scores, shown & (indices < 0)) & shown
            kept = (~marked).float()
        self._count(step, indices[shown], marked[shown])
        error = self.errors(batch, predicted)
        kept = kept.to(error.device)
        # Mean over the samples that stay; a batch without any teaches nothing.
        loss = (kept * batch.weight * error).sum() / kept.sum().clamp_min(1)
        return loss, {"unweighted": float(error.detach().mean()), "marked": float(marked[shown].float().mean())}

    def _flagged(self, scores: Tensor, once: Tensor) -> Tensor:
        """Which samples [B] the filter flags, by the scores of earlier samples seen once; those of this batch (`once`) are added."""
        rule = self.mitigation
        assert isinstance(rule, SampleFilter)
        flagged = rule.flagged(scores, self._reference)
        self._reference = torch.cat([self._reference, scores[once]])[-rule.window :]
        return flagged

    def _count(self, step: int, indices: Tensor, marked: Tensor) -> None:
        stage = min(STAGES - 1, step * STAGES // self.settings["steps"])
        for column, rows in enumerate((indices, indices[marked])):
            self._counts[stage, :, column] += torch.bincount(self._kind_of[rows], minlength=len(self._kinds))

    def marks(self) -> list[dict[str, int | str]]:
        """How many samples with a caption were seen and how many the mitigation acted on, by tenth of the training and kind of sample.

        Rows with `first_step`, `last_step`, `group` ("duplicated", "template", "fresh"), `copies` of the caption in an epoch, `seen`, `marked`.
        """
        edges = [-(-stage * self.settings["steps"] // STAGES) for stage in range(STAGES + 1)]
        return [
            {"first_step": edges[stage], "last_step": edges[stage + 1] - 1, "group": group, "copies": copies,
             "seen": int(self._counts[stage, k, 0]), "marked": int(self._counts[stage, k, 1])}
            for stage in range(STAGES) for k, (group, copies) in enumerate(self._kinds)
        ]  # fmt: skip
