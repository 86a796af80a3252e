"""Stand-ins for the parts of one pipeline object: what acts on its calls does not act on those of others that share the part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any

_CHANGING = Lock()  # held while stand-ins are put in place or taken away


class StandIn:
    """Takes the place of a part of a pipeline: a call is ``function(part, ...)`` for the last function of its thread; all else is the part's own."""

    def __init__(self, part: Any):
        self.__dict__.update(part=part, acting=[])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = [function for thread, function in list(self.acting) if thread == get_ident()]
        return own[-1](self.part, *args, **kwargs) if own else self.part(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.part, name, value)


@contextmanager
def standing_in(pipe: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Let this thread's calls of `pipe`'s part `name` go through `function` within; the attribute is as before when the last such context is left.

    Contexts may be left in any order, also by an exception. The part itself is not touched, so that other pipelines, threads and callbacks that share
    it, and a compiled form of it, never notice. A call of the same pipeline within its own call has a function of its own, which is given the part.
    """
    one = (get_ident(), function)
    with _CHANGING:
        found = pipe.__dict__[name]
        stand_in = found if isinstance(found, StandIn) else StandIn(found)
        stand_in.acting.append(one)
        # Not by setattr: diffusers would note the class of the stand-in in the pipeline's configuration.
        pipe.__dict__[name] = stand_in
    try:
        yield
    finally:
        with _CHANGING:
            stand_in.acting.remove(one)
            if not stand_in.acting and pipe.__dict__.get(name) is stand_in:  # and not what a callback has put there
                pipe.__dict__[name] = stand_in.part
