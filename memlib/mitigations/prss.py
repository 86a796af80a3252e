"""Chen et al. 2025 (PRSS): prompt search and re-anchoring.

Re-anchoring guides with a modified prompt, and the more its magnitude grows beyond a target, the less; in return the prediction is
pushed away from the original prompt's. With the scale g, the weight w (1 at the target, g at `full` times the target) and
the noise e of the unconditional, original and modified prompt, the guided noise is

    e_orig + w (e_mod - e_orig) + (g - w) (e_mod - e_uncond) = e_uncond + (1 + g - w) (e_mod - e_uncond) + (w - 1) (e_mod - e_orig),

which is how it is computed here: a rule that gives the scale 1 + g - w, and the last term added to the U-Net's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor

from memlib.base.declared import LATER, NotNegative, Share
from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.mitigations.base import Difference, Mitigation, register
from memlib.mitigations.bright_ending import BrightEnding
from memlib.mitigations.wen import OptimizedEmbeddingStrict
from memlib.models.hooks import hooked
from memlib.models.protocol import Substrate
from memlib.prompts.embedding import encode_prompts
from memlib.prompts.sets import load_prompts
from memlib.sampling.batches import Batch
from memlib.sampling.calibration import target_of
from memlib.sampling.first_step import FirstStep
from memlib.sampling.guidance import Constant, Scales, StepInfo
from memlib.sampling.loop import Cost, to_epsilon


@dataclass(frozen=True)
class ReAnchoring:
    """The guidance of re-anchored samples: 1 + `scale` - w where a sample is `armed` and its magnitude above `target`, else `scale`."""

    scale: float
    target: float
    full: float
    armed: tuple[bool, ...]

    name: ClassVar[str] = "re-anchoring"

    @property
    def params(self) -> dict[str, Any]:
        return {"scale": self.scale, "target": self.target, "full": self.full, "armed": list(self.armed)}

    def weights(self, magnitude: Tensor) -> Tensor:
        """Return the weight w [B] of each sample for its magnitude now: 1 where re-anchoring does not act."""
        g = self.scale
        begin = (g * self.target - self.full) / (g - 1)
        weights = (g * (magnitude - begin) / (self.full - begin)).clamp(max=g)
        acting = torch.tensor(self.armed, device=magnitude.device) & (magnitude > self.target)
        return torch.where(acting, weights, torch.ones_like(weights))

    def start(self, batch: int) -> Scales:
        def scales(info: StepInfo) -> Tensor:
            return 1 + self.scale - self.weights(info.magnitude)

        return scales


@contextmanager
def pushed_away(substrate: Substrate, rule: ReAnchoring, originals: Tensor, batch: Batch, cost: Cost) -> Iterator[None]:
    """Add (w - 1) (e_mod - e_orig) to both halves of the U-Net's output, so that it passes guidance of any scale unchanged.

    `originals` are the original embeddings [B, 77, d]. The third U-Net row is computed for those samples only for which the term is
    not zero at a step.
    """
    solver = substrate.scheduler(batch.scheduler, batch.steps)
    originals = originals.to(substrate.device, substrate.dtype)

    def push(unet: Any, args: tuple, kwargs: dict, output: Any) -> tuple[Tensor]:
        sample, t = args[:2]
        uncond, cond = output[0].float().chunk(2)
        nothing = torch.zeros_like(cond)  # Noise differs by as much whatever the latents.
        difference = to_epsilon(cond, nothing, t, solver) - to_epsilon(uncond, nothing, t, solver)
        weights = rule.weights(difference.flatten(1).norm(dim=1))
        rows = (weights != 1).nonzero().flatten()
        if not len(rows):
            return output
        original = unet.forward(sample[: len(cond)][rows], t, encoder_hidden_states=originals[rows], return_dict=False)[0].float()
        cost.evaluations += len(rows)
        term = nothing
        term[rows] = (weights[rows] - 1).view(-1, 1, 1, 1) * (cond[rows] - original)
        return (torch.cat([uncond + term, cond + term]),)

    with hooked(substrate.unet.register_forward_hook, push, with_kwargs=True):
        yield


def search(first: FirstStep, originals: Tensor, candidates: Sequence[Tensor], target: float, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return for each sample the first embedding whose magnitude is at most `target`, else the one with the smallest.

    `originals` [B, 77, d] are tried first, then each sample's `candidates` [k, 77, d] in their order; a sample that has found one tries
    no more. The second value [B] says whose original is above the target.
    """
    states, best = originals.clone(), first.magnitudes(originals, range(len(originals)), masks)
    armed = best > target
    open_rows = armed.nonzero().flatten().tolist()
    for turn in range(max((len(found) for found in candidates), default=0)):
        rows = [row for row in open_rows if turn < len(candidates[row])]
        if not rows:
            break
        tried = torch.stack([candidates[row][turn] for row in rows])
        for row, state, magnitude in zip(rows, tried, first.magnitudes(tried, rows, masks), strict=True):
            if magnitude < best[row]:
                states[row], best[row] = state, magnitude
        open_rows = [row for row in open_rows if not best[row] <= target]
    return states, armed


