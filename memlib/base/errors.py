"""Errors that memlib raises on purpose; each carries one sentence meant for the reader."""

from __future__ import annotations

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something given to memlib cannot be used: the message says what, what is allowed and what to do."""


class NotMeasured(RuntimeError):
    """A metric cannot be computed here, for instance because its weights are not at hand."""


def exit_status(command: Callable[[], int | None], stopped: str) -> int:
    """Run a command line's work and return its exit status.

    An InputError becomes its sentence and status 1; Ctrl-C becomes the sentence `stopped`, which says what is kept, and 130.
    """
    try:
        return command() or 0
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        return 130
