"""Parameters: declared once by kind and range, checked when an object is made."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Literal, get_args, get_type_hints

import pytest
from annotated_types import Gt

from memlib.base.declared import LATER, Count, Declared, NotNegative, Part, Positive, Share, Whole, check, in_words
from memlib.base.errors import InputError
from memlib.companion.commands import app, main
from memlib.mitigations import REGISTRY, get

TAKEN = [(Share, [0, 0.5, 1.0]), (Part, [1, 0.1]), (Positive, [2, 1e-9]), (NotNegative, [0, 0.0]), (Whole, [0, 7]), (Count, [1]), (float, [-3, 2.5]),
         (bool, [True, False]), (str, ["", "x"]), (Literal["a", "b"], ["a"]), (Share | None, [None, 0.3]), (Annotated[float, Gt(1)], [1.01])]  # fmt: skip
REFUSED = [(Share, [-0.1, 1.1, True, "x", math.nan, None]), (Part, [0]), (Positive, [0, math.inf]), (NotNegative, [-1e-9]),
           (Whole, [-1, 1.0, True, "3", None]), (Count, [0]), (float, [math.nan, -math.inf, "2", False, [1]]), (bool, ["x", 1, None]),
           (str, [3, None]), (Literal["a", "b"], ["c", None, 1]), (Share | None, [2, "x"]), (Annotated[float, Gt(1)], [1]),
           (dict[str, str], [3, {"a": 1}])]  # fmt: skip


def test_kinds_take_what_they_say_and_nothing_else():
    for kind, values in TAKEN:
        for value in values:
            check(value, kind, "size of thing")
    for kind, values in REFUSED:
        for value in values:
            with pytest.raises(InputError, match="size") as caught:
                check(value, kind, "size of thing")
            assert str(caught.value).endswith(f"{in_words(kind)}.") and repr(value) in str(caught.value) and "thing" in str(caught.value)


def test_kinds_in_words():
    words = {Share: "a number from 0 to 1", Part: "a number above 0, up to 1", Whole | None: "a whole number from 0 on, or None", bool: "True or False",
             dict[str, Share]: "a dict of text and a number from 0 to 1", tuple[str, ...] | None: "a tuple of text, or None",
             float: "a finite number", Literal["a", "b"]: "one of a, b", Annotated[Literal["a", "b"], LATER]: "one of a, b"}  # fmt: skip
    assert {kind: in_words(kind) for kind in words} == words


@dataclass(frozen=True)
class Thing(Declared):
    size: Share = 0.5
    added: Annotated[bool, LATER] = False
    name: ClassVar[str] = "thing"


def test_what_came_later_is_left_out_of_keys_at_its_default():
    assert Thing().keyed == {"size": 0.5} and Thing(added=True).keyed == {"size": 0.5, "added": True}
    assert isinstance(Thing(1).keyed["size"], int)  # a key holds what was written
    with pytest.raises(InputError, match=r"The added of thing is 'no': give True or False."):
        Thing(added="no")


@pytest.mark.parametrize("name", REGISTRY)
def test_every_parameter_of_every_mitigation_is_checked(name):
    """By the type of each default, which is known apart from the declaration."""
    wrong = {bool: ["x", 1, None], int: [1.0, "3", True, math.nan], float: [math.nan, math.inf, "x", True], str: [3, None], type(None): ["x", math.nan]}
    for field in fields(REGISTRY[name]):
        for value in wrong[type(field.default)]:
            sentence = f"The {field.name} of {name} is|Unknown {field.name} .* of {name}: "
            with pytest.raises(InputError, match=sentence):
                get(name, **{field.name: value})


def every_command(commands=app):
    yield from (info.callback for info in commands.registered_commands)
    for group in commands.registered_groups:
        yield from every_command(group.typer_instance)


def test_numbers_on_the_command_line_are_checked_as_all_parameters_are():
    """None has a range of its own, and NaN, which no range leaves out, is refused before a model is looked for."""
    hints = [(f"{c.__module__}.{c.__name__}", name, hint) for c in every_command() for name, hint in get_type_hints(c, include_extras=True).items()]
    numbers = [hint for hint in hints if hint[1] != "return" and re.search(r"\b(int|float)\b", str(get_args(hint[2])[0] if get_args(hint[2]) else hint[2]))]
    assert len(numbers) > 40
    options = [(command, name, next(iter(getattr(hint, "__metadata__", ())), None)) for command, name, hint in numbers]
    assert not [(command, name) for command, name, option in options if option is None or option.min is not None or option.callback is None]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["published", "sd14", "--steps", "0"], "The option --steps is 0: give a whole number from 1 on."),
        (["bench", "mitigations", "--guidance", "nan"], "The option --guidance is nan: give a finite number."),
        (["published", "sd14", "--minutes", "nan"], "The option --minutes is nan: give a number above 0."),
        (["store", "prune", "--older-than", "-1"], "The option --older-than is -1.0: give a number from 0 on."),
        (["finetune", "--batch", "0"], "The option --batch is 0: give a whole number from 1 on."),
        (["minisd", "train", "vae", "--until", "-5"], "The option --until is -5: give a whole number from 1 on."),
    ],
)
def test_a_number_out_of_range_on_the_command_line_is_one_sentence(words, sentence, capsys):
    assert main(words) == 1
    assert capsys.readouterr().err.strip() == sentence
