"""Errors that memlib raises on purpose; each carries one sentence meant for the reader."""

from __future__ import annotations


class InputError(ValueError):
    """Something given to memlib cannot be used: the message says what, what is allowed and what to do."""


class NotMeasured(RuntimeError):
    """A metric cannot be computed here, for instance because its weights are not at hand."""
