"""Changes of captions: the same picture does not always come with the same words (Somepalli et al. 2023, NeurIPS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from memlib.base.declared import Count, Share
from memlib.base.registry import enter
from memlib.models.minisd.corpus import TrainingCorpus
from memlib.models.minisd.scenes import Scene
from memlib.training.minisd.mitigations.base import TrainingMitigation

ORDINARY_TOKENS = 49_400  # the published programs draw tokens below this id, which leaves out <sot> and <eot>


@dataclass(frozen=True)
class CaptionChange(TrainingMitigation):
    """Another caption with `probability` each time a sample is drawn, which is 0.1 in the public program; `changed` makes it."""

    probability: Share = 0.1

    def caption(self, example: tuple[Scene, str, int], corpus: TrainingCorpus, tokenizer: Any, rng: np.random.Generator) -> str:
        return self.changed(example[1], tokenizer, rng) if rng.random() < self.probability else example[1]

    def changed(self, text: str, tokenizer: Any, rng: np.random.Generator) -> str:
        """Return a changed caption."""
        raise NotImplementedError


@enter
@dataclass(frozen=True)
class RandomCaption(CaptionChange):
    """The whole caption is replaced by `count` random tokens."""

    count: Count = 4

    name = "random-caption"

    def changed(self, text: str, tokenizer: Any, rng: np.random.Generator) -> str:
        return random_text(tokenizer, rng, self.count)


@enter
@dataclass(frozen=True)
class RandomWords(CaptionChange):
    """`count` random tokens are put into the caption, each as a word at a random place."""

    count: Count = 2

    name = "random-words"

    def changed(self, text: str, tokenizer: Any, rng: np.random.Generator) -> str:
        for _ in range(self.count):
            text = with_word(text, random_text(tokenizer, rng, 1), rng)
        return text


@enter
@dataclass(frozen=True)
class RepeatedWords(CaptionChange):
    """`count` words of the caption are put into it again, each at a random place."""

    count: Count = 2

    name = "repeated-words"

    def changed(self, text: str, tokenizer: Any, rng: np.random.Generator) -> str:
        words = text.split(" ")
        for _ in range(self.count):
            text = with_word(text, words[int(rng.integers(len(words)))], rng)
        return text


@enter
@dataclass(frozen=True)
class SeveralCaptions(TrainingMitigation):
    """Each repeated picture has `count` captions, its own among them, and one of these is drawn each time.

    The others describe the picture, as the captions of the captioning model do in the source. Fresh pictures come once and keep
    theirs; of templates there is no description. What is asked for afterwards is the picture's own caption.
    """

    count: Count = 20

    name = "several-captions"

    def caption(self, example: tuple[Scene, str, int], corpus: TrainingCorpus, tokenizer: Any, rng: np.random.Generator) -> str:
        scene, text, index = example
        number = int(rng.integers(self.count))
        if index < 0 or scene.tone is not None or number == 0:
            return text
        return corpus.described(scene, index, number)


def random_text(tokenizer: Any, rng: np.random.Generator, count: int) -> str:
    """Return `count` random tokens of the vocabulary as text."""
    return tokenizer.decode(rng.integers(ORDINARY_TOKENS, size=count).tolist()).strip()


def with_word(text: str, word: str, rng: np.random.Generator) -> str:
    """Return `text` with `word` at a random place between its words or at either end."""
    words = text.split(" ")
    place = int(rng.integers(len(words) + 1))
    return " ".join([*words[:place], word, *words[place:]])
