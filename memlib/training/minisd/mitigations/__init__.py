"""Mitigations that act while MiniSD's U-Net is trained, by name.

A mitigation is one frozen object (see `TrainingMitigation`) in a module of this package, entered with `memlib.base.registry.enter`. Every
module of the package is imported here, filters before changes of captions, so that a new one appears in the command and the tables by itself.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from memlib.training.minisd.mitigations.base import TRAINING_MITIGATIONS, TrainingMitigation, get

__all__ = ["TRAINING_MITIGATIONS", "TrainingMitigation", "get"]

for _module in sorted((module.name for module in iter_modules(__path__)), reverse=True):
    import_module(f"{__name__}.{_module}")
