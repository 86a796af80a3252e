"""Benchmarks: `mitigations`, what every mitigation costs side by side, and `sampling`, how fast pictures are made, lever by lever.

Pages take times with `times`, and show the whole table of mitigations with `for_page`.
"""

from memlib.companion.bench.mitigations import Sampler, for_page
from memlib.companion.bench.timing import TURNS, Times, times

__all__ = ["TURNS", "Sampler", "Times", "for_page", "times"]
