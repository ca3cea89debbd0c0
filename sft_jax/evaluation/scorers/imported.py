"""What the user names as `package.module:name` in a config."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any


def imported(spec: str, what: str) -> Callable[..., Any]:
    """The function or class that `package.module:name` names.

    Args:
        spec: its name.
        what: it is to be, for errors: "scorer".

    Raises:
        ValueError: there is no such module or name, or it cannot be called.
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise ValueError(f"{what} {spec!r}: expected package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"{what} {spec!r}: its module imports {error.name!r}, which is not installed") from error
        raise ValueError(
            f"{what} {spec!r}: there is no module {error.name!r}; it is looked for where Python imports from, the "
            "current directory included"
        ) from error
    function = getattr(module, name, None)
    if function is None:
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"]
        raise ValueError(
            f"{what} {spec!r}: {module_name} has no function {name!r}; it has {', '.join(functions) or 'none'}"
        )
    if not callable(function):
        raise ValueError(f"{what} {spec!r}: {name!r} of {module_name} is no function, but {type(function).__name__}")
    return function
