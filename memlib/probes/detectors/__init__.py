"""Detectors of memorization, by name: a score for each prompt, or for each prompt and seed, and what it costs.

A detector is one frozen object (see `Detector`) in a module of this package, entered with `register`. Every module of the
package is imported here, so that nothing else in memlib lists detectors: a new file appears in the registry, and with it in the
tables and tests, by itself. Other packages add theirs by entry points of the group ``memlib.detectors`` (`memlib.base.plugins`).

    from memlib.probes.detectors import REGISTRY, get
    get("magnitude", steps=5).measure(group)
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from memlib.probes.detectors.base import REGISTRY, Detector, Scores, describe, get, register

__all__ = ["REGISTRY", "Detector", "Scores", "describe", "get", "register"]

for _module in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")
REGISTRY.open()
