"""Stand-ins for the parts of one pipeline object: what acts on its calls does not act on those of others that share the part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class StandIn:
    """Takes the place of a part of a pipeline: a call of it is ``function(part, *args, **kwargs)``, all else is the part's own."""

    def __init__(self, part: Any, function: Callable[..., Any]):
        self.__dict__.update(part=part, function=function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.part, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.part, name, value)


@contextmanager
def standing_in(pipe: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Let calls of `pipe`'s part `name` go through `function` within; afterwards the attribute is as before, also after an exception.

    The part itself is not touched, so that other pipelines, threads and callbacks that share it, and a compiled form of it, never notice. A call of
    the same pipeline within its own call has a stand-in of its own, for the part and not for the outer stand-in.
    """
    before = pipe.__dict__[name]
    stand_in = StandIn(before.part if isinstance(before, StandIn) else before, function)
    # Not by setattr: diffusers would note the class of the stand-in in the pipeline's configuration.
    pipe.__dict__[name] = stand_in
    try:
        yield
    finally:
        if pipe.__dict__.get(name) is stand_in:  # and not what a callback has put there
            pipe.__dict__[name] = before
