"""Hooks and methods on parts of a model that others may use at the same time: each sees what its own thread computes, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Lock, get_ident
from typing import Any

import torch
from torch import nn

_COUNTING = Lock()
_CHANGING = Lock()  # held while methods are put in place or taken away
_open = 0
_eager: Any = None


@contextmanager
def hooked(register: Callable[..., Any], hook: Callable[..., Any], **options: Any) -> Iterator[None]:
    """Put a forward hook in place within, by a module's own method (``hooked(layer.register_forward_hook, hook)``), for calls of this thread.

    Hooks may be taken away in any order. What autograd computes anew in threads of its own (gradient checkpointing on a GPU) is not seen.
    Compiled models run uncompiled meanwhile, in all threads.
    """
    thread = get_ident()

    def own(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) if get_ident() == thread else None

    own.thread = thread  # type: ignore[attr-defined]
    handle = register(own, **options)
    try:
        with _uncompiled():
            yield
    finally:
        handle.remove()


def of_this_thread(hook: Any) -> bool:
    """Whether a hook acts on what this thread computes: all do but those that `hooked` put in place for another thread."""
    return getattr(hook, "thread", get_ident()) == get_ident()


class MethodStandIn:
    """Takes the place of one method of a module; `own` is what the module itself had in that place, None where the method is its class's."""

    def __init__(self, module: nn.Module, name: str):
        self.module, self.own, self.plain = module, vars(module).get(name), getattr(module, name)
        self.acting: list[tuple[int, Callable[..., Any]]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.plain
        for thread, function in list(self.acting):
            call = partial(function, self.module, call) if thread == get_ident() else call
        return call(*args, **kwargs)


@contextmanager
def answering(modules: Iterable[nn.Module], name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Let ``function(module, method, ...)`` answer this thread's calls of each module's method `name` within, where `method` is what it was before.

    Contexts may be nested and left in any order; other threads go on with the methods as they were.
    """
    one, held = (get_ident(), function), list[MethodStandIn]()
    try:
        with _CHANGING:
            for module in modules:
                found = vars(module).get(name)
                stand_in = found if isinstance(found, MethodStandIn) else MethodStandIn(module, name)
                setattr(module, name, stand_in)
                stand_in.acting.append(one)
                held.append(stand_in)
        yield
    finally:
        with _CHANGING:
            for stand_in in held:
                stand_in.acting.remove(one)
                if not stand_in.acting and vars(stand_in.module).get(name) is stand_in:  # and not what somebody else has put there
                    delattr(stand_in.module, name)
                    if stand_in.own is not None:
                        setattr(stand_in.module, name, stand_in.own)


@contextmanager
def _uncompiled() -> Iterator[None]:
    # torch does not look for hooks that came after a model was compiled: it would go on without them.
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(change: int) -> None:
    global _open, _eager
    with _COUNTING:
        _open += change
        if _eager is None and _open and "torch._dynamo" in sys.modules:  # else nothing is compiled yet
            _eager = torch.compiler.set_stance("force_eager")
        elif _eager is not None and not _open:
            _eager.__exit__(None, None, None)
            _eager = None
