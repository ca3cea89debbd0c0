"""Types at run time: jaxtyping's and typeguard's verdict, asked for only where a call does not plainly fit.

Each function of the package is decorated with `checked`. Most calls fit their annotations at first sight; for those,
the way of the two packages, which binds a signature and looks at every annotation anew in each call, and at those of
arguments twice, is much of the time of a test that traces programs. What does not fit at first sight is theirs to
accept or refuse.
"""

import abc
import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterator, Sequence, Set

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
    def decorated(target: object) -> object:
        if inspect.isfunction(target):
            return checked(target)
        if dataclasses.is_dataclass(target) and "__init__" in vars(target):
            target.__init__ = checked(target.__init__)
        return target

    return decorated


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
            fits, result, fits_too = _tried(function, fitting, arguments, named)
            if fits_too:
                return result
            asked = _ask(function)
            if fits:
                return _ask(_giving(function, result))(*arguments, **named)
        return asked(*arguments, **named)

    return call


def _tried(function: Callable, fitting: "_Fitting", arguments: tuple, named: dict) -> tuple[bool, object, bool]:
    """Whether the arguments plainly fit; then the function is called: its result, and whether that fits."""
    if fitting.has_dimensions:  # each of which is one number in a call
        with _jaxtyped("context"):
            if not fitting.arguments(arguments, named):
                return False, None, False
            result = function(*arguments, **named)
            return True, result, fitting.result(result)
    if not fitting.arguments(arguments, named):
        return False, None, False
    result = function(*arguments, **named)
    return True, result, fitting.result(result)


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
        hints = dict(_hints(function))
        self.has_dimensions = any(map(_has_dimensions, hints.values()))
        hints = {name: plainly(hint) for name, hint in hints.items()}
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

        self.places = [(index, fits) for index, fits in enumerate(self.by_place) if fits is not _anything]

    def arguments(self, places: tuple, names: dict) -> bool:
        given = len(places)
        for index, fits in self.places:
            if index < given and not fits(places[index]):
                return False
        if given > len(self.by_place) and not all(map(self.further_places, places[len(self.by_place) :])):
            return False
        return not names or all(self.by_name.get(name, self.further_names)(value) for name, value in names.items())


def _hints(function: Callable) -> Iterator[tuple[str, object]]:
    """Types by names; a name that does not lead to one stands for anything, as it does for jaxtyping."""
    for name, annotation in function.__annotations__.items():
        try:
            yield from typing.get_type_hints(_Annotated({name: annotation}), function.__globals__).items()
        except NameError:
            yield name, typing.Any


class _Annotated:
    def __init__(self, annotations: dict):
        self.__annotations__ = annotations


def _has_dimensions(hint: object) -> bool:
    """Whether a check of it looks at the shape of an array."""
    of_shapes = isinstance(hint, type) and hint.__module__.startswith("jaxtyping")
    inner = getattr(hint, "__annotations__", {}).values() if _is_named_tuple(hint) else typing.get_args(hint)
    return of_shapes or any(map(_has_dimensions, inner))


def plainly(expected: object) -> Fits:
    """A question whose yes means that typeguard accepts the value as an `expected`; its no means nothing."""
    origin, inner = typing.get_origin(expected), typing.get_args(expected)
    if expected is typing.Any:
        return _anything
    if expected is None:
        return lambda value: value is None
    if isinstance(expected, typing.TypeVar):
        return _of_type_variable(expected)
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
        return _dict(*map(_all_fit, inner))
    if origin in (list, set, Sequence, Set):
        all_fit = _all_fit(inner[0])
        return lambda value: isinstance(value, origin) and all_fit(value)
    if origin is Callable:
        return _callable(inner[0])
    if origin is type:
        return _class_below(inner[0])
    if origin is not None:
        return _cannot_tell if origin in typeguard.origin_type_checkers else plainly(origin)
    return _of_class(expected)


def _of_class(expected: object) -> Fits:
    if not isinstance(expected, type) or typing.is_typeddict(expected) or issubclass(expected, (complex, typing.IO)):
        return _cannot_tell
    if getattr(expected, "_is_protocol", False) and not getattr(expected, "_is_runtime_protocol", False):
        return _anything  # what it asks for is not known when the program runs
    if _is_named_tuple(expected):
        return _named_tuple(expected)
    if expected is float:
        return lambda value: isinstance(value, (float, int))
    return lambda value: isinstance(value, expected)


