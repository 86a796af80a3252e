"""Mitigations of memorization at inference, by name.

A mitigation is one frozen object (see `Mitigation`) in a module of this package, entered with `register`. Every module of
the package is imported here, so that nothing else in memlib lists mitigations: a new file appears in the registry, and with
it in the tables and tests, by itself. Other packages add theirs by entry points of the group ``memlib.mitigations`` (`memlib.base.plugins`).

    from memlib.mitigations import REGISTRY, get
    get("pad-mask", fraction=0.5, which="first")
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from memlib.mitigations.base import REGISTRY, Mitigation, describe, get, register

__all__ = ["REGISTRY", "Mitigation", "describe", "get", "register"]

# Plain sampling stands first in every table, and after it what the primary text proposes.
for _module in sorted((module.name for module in iter_modules(__path__)), key=lambda name: (name != "padding", name)):
    import_module(f"{__name__}.{_module}")
REGISTRY.open()
