"""What a notebook works with: prompt sets under a run, their pictures and scores, tables of them, and what every page shows."""

from memlib.experiment.run import Experiment

__all__ = ["Experiment"]
