"""Somepalli et al. 2023: random changes of the prompt's text, and noise on its embedding.

The changes follow from the prompt and `seed` alone: a prompt has the same ones in any batch, and all its pictures share them, as in
the public program, which draws once for each prompt. Texts are cut to 75 tokens after the change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from memlib.base.declared import NotNegative, Whole
from memlib.mitigations.base import Difference, Mitigation, prompt_generator, register
from memlib.models.protocol import Substrate
from memlib.prompts.embedding import Tokens
from memlib.sampling.batches import Batch
from memlib.sampling.loop import Cost

DRAWN_TOKENS, LEFT_OUT = 49_400, 8  # The program draws among these; the last of CLIP's 49,408 are left out.
DRAWN_NUMBERS = 100_000


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))


@dataclass(frozen=True)
class _AddedWords(Mitigation):
    """`count` words put in one after another, each at any place between the words of the text so far, both ends included."""

    count: Whole = 4
    seed: Whole = 0

    full_prompt: ClassVar[str] = "the added words push the last ones out"
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = ("count", (4, 8))
    differences: ClassVar[tuple[Difference, ...]] = (
        Difference("one word is added, as programs of Wen et al. and MemBench do, and not four", {"count": 1}, "11"),
    )

    def word(self, prompt: str, tokenizer: Any, generator: torch.Generator) -> str:
        """One word to put into `prompt`."""
        raise NotImplementedError

    def rewrite(self, prompt: str, tokenizer: Any) -> str:
        generator = prompt_generator(self.seed, prompt)
        words = prompt.split(" ")
        for _ in range(self.count):
            word = self.word(prompt, tokenizer, generator)
            words = " ".join(words).split(" ")  # A decoded token may hold a space.
            words.insert(_draw(len(words) + 1, generator), word)
        return " ".join(words)


@register
@dataclass(frozen=True)
class RandomToken(_AddedWords):
    """Random token addition, which `basin` calls random words: `count` tokens of the vocabulary, decoded to text.

    The changed text is tokenized anew, where a decoded token may become several. Programs add 4, 2 or 1; `clip` does not say.
    Source: Somepalli et al. 2023b, Section 6; `clip` Table 4.
    """

    name: ClassVar[str] = "random-token"
    label: ClassVar[str] = "random words added"
    summary: ClassVar[str] = "Four random tokens, as text, are put into the prompt at random places."
    source: ClassVar[str] = "Somepalli et al., 2023; clip Table 4; basin Tables 1, 3 and 4"
    reported: ClassVar[tuple[str, ...]] = ("rta", "random_word")

    def word(self, prompt: str, tokenizer: Any, generator: torch.Generator) -> str:
        drawn_from = min(DRAWN_TOKENS, tokenizer.vocab_size - LEFT_OUT)  # another vocabulary may be smaller
        return tokenizer.decode([_draw(drawn_from, generator)]).strip()


@register
@dataclass(frozen=True)
class RandomNumber(_AddedWords):
    """Random number addition: `count` whole numbers from 0 to 99,999. Source: Somepalli et al. 2023b, Section 6; `clip` Table 4."""

    name: ClassVar[str] = "random-number"
    label: ClassVar[str] = "random numbers added"
    summary: ClassVar[str] = "Four random numbers are put into the prompt at random places."
    source: ClassVar[str] = "Somepalli et al., 2023; clip Table 4; basin Tables 1, 3 and 4"
    reported: ClassVar[tuple[str, ...]] = ("rna", "random_number")

    def word(self, prompt: str, tokenizer: Any, generator: torch.Generator) -> str:
        return str(_draw(DRAWN_NUMBERS, generator))


@register
@dataclass(frozen=True)
class RepeatedWord(_AddedWords):
    """Caption word repetition: `count` words of the prompt, each drawn anew. Source: Somepalli et al. 2023b, Section 6."""

    name: ClassVar[str] = "repeated-word"
    label: ClassVar[str] = "words repeated"
    summary: ClassVar[str] = "Four words of the prompt, drawn at random, are put into it again at random places."
    source: ClassVar[str] = "Somepalli et al., 2023"
    differences: ClassVar[tuple[Difference, ...]] = ()

    def word(self, prompt: str, tokenizer: Any, generator: torch.Generator) -> str:
        words = prompt.split(" ")
        return words[_draw(len(words), generator)]


@register
@dataclass(frozen=True)
class EmbeddingNoise(Mitigation):
    """Gaussian noise of standard deviation `strength` on all 77 states of the conditional embedding.

    `as_published` also adds noise, drawn apart, to the unconditional embedding, as the public program does, which gives each prompt an
    unconditional embedding of its own. Source: Somepalli et al. 2023b, Section 6.
    """

    strength: NotNegative = 0.1
    seed: Whole = 0
    as_published: bool = False

    name: ClassVar[str] = "embedding-noise"
    label: ClassVar[str] = "noise on the embedding"
    summary: ClassVar[str] = "Gaussian noise of standard deviation 0.1 is added to the prompt's embedding."
    source: ClassVar[str] = "Somepalli et al., 2023"
    strengths: ClassVar[tuple[str, tuple[Any, ...]] | None] = ("strength", (0.1, 0.5))
    differences: ClassVar[tuple[Difference, ...]] = (Difference("noise falls on the unconditional embedding as well", {"as_published": True}, "11"),)

    @property
    def sampled(self) -> bool:  # type: ignore[override]  # a parameter decides, where a class does for other mitigations
        """Noise on the conditional embedding is an edit of it; the unconditional one is replaced while sampling."""
        return self.as_published

    def edit(self, states: Tensor, tokens: Tokens) -> Tensor:
        return states + self._noise(states, tokens.prompts, str(tokens.encoder or ""))

    def _noise(self, states: Tensor, prompts: tuple[str, ...], kind: str) -> Tensor:
        rows = [torch.randn(states.shape[1:], generator=prompt_generator(self.seed, prompt, kind)) for prompt in prompts]
        return self.strength * torch.stack(rows).to(states)

    @contextmanager
    def around(self, substrate: Substrate, batch: Batch, cost: Cost) -> Iterator[Batch]:
        uncond = batch.uncond.expand(len(batch.rows), -1, -1)
        yield replace(batch, uncond=uncond + self._noise(uncond, batch.embedding.tokens.prompts, "unconditional"))
