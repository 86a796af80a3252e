"""Benchmarks: `mitigations`, what every mitigation costs side by side, and `sampling`, how fast pictures are made, lever by lever.

Pages take times with `times`, and show the whole table of mitigations with `kept_table`.
"""

from memlib.companion.bench.mitigations import Sampler
from memlib.companion.bench.timing import TURNS, Times, kept_table, times

__all__ = ["TURNS", "Sampler", "Times", "kept_table", "times"]
