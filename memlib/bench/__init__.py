"""Benchmarks: `mitigations`, what every mitigation costs side by side, and `sampling`, how fast pictures are made, lever by lever.

Pages take times with `times`.
"""

from memlib.bench.mitigations import Sampler, by_turn, measure
from memlib.bench.timing import TURNS, Times, times

__all__ = ["TURNS", "Sampler", "Times", "by_turn", "measure", "times"]
