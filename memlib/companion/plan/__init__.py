"""What a run of the notebooks will ask for, before it begins: pictures, those in the store, U-Net evaluations, hours, disk.

The notebooks' own cells are carried out with placeholders in the place of pictures, scores and figures, and with a U-Net that counts its rows
and computes nothing; so the plan follows the notebooks as they are, and costs seconds a notebook.

    python -m memlib.companion.plan --substrate sd14 --profile paper
"""

from memlib.companion.plan.demand import Demand, Plan
from memlib.companion.plan.rates import Rates, calibrate

__all__ = ["Demand", "Plan", "Rates", "calibrate"]
