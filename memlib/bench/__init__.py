"""Benchmarks: `mitigations`, what every mitigation costs side by side, and `sampling`, how fast pictures are made, lever by lever.

Pages take times with `times`.
"""

from memlib.bench.mitigations import Sampler
from memlib.bench.timing import TURNS, Times, times

__all__ = ["TURNS", "Sampler", "Times", "times"]
