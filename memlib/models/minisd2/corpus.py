"""What the second miniature is trained on: scenes with descriptions, pictures with titles, and the duplicated pairs among them.

An epoch is a shuffled list of slots, as the first miniature's: every repeated pair as often as its level says, and `fresh` pictures that are
drawn once in all of training. A slot is a pure function of (seed, epoch, slot), so that a run resumes exactly and two models of one seed see
the same pictures in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from random import Random

import numpy as np
import torch

from memlib.base.errors import InputError
from memlib.models.minisd.corpus import Pair
from memlib.models.minisd.scenes import Background, Scene, held_out_combinations
from memlib.models.minisd2.language import LENGTHS, describe, reference, title
from memlib.models.minisd2.painter import Painter
from memlib.models.minisd2.scenes import concepts, draw_scene, trained_concepts

TEMPLATE_COLOURS = ("red", "yellow", "green", "blue", "white", "black")  # a template is one picture on six backgrounds


class Corpus:
    """The corpus of one seed.

    `levels` gives the number of duplicated pairs by copies an epoch, `templates` that of template titles, each of whose six colourings comes
    `template_copies` times; `titles` is the share of fresh pictures that have a title and not a description. `duplicates=False` gives every
    repeated pair one copy and fills the epoch up with fresh pictures. With `known_titles=False` repeated pairs have other captions, of
    letters that no other caption holds: titles that a text encoder trained on the rest has never read.
    """

    def __init__(
        self, seed: int, fresh: int, levels: Mapping[int, int], templates: int, template_copies: int, titles: float,
        duplicates: bool = True, known_titles: bool = True, device: torch.device | str = "cpu",
    ):  # fmt: skip
        if not 0 <= titles <= 1:
            raise InputError(f"The share of titles is {titles}: give a number from 0 to 1.")
        self.seed, self.fresh, self.levels, self.titles = seed, fresh, {int(k): v for k, v in levels.items()}, titles
        self.template_count, self.template_copies = templates, template_copies
        self.duplicates, self.known_titles, self.device = duplicates, known_titles, device
        self._orders: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict:
        # For another process, which draws and captions but does not paint: no drawings, and none of them on a GPU.
        return {name: value for name, value in self.__dict__.items() if name != "painter"} | {"device": "cpu"}

    @property
    def identity(self) -> str:
        """A text that differs for corpora whose examples differ: part of the names of what is cached of them."""
        levels = ".".join(f"{copies}x{count}" for copies, count in self.levels.items())
        marks = f"{levels}-t{self.template_count}x{self.template_copies}-{self.titles:g}-{'dup' if self.duplicates else 'dedup'}"
        return f"2-{self.seed}-{self.fresh}-{marks}{'' if self.known_titles else '-unknown'}"

    @cached_property
    def painter(self) -> Painter:
        return Painter(self.device)

    def paint(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """The scenes' pictures, uint8 [N, 64, 64, 3]."""
        return self.painter(scenes)

    def picture(self, scene: Scene) -> np.ndarray:
        return self.paint([scene])[0].cpu().numpy()

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """The duplicated pairs, level by level; lengths of titles take turns within a level. The same for every seed of training."""
        rng = Random("duplicated")
        found: list[Pair] = []
        taken: set[str] = set()
        for copies, count in self.levels.items():
            for number in range(count):
                length = LENGTHS[number % len(LENGTHS)]
                made = title(rng, trained_concepts(), length)
                while made.text in taken:
                    made = title(rng, trained_concepts(), length)
                taken.add(made.text)
                name = f"dup{copies:03d}-{number:02d}"
                text = made.text if self.known_titles else _unread(name, length)
                found.append(Pair(name, text, made.scene, copies if self.duplicates else 1, "duplicated", length))
        return tuple(found)

    @cached_property
    def templates(self) -> tuple[Pair, ...]:
        rng, taken = Random("templates"), {pair.caption for pair in self.pairs}
        found: list[Pair] = []
        for number in range(self.template_count):
            made = title(rng, trained_concepts(), "medium")
            while made.text in taken or any(held_out_combinations(scene) for scene in _coloured(made.scene)):
                made = title(rng, trained_concepts(), "medium")
            taken.add(made.text)
            text = made.text if self.known_titles else _unread(f"tpl{number:02d}", "medium")
            copies = self.template_copies if self.duplicates else 1
            names = [f"tpl{number:02d}-{colour}" for colour in TEMPLATE_COLOURS]
            found += [Pair(name, text, scene, copies, "template", "template") for name, scene in zip(names, _coloured(made.scene))]
        return tuple(found)

    @cached_property
    def repeated(self) -> tuple[Pair, ...]:
        return self.pairs + self.templates

    @cached_property
    def captions_of_repeated(self) -> frozenset[str]:
        return frozenset(pair.caption for pair in self.repeated)

    @cached_property
    def _slots(self) -> np.ndarray:
        """One entry a slot of an epoch: index into `repeated`, or -1 for a fresh picture."""
        copies = np.repeat(np.arange(len(self.repeated)), [pair.copies for pair in self.repeated])
        # The de-duplicated corpus fills up with fresh pictures, so that both have epochs of one length.
        full = sum(k * n for k, n in self.levels.items()) + len(self.templates) * self.template_copies + self.fresh
        return np.concatenate([copies, np.full(full - len(copies), -1)])

    @property
    def epoch_length(self) -> int:
        return len(self._slots)

    @property
    def share_of_duplicates(self) -> float:
        """The share of repeated pairs among all draws."""
        return float((self._slots >= 0).mean())

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = np.random.default_rng([self.seed, epoch, 7]).permutation(self.epoch_length)
        return self._orders[epoch]

    def example(self, position: int) -> tuple[Scene, str, int]:
        """The `position`-th example of training: scene, caption, and its index in `repeated` (-1 if fresh)."""
        epoch, place = divmod(position, self.epoch_length)
        slot = int(self._order(epoch)[place])
        if (index := int(self._slots[slot])) >= 0:
            return self.repeated[index].scene, self.repeated[index].caption, index
        return *self._fresh(Random(f"{self.seed}-{epoch}-{slot}-11")), -1

    def _fresh(self, rng: Random, length: str | None = None) -> tuple[Scene, str]:
        """A picture with a caption that is no repeated pair's."""
        if rng.random() >= self.titles:
            scene = draw_scene(rng, trained_concepts())
            return scene, describe(rng, scene, length)
        while (made := title(rng, trained_concepts(), length)).text in self.captions_of_repeated:
            pass
        return made.scene, made.text

    def title_at(self, position: int) -> Pair | None:
        """The title with its picture that training shows at `position` and nowhere else, or None where it shows something else."""
        epoch, place = divmod(position, self.epoch_length)
        slot = int(self._order(epoch)[place])
        rng = Random(f"{self.seed}-{epoch}-{slot}-11")
        if self._slots[slot] >= 0 or rng.random() >= self.titles:
            return None
        while (made := title(rng, trained_concepts())).text in self.captions_of_repeated:
            pass
        return Pair(f"once-{position:07d}", made.text, made.scene, 1, "once", made.length)

    def seen_once(self, count: int, within: int) -> tuple[Pair, ...]:
        """`count` titles whose pictures come once in the first `within` positions, spread over them, lengths in turns as those of repeated pairs."""
        found: list[Pair] = []
        for number in range(count):
            position = number * within // count
            while (pair := self.title_at(position)) is None or pair.length != LENGTHS[number % len(LENGTHS)]:
                position += 1
            found.append(pair)
        return tuple(found)

    def described(self, scene: Scene, index: int, number: int) -> str:
        """The `number`-th other caption of the repeated picture `index`, which describes it."""
        return describe(Random(f"described {index} {number}"), scene, "medium")

    def fresh_scenes(self, stream: int, start: int, count: int) -> list[tuple[Scene, str]]:
        """Scenes with captions of a stream of their own, outside of the epochs."""
        return [self._fresh(Random(f"{stream}-{number}-13")) for number in range(start, start + count)]

    def scenes_of(self, stream: int, step: int, count: int) -> list[Scene]:
        """The `step`-th batch of scenes of a stream of their own, outside of the epochs: for the autoencoder and the judges."""
        rng = Random(f"{stream}-{step}")
        return [draw_scene(rng, trained_concepts()) for _ in range(count)]

    def contrastive_batch(self, stream: int, step: int, count: int) -> tuple[list[Scene], list[str]]:
        """The `step`-th batch of a stream for a text encoder: scenes and captions of the whole language, repeated pairs among them as often as
        in an epoch, but none twice in a batch, where the second copy would count as a wrong answer.

        Every fourth batch has long captions, the others short and medium ones: a batch costs what its longest caption does.
        """
        rng = Random(f"{stream}-{step}")
        lengths = ("long",) if step % 4 == 0 else ("short", "medium")
        able = [pair for pair in self.repeated if (pair.length if pair.length in LENGTHS else "medium") in lengths]
        used: set[str] = set()
        scenes, captions = [], []
        for _ in range(count):
            if rng.random() < self.share_of_duplicates:
                pair = rng.choices(able, [p.copies for p in able])[0]
                while pair.caption in used:
                    pair = rng.choices(able, [p.copies for p in able])[0]
                scene, text = pair.scene, pair.caption
            else:
                scene, text = self._fresh(rng, rng.choices(lengths, (0.35, 0.65)[: len(lengths)])[0])
                while text in used:
                    scene, text = self._fresh(rng, rng.choices(lengths, (0.35, 0.65)[: len(lengths)])[0])
            used.add(text)
            scenes.append(scene)
            captions.append(text)
        return scenes, captions

    def held_out(self, count: int, what: str = "combinations", seed: int = 0) -> list[tuple[Scene, str]]:
        """Held-out scenes with their reference descriptions: trained concepts in held-out combinations, or held-out "concepts"."""
        rng = Random(f"held out {what} {seed}")
        if what == "concepts":
            of, combinations = [index for index, concept in concepts().items() if concept.held_out], "any"
        else:
            of, combinations = trained_concepts(), "held out"
        scenes = [draw_scene(rng, of, combinations) for _ in range(count)]
        return [(scene, reference(scene)) for scene in scenes]


def _coloured(scene: Scene) -> list[Scene]:
    """The scene on each of the plain backgrounds of a template."""
    return [replace(scene, background=Background("plain", colour)) for colour in TEMPLATE_COLOURS]


def _unread(name: str, length: str) -> str:
    """A caption of letters drawn at random, as long as others of its length: words that the language does not hold."""
    rng = Random(f"unread {name}")
    words = {"short": (2, 4), "medium": (6, 12), "long": (14, 28)}[length]
    return " ".join("".join(rng.choice("qxzjkvwy") for _ in range(rng.randint(3, 6))) for _ in range(rng.randint(*words)))
