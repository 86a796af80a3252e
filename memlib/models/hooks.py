"""Hooks on parts of a model that others may use at the same time: each sees what its own thread computes, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any

import torch

_COUNTING = Lock()
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