def _of_type_variable(variable: typing.TypeVar) -> Fits:
    if variable.__bound__ is None:
        return _cannot_tell if variable.__constraints__ else _anything
    bound = variable.__bound__
    return (lambda value: issubclass(type(value), bound)) if type(bound) is type else _cannot_tell


def _class_below(base: object) -> Fits:
    """One that is, or inherits from, what is named, by a bound too."""
    if isinstance(base, typing.TypeVar) and not base.__constraints__:
        base = base.__bound__ or object
    return (lambda value: isinstance(value, type) and issubclass(value, base)) if type(base) is type else _cannot_tell


def _callable(taken: object) -> Fits:
    """What is called with so many arguments by place."""
    if taken is Ellipsis:
        return callable
    return (lambda value: _arguments_of(value) == len(taken)) if isinstance(taken, list) else _cannot_tell


def _arguments_of(value: object) -> int | None:
    """How many arguments a plain function or method takes that have no defaults; None where it is not so plain."""
    bound = 0
    if type(value) is functools.partial and not value.keywords:
        value, bound = value.func, len(value.args)
    while type(value) is types.MethodType or hasattr(value, "__wrapped__"):
        if type(value) is types.MethodType:
            value, bound = value.__func__, bound + 1
        elif type(value) is types.FunctionType and not hasattr(value, "__signature__"):
            value = value.__wrapped__
        else:
            return None
    if type(value) is not types.FunctionType or hasattr(value, "__signature__"):
        return None
    code = value.__code__
    if code.co_kwonlyargcount or code.co_flags & inspect.CO_VARARGS:
        return None
    return code.co_argcount - len(value.__defaults__ or ()) - bound


def _is_named_tuple(expected: object) -> bool:
    return isinstance(expected, type) and issubclass(expected, tuple) and hasattr(expected, "__annotations__")


def _tuple(inner: tuple) -> Fits:
    if inner[1:] == (Ellipsis,):
        all_fit = _all_fit(inner[0])
        return lambda value: isinstance(value, tuple) and all_fit(value)
    each = list(enumerate(map(plainly, inner)))

    def fits(value: object) -> bool:
        if not isinstance(value, tuple) or len(value) != len(each):
            return False
        for index, member_fits in each:  # noqa: SIM110  quicker than all() of a generator
            if not member_fits(value[index]):
                return False
        return True

    return fits


def _all_fit(expected: object) -> Callable[[Collection], bool]:
    """A question whose yes means that each of several values is an `expected`."""
    fits = plainly(expected)
    if fits is _anything:
        return _anything
    if not _is_of_classes(expected):
        return lambda values: all(map(fits, values))
    known = set()  # classes whose values fit

    def all_fit(values: Collection) -> bool:
        classes = set(map(type, values))
        if classes <= known:
            return True
        if all(map(fits, values)):
            known.update(classes)
            return True
        return False

    return all_fit


def _is_of_classes(expected: object) -> bool:
    """Whether the class of a value tells if it is one."""
    if typing.get_origin(expected) in (typing.Union, types.UnionType):
        return all(map(_is_of_classes, typing.get_args(expected)))
    return type(expected) in (type, abc.ABCMeta) and not issubclass(expected, tuple)


def _named_tuple(expected: type) -> Fits:
    fields = {name: plainly(field) for name, field in expected.__annotations__.items()}
    fields = [(name, fits) for name, fits in fields.items() if fits is not _anything]

    def fits(value: object) -> bool:
        if not isinstance(value, expected):
            return False
        for name, field_fits in fields:  # noqa: SIM110  as above
            if not field_fits(getattr(value, name)):
                return False
        return True

    return fits


def _dict(keys_fit: Callable[[Collection], bool], members_fit: Callable[[Collection], bool]) -> Fits:
    return lambda value: isinstance(value, dict) and keys_fit(value) and members_fit(value.values())


def _anything(value: object) -> bool:
    return True


def _cannot_tell(value: object) -> bool:
    return False
