"""Pruning as a mitigation: the weights found for a prompt are zero while its pictures are made, or those found for all memorized prompts at once.

The weights are found from the prompt's text, whatever was done to its embedding, and kept in the store by model and prompt. A pruned model
acts on both halves of the batch.

Both have the parameters `scope`: "all" prunes one model for all the prompts that the substrate has memorized, or for `count` of them, and makes every
picture with it; `random`: the seed of as many weights drawn from the same layers in place of those found, a control; `first_seed`: the seed
that the search's own noise begins with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Le

from memlib.base.declared import LATER, Count, Part, Share, Whole
from memlib.base.errors import InputError
from memlib.base.hashing import digest
from memlib.base.store import Store
from memlib.mitigations.base import REGISTRY, Difference, Mitigation, get, register
from memlib.mitigations.weights import WeightSet, nemo, pruned_rows, wanda
from memlib.mitigations.weights.weight_sets import shuffled, union
from memlib.models.protocol import Substrate
from memlib.prompts.embedding import Embedding, Tokens, encode, tokenize
from memlib.prompts.sets import choose_prompts
from memlib.sampling.batches import Batch
from memlib.sampling.first_step import without_signal
from memlib.sampling.loop import Cost

Scope = Literal["prompt", "all"]  # each prompt its own weights, or one model for all
# Attacks ask for the same sets hundreds of times.
_found: dict[str, WeightSet] = {}
_spent: dict[str, int] = {}  # U-Net rows


@dataclass(frozen=True)
class Pruning(Mitigation):
    """A mitigation by sets of weights: `find` gives them, one for each row of an embedding."""

    scope: Scope = "prompt"
    count: Count | None = None
    random: Whole | None = None
    first_seed: Whole = 0

    family: ClassVar[str] = "weights"
    sampled: ClassVar[bool] = True
    through: ClassVar[str] = "conditional"
    neurons: ClassVar[bool] = False  # whether whole rows of weights are found

    @property
    def remaining(self) -> float:
        """By what the weights found are multiplied."""
        return 0.0

    def find(self, substrate: Substrate, embedding: Embedding, cost: Cost) -> list[WeightSet]:
        raise NotImplementedError

    def missing(self, substrate: Substrate) -> str:
        if self.scope == "prompt" or super().missing(substrate):
            return super().missing(substrate)
        try:
            self._memorized(substrate)
        except InputError as error:
            return str(error)
        return ""

    def _memorized(self, substrate: Substrate) -> tuple[str, ...]:
        return choose_prompts("memorized", substrate.data, self.count).prompts

    def weights(self, substrate: Substrate, embedding: Embedding, cost: Cost | None = None) -> list[WeightSet]:
        """Return the set of weights for each row of `embedding`, from its states, whatever the scope."""
        return self._kept(substrate, [{"cond": digest(states.float())} for states in embedding.states], lambda row: embedding.select([row]), cost)

    def for_prompts(self, substrate: Substrate, tokens: Tokens, cost: Cost | None = None) -> list[WeightSet]:
        """Return the set of weights for each prompt of `tokens`, from its text: its own, or the one of all memorized prompts, whose
        search belongs to the model and is not counted; as many at random in its place where that is asked for."""
        if self.random is not None:
            return [self._random(substrate, found) for found in replace(self, random=None).for_prompts(substrate, tokens, cost)]
        if self.scope == "prompt":
            # One at a time, so that the last digits of its states, and what follows, do not depend on the other prompts.
            return self._kept(substrate, [{"ids": row.tolist()} for row in tokens.ids], lambda row: encode(substrate, tokens.select([row])), cost)
        name = digest({"pruning": self.key, "weights": substrate.weights_hash, "dtype": str(substrate.dtype)})
        if name not in _found:
            _found[name] = self.for_all(substrate, tokenize(substrate.tokenizer, self._memorized(substrate)))
        return [_found[name]] * len(tokens)

    def for_all(self, substrate: Substrate, tokens: Tokens) -> WeightSet:
        """Return the one set of weights for all these prompts: the union of their own."""
        return union(replace(self, scope="prompt", count=None).for_prompts(substrate, tokens))

    def _random(self, substrate: Substrate, found: WeightSet) -> WeightSet:
        name = digest(["random", self.random, found.fingerprint])
        if name not in _found:
            _found[name] = shuffled(substrate, found, np.random.default_rng([self.random or 0, int(found.fingerprint[:12], 16)]), self.neurons)
        return _found[name]

    def _kept(self, substrate: Substrate, of: list[dict[str, Any]], embed: Callable[[int], Embedding], cost: Cost | None) -> list[WeightSet]:
        """Sets from memory, from the store, or found now; `cost` is what finding them costs, now or earlier."""
        settings = {name: value for name, value in self.key.items() if name not in ("scope", "count", "random", "factor")}
        keys = [{"pruning": settings, "weights": substrate.weights_hash, "dtype": str(substrate.dtype), **one} for one in of]
        names = [digest(key) for key in keys]
        absent = [names.index(name) for name in dict.fromkeys(names) if name not in _found]

        def compute(places: list[int]) -> Iterator[tuple[int, dict]]:
            for place in places:
                spent = Cost()
                [found] = self.find(substrate, embed(absent[place]), spent)
                yield place, {"chosen": dict(found.chosen), "rows": spent.evaluations}

        for row, value in zip(absent, Store().scores([keys[row] for row in absent], compute) if absent else (), strict=True):
            _found[names[row]], _spent[names[row]] = WeightSet(value["chosen"]), value["rows"]
        if cost is not None:
            cost.evaluations += sum(_spent[name] for name in dict.fromkeys(names))
        return [_found[name] for name in names]

    @contextmanager
    def around(self, substrate: Substrate, batch: Batch, cost: Cost) -> Iterator[Batch]:
        with pruned_rows(substrate.unet, self.for_prompts(substrate, batch.embedding.tokens, cost), self.remaining):
            yield batch


@register
@dataclass(frozen=True)
class Nemo(Pruning):
    """Neurons of cross-attention's value projections, found by search and blocked. See `memlib.mitigations.weights.nemo`.

    The limit of similarity is the `quantile` over prompts that are not memorized. `seeds` maps take part in the search; `step` is that of
    the schedule whose time they are made at. A prompt whose maps resemble each other no more than those of others keeps all its neurons.
    `factor` multiplies the neurons found: 0 blocks them, values below 0 or above 1 are options of the program as well.

    `as_published` measures similarity as the program does (`published_ms_ssim`), with its limit of 0.428 on latents of 4 x 64 x 64 unless another
    quantile is asked for. Source: Hintersdorf et al. 2024; program.
    """

    quantile: Share = 0.84
    seeds: Annotated[int, Ge(2)] = 10
    step: Annotated[int, Ge(0), Le(1)] = 0
    factor: Annotated[float, LATER] = 0.0
    as_published: Annotated[bool, LATER] = False

    neurons: ClassVar[bool] = True
    first_step: ClassVar[bool] = True
    name: ClassVar[str] = "nemo"
    label: ClassVar[str] = "neurons blocked"
    summary: ClassVar[str] = "Neurons of the cross-attention value projections that make a prompt's noise alike across seeds are blocked."
    source: ClassVar[str] = "Hintersdorf et al., 2024; dori"
    cost: ClassVar[str] = "a search for each prompt beforehand: one U-Net row a seed for each selection and each neuron tried"
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("noise differences take the second step's time with the first step's latents", {"step": 1}, "14"),
        Difference("similarity with the range of the batch, anew at every scale, and the limit that belongs to it", {"as_published": True}, "27"),
    )

    @property
    def remaining(self) -> float:
        return self.factor

    def find(self, substrate: Substrate, embedding: Embedding, cost: Cost) -> list[WeightSet]:
        if lacking := without_signal(substrate):
            raise InputError(lacking)
        bound, alike = nemo.limit_of(substrate, self), nemo.similarity(self.as_published)
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return [found.weights for found in nemo.neurons(substrate, embedding, bound, seeds, self.step, cost, alike=alike)]


@register
@dataclass(frozen=True)
class Wanda(Pruning):
    """Weights of the feed-forward layers that count more with the prompt than with others. See `memlib.mitigations.weights.wanda`.

    `ratio` of each row's weights are looked at, in the first `share` of `steps` steps (10 of 51 in the published runs), against the `base`:
    prompts that are not memorized ("captions"), or the empty one. Pictures of the seeds 0 to `seeds` - 1 take part.

    `as_published` cuts the number of weights off where it is rounded here, and with the scope "all" pools the norms of the prompts and prunes once,
    where the sets of the prompts are united here. Source: Chavhan et al. 2024; program.
    """

    ratio: Part = 0.01
    share: Part = 0.2
    base: Literal["captions", "empty"] = "captions"
    seeds: Count = 1
    steps: Count = 50
    scale: float = 7.5
    as_published: Annotated[bool, LATER] = False

    name: ClassVar[str] = "wanda"
    label: ClassVar[str] = "weights pruned"
    summary: ClassVar[str] = "Feed-forward weights that count more with the prompt than with other prompts in the first steps are set to zero."
    source: ClassVar[str] = "Chavhan et al., 2024; dori"
    cost: ClassVar[str] = "a fifth of a sampling run for each prompt beforehand"
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = ("ratio", (0.003, 0.01, 0.03))
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("the number of weights is cut off, not rounded; for all prompts norms are pooled and pruned once", {"as_published": True}, "28"),
    )

    def norms(self, substrate: Substrate, embedding: Embedding, cost: Cost | None = None) -> list[wanda.Norms]:
        """The norms of the feed-forward layers' inputs for each row of `embedding`."""
        return wanda.input_norms(substrate, embedding, cost=cost, **self._sampling(self.first_seed))

    def _sampling(self, first: int) -> dict[str, Any]:
        return {"seeds": tuple(range(first, first + self.seeds)), "steps": self.steps, "share": self.share, "guidance": self.scale}

    def find(self, substrate: Substrate, embedding: Embedding, cost: Cost) -> list[WeightSet]:
        return [self._pruned(substrate, own) for own in self.norms(substrate, embedding, cost)]

    def _pruned(self, substrate: Substrate, own: wanda.Norms) -> WeightSet:
        base = wanda.base_norms(substrate, self.base, **self._sampling(self.first_seed))
        return wanda.weights(substrate, own, base, self.ratio, self.as_published)

    def for_all(self, substrate: Substrate, tokens: Tokens) -> WeightSet:
        if not self.as_published:
            return super().for_all(substrate, tokens)
        key = {"pruning": self.key, "weights": substrate.weights_hash, "dtype": str(substrate.dtype), "pooled": digest(tokens.ids)}

        def compute() -> dict[str, Any]:
            return dict(self._pruned(substrate, wanda.together(self.norms(substrate, encode(substrate, tokens)))).chosen)

        return WeightSet(Store().score(key, compute))


