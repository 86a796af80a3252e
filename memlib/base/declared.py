"""Parameters by kind and range: declared once, as the type of a field, checked when an object is made and put into words for the reader.

    @dataclass(frozen=True)
    class PadMask(Declared):
        name: ClassVar[str] = "pad-mask"
        fraction: Share = 0.7
        which: Literal["first", "last"] = "last"

Plain types are strict: `float` is a finite number, `int` a whole one (True, 1.0 and "1" are none), `bool` is True or False and nothing else.
Values are checked and kept as they were given, so that what is hashed is what was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict, TypeAdapter, ValidationError

from memlib.base.errors import InputError

NotNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
Part = Annotated[float, Gt(0), Le(1)]  # a share of something that must not be nothing
Whole = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]

# In the type of a parameter that came after pictures had been kept: at its default it stays out of the store's keys.
LATER = "later"

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_WORDS = {bool: "True or False", str: "text", NoneType: "None"}


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=_STRICT)


def in_words(kind: Any) -> str:
    """Say what a kind allows: "a number from 0 to 1, or None"."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (Union, UnionType):
        return ", or ".join(map(in_words, inner))
    base, bounds = (inner[0], inner[1:]) if origin is Annotated else (kind, ())
    if told := next((bound.description for bound in bounds if getattr(bound, "description", None)), None):
        return told
    if origin is Annotated and get_origin(base) is not None:
        return in_words(base)
    if origin not in (None, Annotated):
        return f"a {origin.__name__.lower()} of {' and '.join(in_words(part) for part in inner if part is not ...)}"
    if base not in (int, float):
        return _WORDS.get(base, getattr(base, "__name__", str(base)))
    least, above, most = (next((getattr(bound, name) for bound in bounds if hasattr(bound, name)), None) for name in ("ge", "gt", "le"))
    noun = "a whole number" if base is int else "a number"
    if least is not None:
        return f"{noun} from {least:g} {'on' if most is None else f'to {most:g}'}"
    if above is not None:
        return f"{noun} above {above:g}{'' if most is None else f', up to {most:g}'}"
    return noun if base is int else "a finite number"


def check(value: Any, kind: Any, what: str) -> None:
    """Raise InputError, in one sentence that begins with `what` ("fraction of pad-mask"), where `value` is not of `kind`."""
    try:
        _adapter(kind).validate_python(value)
    except ValidationError:
        if get_origin(kind) is Literal:
            name, _, owner = what.partition(" of ")
            raise InputError(f"Unknown {name} {value!r}{f' of {owner}' if owner else ''}: use {in_words(kind)}.") from None
        raise InputError(f"The {what} is {value!r}: give {in_words(kind)}.") from None


_KINDS: dict[type, Mapping[str, Any]] = {}


def kinds(declaring: type) -> Mapping[str, Any]:
    """The declared kind of each field of a dataclass, by name."""
    if declaring not in _KINDS:
        hints = get_type_hints(declaring, include_extras=True)
        _KINDS[declaring] = {field.name: hints[field.name] for field in fields(declaring)}
    return _KINDS[declaring]


@dataclass(frozen=True)
class Declared:
    """Base of frozen dataclasses whose fields are parameters: each is checked against its declared kind when the object is made."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for name, kind in kinds(type(self)).items():
            check(getattr(self, name), kind, f"{name} of {self.name}")

    @property
    def keyed(self) -> dict[str, Any]:
        """The parameters as a key of the store has them: those that came later are left out at their defaults."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        late = {name for name, kind in kinds(type(self)).items() if LATER in getattr(kind, "__metadata__", ())}
        return {name: value for name, (value, usual) in values.items() if name not in late or value != usual}