@register
@dataclass(frozen=True)
class ReAnchoredPrompt(Mitigation):
    """A modified prompt, re-anchored at every step where its magnitude is above the target (module docstring), per sample.

    The modified prompt is the first of `paraphrases` whose magnitude at the first step is at most `search_target`, or the one with the
    smallest (semantic search; the original is the first candidate). `paraphrases` is a file with the columns ``prompt`` and ``paraphrase``,
    one row for each, as a language model wrote them: without one the modified prompt is the optimized embedding of wen-1, which the program
    takes as well; `as_published` takes it as the program makes it, where weight decay moves ``<sot>`` too. `masked` weights the magnitude
    of this choice by `bright_masks` of the original prompt, as the program does; that of re-anchoring is never masked. Samples whose
    original is at or below the search target are left alone.

    Targets are published as 1 and 3, the weight is full at 5; elsewhere than on Stable Diffusion 1 they are the quantiles of
    the magnitude at the first step over prompts that are not memorized. Source: Chen et al. 2025 (PRSS), program.
    """

    search_target: NotNegative | None = None
    search_quantile: Share = 0.5
    target: NotNegative | None = None
    quantile: Share = 0.99
    full: Annotated[float, Gt(1)] = 5 / 3
    paraphrases: str = ""
    masked: bool = False
    as_published: Annotated[bool, LATER] = False

    name: ClassVar[str] = "prss"
    label: ClassVar[str] = "re-anchored prompt"
    summary: ClassVar[str] = "A modified prompt guides, and where its magnitude is high the picture is pushed away from the original one instead."
    source: ClassVar[str] = "Chen et al., 2025 (PRSS)"
    cost: ClassVar[str] = "that of wen-1 (or one U-Net row per paraphrase tried), and a third row at steps that are re-anchored"
    sampled: ClassVar[bool] = True
    first_step: ClassVar[bool] = True
    family: ClassVar[str] = "guidance"
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = ("search_quantile", (0.5, 0.1))
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("the optimized embedding as its program makes it, all 77 states moved: weight decay on <sot>", {"as_published": True}, "30"),
    )
    published_target: ClassVar[float] = 3.0
    published_search_target: ClassVar[float] = 1.0

    @property
    def key(self) -> dict[str, Any]:
        """Name, version and parameters, with what is in the file of paraphrases."""
        found = super().key
        return {**found, "paraphrases": digest(self._paraphrases())} if self.paraphrases else found

    def _paraphrases(self) -> dict[str, list[str]]:
        table = load_prompts(self.paraphrases, "prompt").table
        if "paraphrase" not in table:
            raise InputError(f"{self.paraphrases} has no column paraphrase: give a file with the columns prompt and paraphrase.")
        return {str(prompt): list(rows) for prompt, rows in table.groupby("prompt", sort=False)["paraphrase"]}

    def _modified(self, substrate: Substrate, batch: Batch, cost: Cost) -> tuple[Tensor, Tensor]:
        """The modified embeddings [B, 77, d] and whose original is above the search target [B], on the CPU."""
        originals = batch.embedding.states.float()
        optimization = BrightEnding if self.masked else OptimizedEmbeddingStrict
        chooser = optimization(target=self.search_target, quantile=self.search_quantile)
        if self.as_published:
            chooser = replace(chooser, as_published=True, images=1)
        if not self.paraphrases:
            states = chooser.optimized(substrate, batch, cost)
            return states, (states != originals).flatten(1).any(1)  # What is at the target or below is not moved.
        known = self._paraphrases()
        texts = {prompt: known.get(prompt, []) for prompt in batch.embedding.tokens.prompts}
        pad = batch.embedding.tokens.pad_id
        encoded = {prompt: encode_prompts(substrate, rows, pad).states if rows else originals[:0] for prompt, rows in texts.items()}
        masks = chooser.masks(substrate, batch, cost)
        first = FirstStep(substrate, batch, cost)
        candidates = [encoded[prompt] for prompt in batch.embedding.tokens.prompts]
        states, armed = search(first, originals, candidates, chooser.threshold(substrate, batch), masks)
        return states, armed.cpu()

    def threshold(self, substrate: Substrate, batch: Batch) -> float:
        """The magnitude from which re-anchoring acts on this substrate."""
        return target_of(self, substrate, batch, self.published_target)

    def full_run(self) -> Mitigation:
        """The same with targets that are never reached, for timing its full cost."""
        return replace(self, search_target=0.0, target=1e-6)

    @contextmanager
    def around(self, substrate: Substrate, batch: Batch, cost: Cost) -> Iterator[Batch]:
        if not isinstance(batch.rule, Constant) or batch.rule.scale <= 1:
            raise InputError("prss chooses the guidance of each step itself: give it a number above 1 as guidance.")
        if lacking := self.missing(substrate):
            raise InputError(lacking)
        target = self.threshold(substrate, batch)
        states, armed = self._modified(substrate, batch, cost)
        rule = ReAnchoring(batch.rule.scale, target, self.full * target, tuple(armed.tolist()))
        with pushed_away(substrate, rule, batch.embedding.states, batch, cost):
            yield replace(batch, embedding=batch.embedding.replace(states), rule=rule)