def pruning(name: str, **params: Any) -> Pruning:
    """Return a registered method of pruning with these parameters; raises InputError for a mitigation of another kind."""
    found = get(name, **params)
    if not isinstance(found, Pruning):
        raise InputError(f"{name} finds no sets of weights: use one of {', '.join(known for known, m in REGISTRY.items() if isinstance(m, Pruning))}.")
    return found


@dataclass(frozen=True)
class PrunedFor(Mitigation):
    """The weights that `method` ("nemo" or "wanda", at its defaults) finds for `prompt`, removed whatever prompt is drawn.

    This is what the removal of one picture does to others. Not in the registry, for it is a question about a mitigation and not one itself.
    """

    method: Literal["nemo", "wanda"] = "nemo"
    prompt: str = ""

    name: ClassVar[str] = "pruned-for"
    label: ClassVar[str] = "pruned for another prompt"
    summary: ClassVar[str] = "What pruning finds for one prompt is removed while others are drawn."
    source: ClassVar[str] = "dori"
    family: ClassVar[str] = "weights"
    sampled: ClassVar[bool] = True

    @property
    def key(self) -> dict[str, Any]:
        """As for others, with the key of the method."""
        return {**super().key, "by": get(self.method).key}

    @contextmanager
    def around(self, substrate: Substrate, batch: Batch, cost: Cost) -> Iterator[Batch]:
        with pruned_rows(substrate.unet, pruning(self.method).for_prompts(substrate, tokenize(substrate.tokenizer, self.prompt))):
            yield batch
