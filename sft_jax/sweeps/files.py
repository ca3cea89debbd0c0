"""Sweep files: `get_sweep()` gives the overrides of each run, and `get_search()` how runs are chosen.

`FILE:ARGUMENT` gives both an argument, a string, as `--config` does: what it means is the file's own affair.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from sft_jax.config_files import MISTAKES, ConfigError, module_of, said
from sft_jax.sweeps.search import Optuna, Search

FLAG = "sweep"
_LISTS = "a list of dicts, as product(values(…), seeds(3)) makes it"


@dataclasses.dataclass(frozen=True)
class Stated:
    """What a sweep file states.

    Attributes:
        overrides: of each run; under Optuna of each run of a trial, one with none where the file has no `get_sweep`.
        search: how runs are chosen; None for all of them.
    """

    overrides: list[dict[str, Any]]
    search: Search | None


def parts_of(sweep: str) -> tuple[str, list[str]]:
    """The path of a sweep file, and what its functions are given: nothing, or one argument.

    >>> parts_of("experiments/data_size/sweep.py"), parts_of("experiments/data_size/sweep.py:smoke")
    (('experiments/data_size/sweep.py', []), ('experiments/data_size/sweep.py', ['smoke']))
    """
    path, *given = sweep.split(":", 1)
    return path, given


def load(sweep: str) -> Stated:
    """What a sweep file states.

    Args:
        sweep: "FILE", or "FILE:ARGUMENT" with what its functions are given.

    Raises:
        ConfigError: there is no such file, it lacks `get_sweep`, one of its functions takes no argument or needs one,
            fails, or gives something else; names file and line.
    """
    module = module_of(parts_of(sweep)[0], FLAG)
    search = None
    if hasattr(module, "get_search"):
        search = _called(module, "get_search", sweep)
        if not isinstance(search, Search):
            raise ConfigError(
                f"--{FLAG}={sweep}: its get_search returned {_kind(search)}, expected SuccessiveHalving(…) or Optuna(…)"
            )
    if isinstance(search, Optuna) and not hasattr(module, "get_sweep"):
        return Stated([{}], search)
    if not hasattr(module, "get_sweep"):
        raise ConfigError(f"--{FLAG}={sweep}: it has no function get_sweep, which gives {_LISTS}.")
    return Stated(_overrides(_called(module, "get_sweep", sweep), sweep), search)


def _called(module: ModuleType, name: str, sweep: str) -> Any:
    """What a function of the file gives."""
    function, (path, given) = getattr(module, name), parts_of(sweep)
    if not callable(function):
        raise ConfigError(f"--{FLAG}={sweep}: its {name} is {_kind(function)}, expected a function")
    try:
        inspect.signature(function).bind(*given)
    except TypeError:
        what = f"takes no argument: --{FLAG}={path}" if given else f"needs an argument: --{FLAG}={path}:ARGUMENT"
        raise ConfigError(f"--{FLAG}={sweep}: its {name} {what}") from None
    try:
        return function(*given)
    except MISTAKES as error:
        raise ConfigError(f"--{FLAG}={sweep}: {said(error, path)}") from error


def _overrides(made: Any, sweep: str) -> list[dict[str, Any]]:
    if not isinstance(made, (list, tuple)):
        raise ConfigError(f"--{FLAG}={sweep}: its get_sweep returned {_kind(made)}, expected {_LISTS}")
    for number, overrides in enumerate(made, start=1):
        if not isinstance(overrides, Mapping):
            raise ConfigError(
                f"--{FLAG}={sweep}: run {number} of its get_sweep is {_kind(overrides)}, expected a dict from fields "
                "to values"
            )
    return [dict(overrides) for overrides in made]


def _kind(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__}"
