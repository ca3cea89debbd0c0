"""Types at run time: jaxtyping's and typeguard's verdict, asked for only where a call does not plainly fit.

Each function of the package is decorated with `checked`. Most calls fit their annotations at first sight; for those,
the way of the two packages, which binds a signature and looks at every annotation anew in each call, and at those of
arguments twice, is much of the time of a test that traces programs. What does not fit at first sight is theirs to
accept or refuse.
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence, Set

import jaxtyping
import typeguard

Fits = Callable[[object], bool]
_jaxtyped = jaxtyping.jaxtyped
_check_type = typeguard.check_type.__wrapped__  # jaxtyping replaces it, to have it know `A | B`, which is slow


def _check_type_or_union(argname, value, expected_type, memo=None, **scope):
    if type(expected_type) is types.UnionType:
        typeguard.check_union(argname, value, expected_type, memo)
    else:
        _check_type(argname, value, expected_type, memo, **scope)


typeguard.check_type = _check_type_or_union


def install(package: str) -> None:
    """Has every function and dataclass of a package checked that is imported from now on."""
    jaxtyping.install_import_hook(package, "typeguard.typechecked")
    jaxtyping.jaxtyped = _decorator  # what the hook writes above each of them


def _decorator(*, typechecker: Callable) -> Callable:
    return lambda target: checked(target) if inspect.isfunction(target) else _jaxtyped(target, typechecker=typechecker)


def checked(function: Callable) -> Callable:
    """`jaxtyped(typechecker=typeguard.typechecked)`, asked from the first call on that does not plainly fit."""
    if not function.__annotations__:
        return function
    fitting = asked = None

    @functools.wraps(function)
    def call(*arguments, **named):
        nonlocal fitting, asked
        if asked is None:
            fitting = fitting or _fitting_of(function)  # annotations may name what a module defines further down
            with _jaxtyped("context"):  # a dimension is one number in a call
                fits = fitting.arguments(arguments, named)
                if fits:
                    result = function(*arguments, **named)
                    if fitting.result(result):
                        return result
            asked = _ask(function)
            if fits:
                return _ask(_giving(function, result))(*arguments, **named)
        return asked(*arguments, **named)

    return call


def _ask(function: Callable) -> Callable:
    return _jaxtyped(function, typechecker=typeguard.typechecked)


def _giving(function: Callable, result: object) -> Callable:
    """A function with the same annotations, which gives what it has given: it is not called a second time."""
    return functools.wraps(function)(lambda *_, **__: result)


_fittings: dict[types.CodeType, tuple[dict, "_Fitting"]] = {}  # a function within another is made anew in each call


def _fitting_of(function: Callable) -> "_Fitting":
    annotations, fitting = _fittings.get(function.__code__, (None, None))
    if annotations != function.__annotations__:
        fitting = _Fitting(function)
        _fittings[function.__code__] = function.__annotations__, fitting
    return fitting


class _Fitting:
    """Whether what a function is called with, and what it returns, plainly fits its annotations."""

    def __init__(self, function: Callable):
        hints = {name: plainly(hint) for name, hint in typing.get_type_hints(function).items()}
        kinds = inspect.Parameter
        self.by_place, self.by_name = [], {}
        self.further_places = self.further_names = self.result = _anything
        if "return" in hints:
            self.result = hints["return"]
        for parameter in inspect.signature(function).parameters.values():
            fits = hints.get(parameter.name, _anything)
            if parameter.kind is kinds.VAR_POSITIONAL:
                self.further_places = fits
            elif parameter.kind is kinds.VAR_KEYWORD:
                self.further_names = fits
            else:
                if parameter.kind is not kinds.POSITIONAL_ONLY:
                    self.by_name[parameter.name] = fits
                if parameter.kind is not kinds.KEYWORD_ONLY:
                    self.by_place.append(fits)

    def arguments(self, places: tuple, names: dict) -> bool:
        for index, value in enumerate(places):
            fits = self.by_place[index] if index < len(self.by_place) else self.further_places
            if not fits(value):
                return False
        return all(self.by_name.get(name, self.further_names)(value) for name, value in names.items())


def plainly(expected: object) -> Fits:
    """A question whose yes means that typeguard accepts the value as an `expected`; its no means nothing."""
    origin, inner = typing.get_origin(expected), typing.get_args(expected)
    if expected is typing.Any:
        return _anything
    if expected is None:
        return lambda value: value is None
    if origin is typing.Literal:
        return lambda value: isinstance(value, str) and value in inner
    if origin is not None and not inner:  # list without saying of what, the empty tuple
        return _cannot_tell
    if origin in (typing.Union, types.UnionType):
        options = [plainly(option) for option in inner]
        return lambda value: any(fits(value) for fits in options)
    if origin is tuple:
        return _tuple(inner)
    if origin is dict:
        return _dict(*map(plainly, inner))
    if origin in (list, set, Sequence, Set):
        fits = plainly(inner[0])
        return lambda value: isinstance(value, origin) and all(map(fits, value))
    if origin is Callable:
        return callable if inner[0] is Ellipsis else _cannot_tell
    if origin is not None:
        return _cannot_tell if origin in typeguard.origin_type_checkers else plainly(origin)
    return _of_class(expected)


def _of_class(expected: object) -> Fits:
    if not isinstance(expected, type) or typing.is_typeddict(expected) or getattr(expected, "_is_protocol", False):
        return _cannot_tell
    if issubclass(expected, (complex, typing.IO)):
        return _cannot_tell
    if issubclass(expected, tuple) and hasattr(expected, "__annotations__"):
        return _named_tuple(expected)
    if expected is float:
        return lambda value: isinstance(value, (float, int))
    return lambda value: isinstance(value, expected)


def _tuple(inner: tuple) -> Fits:
    if inner[1:] == (Ellipsis,):
        fits = plainly(inner[0])
        return lambda value: isinstance(value, tuple) and all(map(fits, value))
    each = [plainly(expected) for expected in inner]
    return lambda value: (
        isinstance(value, tuple)
        and len(value) == len(each)
        and all(fits(member) for fits, member in zip(each, value, strict=True))
    )


def _named_tuple(expected: type) -> Fits:
    fields = {name: plainly(field) for name, field in expected.__annotations__.items()}
    return lambda value: (
        isinstance(value, expected) and all(fits(getattr(value, name)) for name, fits in fields.items())
    )


def _dict(key: Fits, member: Fits) -> Fits:
    return lambda value: isinstance(value, dict) and all(map(key, value)) and all(map(member, value.values()))


def _anything(value: object) -> bool:
    return True


def _cannot_tell(value: object) -> bool:
    return False
