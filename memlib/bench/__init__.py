"""Benchmarks: `mitigations`, what every mitigation costs side by side, and `sampling`, how fast pictures are made, lever by lever."""

from memlib.bench.mitigations import Sampler, by_turn, measure

__all__ = ["Sampler", "by_turn", "measure"]
