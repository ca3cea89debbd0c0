"""The runs of a sweep: a base config and lists of overrides become configs, each checked before any run starts.

`runs_of` names everything that is wrong in any of them at once, with the number of the run and the field.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from ml_collections import ConfigDict

from sft_jax.config_files import ConfigError, element_kinds, find, is_made_of, listed
from sft_jax.runs.workdir import flatten
from sft_jax.sweeps.names import identity, name_of, short_keys
from sft_jax.sweeps.problems import Problems, SweepError, runs_text
from sft_jax.training.checks import check_config
from sft_jax.training.durations import parse

Overrides = Mapping[str, Any]

_EXPECTED = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
_DURATIONS = ("duration", "optimizer.warmup", "evaluation.every", "checkpoint.every", "evaluation.tasks_every")
_MAY_BE_EMPTY = "evaluation.tasks_every"
_MAY_BE_PERCENT = "optimizer.warmup"


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """A run of a sweep.

    Attributes:
        name: of its directory.
        overrides: what it sets in the base config, by path.
        config: resolved, and locked.
    """

    name: str
    overrides: dict[str, Any]
    config: ConfigDict

    @property
    def identity(self) -> str:
        """A hash of what makes it this run (`names.identity`)."""
        return identity(fields_of(self.config), self.overrides)


def runs_of(base: ConfigDict, stated: Sequence[Overrides], known: Mapping[str, str] | None = None) -> list[SweepRun]:
    """The runs of a sweep, in the order in which they are stated.

    Args:
        base: the config that all begin with.
        stated: what each run sets in it, by path.
        known: names of earlier runs of the same sweep by identity, which they keep.

    Raises:
        SweepError: there are none; fields that there are not; values that they cannot have; two runs that are the
            same. Names all of them with the number of the run, from 1.
    """
    if not stated:
        raise SweepError("the sweep is empty: its get_sweep() gives no runs")
    problems, resolved = Problems(), []
    for number, overrides in enumerate(stated, start=1):
        try:
            made = resolve(base, overrides)
            check_alone(made[1])
            resolved.append((number, *made))
        except (ConfigError, ValueError) as error:
            problems.add(number, error)
    problems.refuse()
    _refuse_same(resolved)
    return _named([(overrides, config) for _, overrides, config in resolved], known or {})


def resolve(base: ConfigDict, overrides: Overrides) -> tuple[dict[str, Any], ConfigDict]:
    """What a run sets, as the config has it, and its config, locked.

    Raises:
        ConfigError: a field that there is not, or a value of another type than the field's.
    """
    config, taken, problems = base.copy_and_resolve_references().unlock(), {}, []
    for path, value in overrides.items():
        try:
            taken[path] = _set(config, path, value)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return taken, config.lock()


def _set(config: ConfigDict, path: Any, value: Any) -> Any:
    """Sets a field; what it is then."""
    parts = path.split(".") if isinstance(path, str) else []
    if not all(parts) or not parts:
        raise ConfigError(f"{path!r}: expected the path of a field, as 'optimizer.learning_rate'")
    given = f"{path}={_shown(value)}"
    found = find(config, parts, given, "")
    value = _checked(value, found.kind, found.value, found.name, given)
    holder = config
    for part in parts[:-1]:
        holder = holder[part]
    holder[parts[-1]] = ConfigDict(value) if isinstance(value, dict) else value
    return value


def _checked(value: Any, kind: type, old: Any, name: str, given: str) -> Any:
    """The value as the field holds it: as strict as flags are, and 1 is a number where 1.0 is."""
    if isinstance(value, np.generic):
        value = value.item()
    if issubclass(kind, ConfigDict):
        return _checked_section(value, old, name, given)
    if issubclass(kind, tuple):
        return _checked_tuple(value, old, name, given)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and number:
        return float(value)
    if kind in _EXPECTED and type(value) is not kind:
        raise ConfigError(f"{given}: expected {_EXPECTED[kind]}; {name} is {old!r} where it is not set")
    return value


def _checked_section(value: Any, old: ConfigDict, name: str, given: str) -> dict[str, Any]:
    """A whole section can be given where configs/sft.py has an empty one: sources of a mixture, tasks."""
    if old and not isinstance(value, (Mapping, ConfigDict)):
        path = name.removeprefix("config.")
        raise ConfigError(
            f"{given}: {name} is a section; set its fields: {path}.{next(iter(old))}. {listed(old, name)}"
        )
    if not isinstance(value, (Mapping, ConfigDict)):
        raise ConfigError(f"{given}: {name} is a section; expected a ConfigDict")
    made = value.to_dict() if isinstance(value, ConfigDict) else ConfigDict(value).to_dict()
    if old and set(made) != set(old):
        raise ConfigError(f"{given}: {name} is a section; set its fields one by one. {listed(old, name)}")
    return made


def _checked_tuple(value: Any, old: tuple, name: str, given: str) -> tuple:
    if not isinstance(value, (tuple, list)):
        raise ConfigError(f"{given}: expected a tuple; {name} is {old!r} where it is not set")
    parts = tuple(part.item() if isinstance(part, np.generic) else part for part in value)
    if not is_made_of(parts, old):
        wanted = "texts" if element_kinds(old) == {str} else f"what {name} is made of where it is not set, {old!r}"
        raise ConfigError(f"{given}: expected a tuple of {wanted}")
    return tuple(float(part) for part in parts) if element_kinds(old) == {float} else parts


def _shown(value: Any) -> str:
    text = repr(value.to_dict() if isinstance(value, ConfigDict) else value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def check_alone(config: ConfigDict) -> None:
    """Checks all that can be known of a config alone: its values, and its durations.

    Raises:
        ValueError: names all that is wrong.
    """
    check_config(config)
    problems = []
    for path in _DURATIONS:
        duration = value_at(config, path)
        if path == _MAY_BE_EMPTY and not duration:
            continue
        try:
            unit = parse(duration, path)[1]
        except ValueError as error:
            problems.append(str(error))
            continue
        if unit == "percent" and path != _MAY_BE_PERCENT:
            problems.append(f"--config.{path}={duration!r}: percent of the run makes no sense here; give steps")
    if problems:
        raise ValueError("\n".join(problems))


def _refuse_same(resolved: Sequence[tuple[int, dict[str, Any], ConfigDict]]) -> None:
    """Refuses two runs with one config.

    Raises:
        SweepError: names them all.
    """
    groups: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for number, overrides, config in resolved:
        groups.setdefault(str(sorted(fields_of(config).items())), []).append((number, overrides))
    problems = [
        f"{runs_text([number for number, _ in group])} are the same: {_sets(group[0][1])}"
        for group in groups.values()
        if len(group) > 1
    ]
    if problems:
        raise SweepError("\n".join([*problems, "Leave out all but one of them."]))


def _sets(overrides: Overrides) -> str:
    return ", ".join(f"{path}={_shown(value)}" for path, value in overrides.items()) or "the base config"


def _named(resolved: Sequence[tuple[dict[str, Any], ConfigDict]], known: Mapping[str, str]) -> list[SweepRun]:
    fields = differing(resolved)
    keys, made = short_keys(fields), []
    for overrides, config in resolved:
        hashed = identity(fields_of(config), overrides)
        values = {path: value_at(config, path) for path in fields}
        made.append(SweepRun(known.get(hashed) or name_of(values, keys, hashed), overrides, config))
    return made


def differing(resolved: Sequence[tuple[Overrides, ConfigDict]]) -> list[str]:
    """The fields that are set by a run and not the same in all, in the order in which they are stated.

    Of a single run, or where none differs, all that are set.
    """
    stated = list(dict.fromkeys(path for overrides, _ in resolved for path in overrides))
    differ = [path for path in stated if len({repr(value_at(config, path)) for _, config in resolved}) > 1]
    return differ or stated


def value_at(config: ConfigDict, path: str) -> Any:
    """The value of a field by its path, of a section as a dict; None where there is none, as a source of a mixture."""
    value: Any = config
    for part in path.split("."):
        if not isinstance(value, ConfigDict) or part not in value:
            return None
        value = value[part]
    return value.to_dict() if isinstance(value, ConfigDict) else value


def fields_of(config: ConfigDict) -> dict[str, Any]:
    """All fields of a config by path, as JSON has them: tuples as lists; sections that are empty as `{}`."""
    return flatten(config.to_dict()) | {path: {} for path in _empty(config)}


def _empty(config: ConfigDict, before: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _empty(value, f"{before}{name}.") if value else [before + name]


def config_of(fields: Mapping[str, Any]) -> ConfigDict:
    """The config that `fields_of` took apart, locked."""
    nested: dict[str, Any] = {}
    for path, value in fields.items():
        *sections, name = path.split(".")
        holder = nested
        for section in sections:
            holder = holder.setdefault(section, {})
        holder[name] = _from_json(value)
    return ml_collections.ConfigDict(nested).lock()


def _from_json(value: Any) -> Any:
    return tuple(map(_from_json, value)) if isinstance(value, list) else value
