"""What a detector is: a named object with parameters that gives each prompt a score, and says what the score cost."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from memlib.base.errors import InputError
from memlib.base.plugins import Plugged
from memlib.base.registry import Registered, enter, find, plug_in
from memlib.experiment.group import Group

REGISTRY: Plugged[Detector] = Plugged("memlib.detectors", lambda given: plug_in(Detector, register, given))
# What must be computed before the score exists, from the dearest to the cheapest; what comes first often holds the rest.
NEEDS = ("whole run with attention", "whole run", "pictures", "first steps", "prompt alone")


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of N prompts, [N] or [N, S] (one per seed), and their price.

    `evaluations` counts U-Net rows per prompt, over all its seeds (`memlib.sampling.loop.Cost`): what this detector would have
    spent alone, whether or not others shared the run or the store held it. `n_seeds` is the number of seeds that were used,
    0 where no model was.
    """

    values: np.ndarray
    evaluations: float
    n_seeds: int

    @classmethod
    def priced(cls, values: np.ndarray, evaluations: np.ndarray) -> Scores:
        """Scores whose samples took `evaluations` U-Net rows each, [N, S]."""
        return cls(values, float(evaluations.sum(1).mean()), evaluations.shape[1])

    def first(self, seeds: int) -> Scores:
        """The scores and the price with the first `seeds` seeds alone; scores per prompt stay as they are."""
        if self.values.ndim == 1 or seeds >= self.n_seeds:
            return self
        if seeds < 1:
            raise InputError(f"{seeds} seeds were asked for: ask for at least 1.")
        return Scores(self.values[:, :seeds], self.evaluations * seeds / self.n_seeds, seeds)


@dataclass(frozen=True)
class Detector(Registered):
    """A detector: subclass it, set the class attributes, override `measure`, and `register` it.

    The fields of the subclass are its parameters, with defaults; their types say what is allowed (`memlib.base.declared`). `sign` says which way the source
    reads the score: 1 if larger means memorized, -1 if smaller does. It is fixed beforehand and never turned round by a result.
    """

    kind: ClassVar[str] = "detector"
    registry: ClassVar[MutableMapping[str, Detector]] = REGISTRY

    name: ClassVar[str]
    label: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    sign: ClassVar[int] = 1
    needs: ClassVar[str] = "first steps"
    # Where the public program does something else than its paper, and whether a parameter `as_published` does the same.
    published: ClassVar[str] = ""

    def measure(self, group: Group) -> Scores:
        """Return scores and price for the prompts of `group` under its experiment's seeds.

        What was computed is kept in the experiment's store. Raises NotMeasured where it cannot be computed here.
        """
        raise NotImplementedError

    def scores(self, group: Group) -> np.ndarray:
        """The scores alone, [N] or [N, S]."""
        return self.measure(group).values


Kind = TypeVar("Kind", bound=type[Detector])


def register(kind: Kind) -> Kind:
    """Class decorator: enter a detector with its default parameters; raises InputError for a name that is taken."""
    if kind.needs not in NEEDS or kind.sign not in (1, -1):
        raise InputError(f"The detector {kind.name!r} needs one of {', '.join(NEEDS)} and a sign of 1 or -1: correct these.")
    return enter(kind)


def get(name: str, **params: Any) -> Detector:
    """Return the registered detector `name` with these parameters in place of its defaults.

    Raises InputError for an unknown name or parameter, and for a value that the detector does not take.
    """
    return find(Detector, name, params)


def describe() -> list[Mapping[str, str]]:
    """Return one row of words per registered detector, for tables: name, what it scores, direction, needs, source."""
    return [
        {"detector": d.name, "what it scores": d.summary, "memorized is": "larger" if d.sign > 0 else "smaller",
         "needs": d.needs, "source": d.source, "paper and program": d.published or "agree, or there is one of them only"}
        for d in REGISTRY.values()
    ]  # fmt: skip
