"""What counts as a number that was given as a parameter (True and False do not, although bool is an int in Python), and counts in words."""

from __future__ import annotations

import math
from typing import Any


def is_number(value: Any) -> bool:
    """Say whether `value` is a finite number."""
    return not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)


def is_whole(value: Any, least: int = 0) -> bool:
    """Say whether `value` is a whole number from `least` on, given as int; 1.0 is none."""
    return not isinstance(value, bool) and isinstance(value, int) and value >= least


def counted(count: int, noun: str) -> str:
    """Return "1 seed", "2 seeds"; the noun takes an s in the plural."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
