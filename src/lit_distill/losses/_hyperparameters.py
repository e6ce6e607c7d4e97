"""What a hyperparameter may be: its annotation says it, for a loss function and for the module of that function.

``temperature: Positive = 4.0`` and ``mode: Literal["l1", "l2"] = "l2"`` are checked wherever a value is given.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, ParamSpec, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")


class Rule:
    """What the value of a hyperparameter must be.

    Args:
        holds: whether a value is one.
        text: the same in words, for messages and the documentation.
    """

    def __init__(self, holds: Callable[[Any], bool], text: str) -> None:
        self.holds = holds
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _number(holds: Callable[[Any], bool], text: str) -> Rule:
    return Rule(lambda value: not isinstance(value, (str, types.NoneType)) and holds(value), text)


Positive: TypeAlias = Annotated[float, _number(lambda x: 0 < x < math.inf, "a finite number above 0")]
NonNegative: TypeAlias = Annotated[float, _number(lambda x: 0 <= x < math.inf, "a finite number of at least 0")]
Share: TypeAlias = Annotated[float, _number(lambda x: 0 <= x <= 1, "a number from 0 to 1")]
Count: TypeAlias = Annotated[int, _number(lambda x: 1 <= x < math.inf and x == int(x), "a whole number of at least 1")]


def rules_of(function: Callable[..., object]) -> dict[str, Rule]:
    """The rules of a function's keyword-only arguments that have one."""
    hints = get_type_hints(function, include_extras=True)
    keywords = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    found = {name: _rule(hints[name]) for name in keywords}
    return {name: rule for name, rule in found.items() if rule is not None}


def check(owner: str, rules: Mapping[str, Rule], given: Mapping[str, Any]) -> None:
    """Raise unless every given value keeps its rule.

    Raises:
        ValueError: names the owner, the hyperparameter, what it must be and what was given.
    """
    for name, rule in rules.items():
        if name in given and not rule.holds(given[name]):
            raise ValueError(f"{owner}: {name} must be {rule.text}, got {given[name]!r}")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function check the keyword-only arguments that it is given against their annotations.

    Raises:
        ValueError: as :func:`check`.
    """
    rules, name = rules_of(function), function.__name__

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        check(name, rules, kwargs)
        return function(*args, **kwargs)

    return wrapped


def _rule(hint: Any) -> Rule | None:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return next((extra for extra in hint.__metadata__ if isinstance(extra, Rule)), None)
    if origin is Literal:
        return Rule(lambda value: value in arguments, f"one of {', '.join(map(repr, arguments))}")
    if origin in (Union, types.UnionType) and (rules := list(filter(None, map(_rule, arguments)))):
        (rule,) = rules
        assert types.NoneType in arguments, f"{hint}: only a rule or None is supported"
        return Rule(lambda value: value is None or rule.holds(value), f"{rule.text}, or None")
    if origin is Sequence and (each := _rule(arguments[0])):
        return Rule(lambda values: all(each.holds(value) for value in values), f"a list, each {each.text}")
    return None
