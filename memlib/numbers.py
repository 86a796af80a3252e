"""What counts as a number that was given as a parameter: True and False do not, although Python's bool is an int."""

from __future__ import annotations

import math
from typing import Any


def is_number(value: Any) -> bool:
    """Say whether `value` is a finite number."""
    return not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)


def is_whole(value: Any, least: int = 0) -> bool:
    """Say whether `value` is a whole number from `least` on, given as int; 1.0 is none."""
    return not isinstance(value, bool) and isinstance(value, int) and value >= least
