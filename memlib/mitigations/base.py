"""What a mitigation is: a named object with parameters and hooks into the sampling chain."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from memlib.base.errors import InputError
from memlib.base.numbers import is_number
from memlib.base.plugins import Plugged
from memlib.base.registry import Registered, enter, find, plug_in
from memlib.models.protocol import Substrate
from memlib.prompts.embedding import Embedding, Tokens, encode, padding_id, tokenize
from memlib.sampling.batches import Batch, Cost
from memlib.sampling.first_step import without_signal
from memlib.sampling.guidance import Rule

REGISTRY: Plugged[Mitigation] = Plugged("memlib.mitigations", lambda given: plug_in(Mitigation, register, given))
# What a mitigation acts on, for grouping them in figures.
FAMILIES = ("text", "attention", "guidance", "noise", "weights")


@dataclass(frozen=True)
class Difference:
    """What a program published with a paper does otherwise than the paper, or what papers disagree about: in words, and the
    parameters that do it; `point` is the number on the book's page of discrepancies, empty where it has none."""

    words: str
    params: Mapping[str, Any] = field(hash=False)
    point: str = ""


@dataclass(frozen=True)
class Mitigation(Registered):
    """A mitigation: subclass it, set the class attributes, override the hooks it needs, and `register` it.

    The fields of the subclass are its parameters, plain numbers and texts, with defaults; the class attributes describe it, say how strongly it
    can be made to act (`strengths`), and how published programs differ (`differences`). The hooks, in the order of the chain:

    - `rewrite(prompt, tokenizer)`: another text in place of a prompt, each prompt on its own;
    - `padding`: another padding token to encode with (a key of `memlib.prompts.embedding.PADDINGS`), or None;
    - `edit(states, tokens)`: new states [N, 77, d] from states and their spans, each prompt on its own;
    - `guidance(scale)`: the guidance scale or rule to sample with;
    - `around(substrate, batch, cost)`: a context manager around the denoising of one batch. It yields the batch to
      denoise, in which states and initial latents may have been replaced sample by sample (optimized embeddings, chosen
      noise), and may patch the model meanwhile (attention); U-Net rows it spends itself are added to `cost`. Set `sampled` to True
      with it: pictures are then stored under the mitigation's name, parameters and `version`, since they do not follow from
      embedding and guidance alone.

    The unconditional embedding is left alone by `rewrite`, `padding` and `edit`.
    """

    kind: ClassVar[str] = "mitigation"
    registry: ClassVar[MutableMapping[str, Mitigation]] = REGISTRY

    name: ClassVar[str]
    label: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    # What it costs beside plain sampling, in words; the figures are measured.
    cost: ClassVar[str] = "none"
    # What it does to a prompt of 75 tokens, which has no padding.
    full_prompt: ClassVar[str] = "the same as for any prompt"
    family: ClassVar[str] = "text"
    # The method's keys in data/reported/reported.csv, where texts report figures for it: each has names of its own.
    reported: ClassVar[tuple[str, ...]] = ()
    # The parameter that sets how strongly it acts, and values of it from weak to strong, the default among them.
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = None
    differences: ClassVar[tuple[Difference, ...]] = ()
    padding: ClassVar[str | None] = None
    # Whether the edit depends on the padding, which a prompt of 75 tokens lacks.
    needs_padding: ClassVar[bool] = False
    sampled: ClassVar[bool] = False
    # Whether it acts on what the text adds to the noise at the first step.
    first_step: ClassVar[bool] = False
    # For attacks: whether `around` does nothing but patch the model, so that a gradient may be taken inside it: "" no, "conditional" of
    # B conditional rows, "guided" of the 2B rows of a guided batch.
    through: ClassVar[str] = ""
    version: ClassVar[int] = 1

    @property
    def key(self) -> dict[str, Any]:
        """What identifies the mitigation in the store: name, version and parameters."""
        return {"mitigation": self.name, "version": self.version, **self.keyed}

    def sweep(self) -> list[Self]:
        """Return the mitigation at each of its strengths, from weak to strong; none for one without a strength."""
        if self.strengths is None:
            return []
        name, values = self.strengths
        return [self.with_params(**{name: value}) for value in values]

    def rewrite(self, prompt: str, tokenizer: Any) -> str:
        """Return the text to encode in place of `prompt`; the same one for a prompt in any batch."""
        return prompt

    @property
    def rewrites(self) -> bool:
        """Whether the text of prompts is changed, so that an embedding must be made anew and cannot be edited."""
        return type(self).rewrite is not Mitigation.rewrite

    def edit(self, states: Tensor, tokens: Tokens) -> Tensor:
        """Return new states [N, 77, d], encoded with `padding`; the input is not modified."""
        return states

    def guidance(self, scale: float | Rule) -> float | Rule:
        """Return the guidance to sample with in place of `scale`."""
        return scale

    def own_scale(self, guidance: float | Rule) -> float:
        """Return the scale that a mitigation with a rule of its own is given; raises InputError for a rule in its place."""
        if isinstance(guidance, Rule) or not is_number(guidance):
            raise InputError(f"{self.name} chooses the guidance of each step itself: give it a number as guidance, not a rule.")
        return float(guidance)

    @contextmanager
    def around(self, substrate: Substrate, batch: Batch, cost: Cost) -> Iterator[Batch]:
        """Yield the batch to denoise; used where `sampled` is True."""
        yield batch

    def missing(self, substrate: Substrate) -> str:
        """Return a sentence on what this substrate lacks for the mitigation to be measured, empty where it lacks nothing."""
        return without_signal(substrate) if self.first_step else ""

    def full_run(self) -> Mitigation:
        """Return the same mitigation without early ends, for timing on weights whose predictions mean nothing; by default itself."""
        return self

    def apply(self, encoder: Any, embedding: Embedding) -> Embedding:
        """Return the edited embedding; `encoder` (a substrate) encodes anew where `padding` asks for it.

        Text attention is causal, so encoding with another padding token changes the padding states alone; they are put
        into the given embedding, whose other states may have been weighted or edited before. Prompts with another text are
        encoded anew as a whole, and the embedding returned has that text in its tokens.
        """
        if self.rewrites:
            texts = [self.rewrite(prompt, encoder.tokenizer) for prompt in embedding.tokens.prompts]
            embedding = encode(encoder, tokenize(encoder.tokenizer, texts, embedding.tokens.pad_id))
        tokenizer = getattr(encoder, "tokenizer", None)
        if self.padding is not None and padding_id(self.padding, tokenizer) != embedding.tokens.pad_id:
            tokens = embedding.tokens.repad(self.padding, tokenizer)
            swapped = encode(encoder, tokens).states
            states = swapped.where(tokens.pad[..., None], embedding.states)
            embedding = Embedding(states, tokens)
        return embedding.replace(self.edit(embedding.states, embedding.tokens))

    def remark(self, tokenizer: Any) -> str:
        """Return a sentence where the mitigation does less than its name says with this tokenizer, else an empty text."""
        if self.padding is None or padding_id(self.padding, tokenizer) != tokenizer.pad_token_id:
            return ""
        rest = "changes nothing" if type(self).edit is Mitigation.edit else "leaves the padding as it is and makes its other edit only"
        return f"This model pads with {self.padding!r} already, so {self.name} {rest}."


