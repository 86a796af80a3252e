"""Hooks on parts of a model that others may use at the same time: each sees what its own thread computes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any


@contextmanager
def hooked(register: Callable[..., Any], hook: Callable[..., Any], **options: Any) -> Iterator[None]:
    """Put a forward hook in place within, by a module's own method (``hooked(layer.register_forward_hook, hook)``), for calls of this thread.

    Hooks may be taken away in any order. What autograd computes anew in threads of its own (gradient checkpointing on a GPU) is not seen.
    """
    thread = get_ident()

    def own(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) if get_ident() == thread else None

    handle = register(own, **options)
    try:
        yield
    finally:
        handle.remove()
