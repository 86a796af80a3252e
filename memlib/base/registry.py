"""What registered objects share: declared parameters, a title that says which of them were changed, and entry by name."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import fields, replace
from typing import Any, ClassVar, Self, TypeVar

from memlib.base.declared import Declared
from memlib.base.errors import InputError


class Registered(Declared):
    """Base of frozen dataclasses whose fields are their parameters; `kind` is the word for them, `registry` holds those entered.

    `described` are the texts that a class must have for what tables and messages say of it.
    """

    kind: ClassVar[str]
    described: ClassVar[tuple[str, ...]] = ("name", "label", "summary", "source")
    registry: ClassVar[MutableMapping[str, Any]]

    @property
    def params(self) -> dict[str, Any]:
        """The parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def title(self) -> str:
        """The name, with those parameters that differ from the registered ones."""
        usual = self.registry[self.name].params if self.name in self.registry else {}
        changed = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                   for name, value in self.params.items() if usual.get(name) != value]  # fmt: skip
        return f"{self.name} ({', '.join(changed)})" if changed else self.name

    def with_params(self, **params: Any) -> Self:
        """Return the same object with other parameters; raises InputError for one that it does not have."""
        for name in params:
            if name not in self.params:
                known = f"it has {', '.join(self.params)}" if self.params else "it has none"
                raise InputError(f"The {self.kind} {self.name!r} has no parameter {name!r}: {known}.")
        return replace(self, **params)


Entered = TypeVar("Entered", bound=type[Registered])


def enter(made: Entered) -> Entered:
    """Enter a class with its default parameters into its registry; raises InputError for a name that is taken and a description that is missing."""
    if absent := [word for word in made.described if not getattr(made, word, "")]:
        raise InputError(f"The {made.kind} {made.__name__} has no {absent[0]}: give it {', '.join(made.described)} as texts of the class.")
    if made.name in made.registry:
        raise InputError(f"There is a {made.kind} {made.name!r} already: choose another name.")
    made.registry[made.name] = made()
    return made


def plug_in(base: type[Registered], register: Any, given: Any) -> None:
    """Enter what an entry point gives: a subclass of `base`, which may have entered itself with `register`. Raises InputError for anything else."""
    if not (isinstance(given, type) and issubclass(given, base)):
        raise InputError(f"An entry point gives {given!r}, where a subclass of {base.__name__} belongs.")
    if type(base.registry.get(getattr(given, "name", ""))) is not given:
        register(given)


def find(base: type[Registered], name: str, params: dict[str, Any]) -> Any:
    """Return the entry `name` of `base`'s registry with `params` in place of its defaults; raises InputError if either is unknown."""
    if name not in base.registry:
        raise InputError(f"Unknown {base.kind} {name!r}: use one of {', '.join(base.registry)}.")
    return base.registry[name].with_params(**params)