def prompt_generator(seed: int, prompt: str, kind: str = "") -> torch.Generator:
    """Return a CPU generator for what is drawn for a prompt: it follows from seed, text and `kind`, not from the batch."""
    drawn = hashlib.sha256(f"{seed} {kind}{prompt}".encode()).digest()[:7]
    return torch.Generator().manual_seed(int.from_bytes(drawn))


Kind = TypeVar("Kind", bound=type[Mitigation])


def register(kind: Kind) -> Kind:
    """Class decorator: enter a mitigation with its default parameters.

    Raises InputError for a name that is taken, an unknown family, and strengths or differences that it cannot be made with.
    """
    _check_declared(kind)
    return enter(kind)


def _check_declared(kind: type[Mitigation]) -> None:
    usual = kind()
    if kind.family not in FAMILIES:
        raise InputError(f"The mitigation {kind.name!r} is of the family {kind.family!r}: use one of {', '.join(FAMILIES)}.")
    if kind.strengths is not None:
        name, values = kind.strengths
        if not 2 <= len(values) <= 4 or len(set(values)) < len(values) or usual.params.get(name) not in values:
            raise InputError(
                f"The strengths of {kind.name!r} are {values!r} of {name!r}: give two to four different values of a parameter, from weak to "
                "strong, with its default among them."
            )
    if any(other == usual for other in [usual.with_params(**difference.params) for difference in kind.differences]):
        raise InputError(f"A difference of {kind.name!r} has the default parameters: name those that another program or text has.")
    usual.sweep()  # refuses values that the mitigation does not take


def get(name: str, **params: Any) -> Mitigation:
    """Return the registered mitigation `name` with these parameters in place of its defaults.

    Raises InputError for an unknown name or parameter, and for a value that the mitigation does not take.
    """
    return find(Mitigation, name, params)


def describe() -> list[Mapping[str, str]]:
    """Return one row of words per registered mitigation, for tables: name, what it does, source, cost, full prompts."""
    return [
        {"mitigation": m.name, "what it does": m.summary, "source": m.source, "extra cost": m.cost, "prompt of 75 tokens": m.full_prompt}
        for m in REGISTRY.values()
    ]
