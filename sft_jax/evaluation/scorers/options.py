"""Checks the options of a scorer against the signature of the function that makes it."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def check_options(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Compares options with the keyword-only parameters of a function: their names, and types where it says them.

    Known types are bool, int, float, str, `Literal[…]` for a choice, `Sequence[…]` and `Mapping[…]` of them, and
    `… | None`.

    Raises:
        ValueError: an option is unknown, missing or of another type; names the scorer, and those there are.
    """
    parameters = {
        option: parameter
        for option, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    known = ", ".join(parameters) or "none"
    for option in options:
        if option not in parameters:
            raise ValueError(f"scorer {name!r} has no option {option!r}; its options: {known}")
    for option, parameter in parameters.items():
        if option not in options:
            if parameter.default is inspect.Parameter.empty:
                raise ValueError(f"scorer {name!r} needs the option {option!r}; its options: {known}")
        elif (expected := _expected(parameter.annotation, options[option])) is not None:
            raise ValueError(f"option {option!r} of scorer {name!r} must be {expected}, got {options[option]!r}")


def _expected(annotation: Any, value: Any) -> str | None:
    """What the value should have been, or None where it is that (or nothing is said of it)."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return None if value in arguments else "one of " + ", ".join(map(repr, arguments))
    if origin is types.UnionType or origin is typing.Union:
        expected = [_expected(argument, value) for argument in arguments if argument is not type(None)]
        return None if value is None or None in expected else " or ".join(filter(None, expected))
    if origin is Sequence:
        is_list = isinstance(value, list | tuple) and all(_expected(arguments[0], item) is None for item in value)
        return None if is_list else f"a list, each {_named(arguments[0])}"
    if origin is Mapping:
        is_dict = isinstance(value, Mapping) and all(
            _expected(argument, item) is None
            for pair in value.items()
            for argument, item in zip(arguments, pair, strict=True)
        )
        return None if is_dict else f"a dict, each value {_named(arguments[1])}"
    if annotation is float:
        return None if isinstance(value, int | float) and not isinstance(value, bool) else _NAMES[float]
    if annotation is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else _NAMES[int]
    if annotation in (bool, str):
        return None if isinstance(value, annotation) else _NAMES[annotation]
    return None


def _named(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(annotation)))
    return _NAMES.get(annotation, "anything")
