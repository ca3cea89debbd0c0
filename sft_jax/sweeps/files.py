"""Sweep files: `get_sweep()` gives the overrides of each run, and `get_search()` how runs are chosen."""

import dataclasses
from collections.abc import Callable, Mapping
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


def load(path: str) -> Stated:
    """What a sweep file states.

    Raises:
        ConfigError: there is no such file, it lacks `get_sweep`, one of its functions fails or gives something else;
            names file and line.
    """
    module = module_of(path, FLAG)
    search = None
    if hasattr(module, "get_search"):
        search = _call(_function(module, "get_search", path), path)
        if not isinstance(search, Search):
            raise ConfigError(
                f"--{FLAG}={path}: its get_search returned {_kind(search)}, expected SuccessiveHalving(…) or Optuna(…)"
            )
    if isinstance(search, Optuna) and not hasattr(module, "get_sweep"):
        return Stated([{}], search)
    if not hasattr(module, "get_sweep"):
        raise ConfigError(f"--{FLAG}={path}: {path} has no function get_sweep, which gives {_LISTS}.")
    return Stated(_overrides(_call(_function(module, "get_sweep", path), path), path), search)


def _function(module: ModuleType, name: str, path: str) -> Callable[..., Any]:
    found = getattr(module, name)
    if not callable(found):
        raise ConfigError(f"--{FLAG}={path}: its {name} is {_kind(found)}, expected a function")
    return found


def _call(function: Callable[..., Any], path: str) -> Any:
    try:
        return function()
    except MISTAKES as error:
        raise ConfigError(f"--{FLAG}={path}: {said(error, path)}") from error


def _overrides(made: Any, path: str) -> list[dict[str, Any]]:
    if not isinstance(made, (list, tuple)):
        raise ConfigError(f"--{FLAG}={path}: its get_sweep returned {_kind(made)}, expected {_LISTS}")
    for number, overrides in enumerate(made, start=1):
        if not isinstance(overrides, Mapping):
            raise ConfigError(
                f"--{FLAG}={path}: run {number} of its get_sweep is {_kind(overrides)}, expected a dict from fields to "
                "values"
            )
    return [dict(overrides) for overrides in made]


def _kind(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__}"
