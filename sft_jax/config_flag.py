"""The flag `--config`, and flags that set its fields, as `--config.batch.sequences=16`.

`config_flags` of ml_collections loads the file and sets the fields. Mistakes are found here first, so that a message
names the flag and what is allowed instead of showing a Python error.
"""

import inspect
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import config_path, tuple_parser

from sft_jax.config_files import MISTAKES, ConfigError, element_kinds, find, is_made_of, listed, module_of, said
from sft_jax.data.reading import tuple_text

NAME = "config"

_KINDS = {
    int: (flags.IntegerParser(), "a whole number"),
    float: (flags.FloatParser(), "a number"),
    bool: (flags.BooleanParser(), "true or false"),
}


flags.disclaim_key_flags()  # the flag is that of the command which defines it


class _Override(NamedTuple):
    """A field that the command line sets.

    Attributes:
        flag: as it was written.
        path: of the field.
        value: None for a flag without one, as booleans may be.
    """

    flag: str
    path: str
    value: str | None


def define(flag_values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder:
    """Defines `--config`, whose value is the config with all that the command line sets in it."""
    text = "Experiment config, for example configs/sft.py:lora."
    holder = config_flags.DEFINE_config_file(NAME, None, text, flag_values=flag_values)
    flag_values[NAME].parser = _Parser(flag_values)
    return holder


class _Parser(flags.ArgumentParser):
    """From `FILE:ARGUMENT` to its config."""

    def __init__(self, flag_values: flags.FlagValues):
        self._flag_values = flag_values

    def parse(self, argument: str) -> ml_collections.ConfigDict:
        config = load(argument)
        for override in _overrides(self._flag_values.read_flags_from_files(sys.argv)):
            _check_override(config, override)
        return config.lock()

    def flag_type(self) -> str:
        return "config file"


def load(argument: str) -> ml_collections.ConfigDict:
    """The config that a file makes.

    Args:
        argument: "FILE", or "FILE:ARGUMENT" with what `get_config` is given.

    Raises:
        ConfigError: there is no such file, it has no `get_config`, that fails, or gives no config.
    """
    path, *given = argument.split(":", 1)
    get_config = getattr(module_of(path, NAME), "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"--config={argument}: {path} has no function get_config, which makes the config.")
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError:
        what = f"takes no argument: --config={path}" if given else f"needs an argument: --config={path}:ARGUMENT"
        raise ConfigError(f"--config={argument}: its get_config {what}") from None
    try:
        config = get_config(*given)
    except MISTAKES as error:
        raise ConfigError(f"--config={argument}: {said(error, path)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        got = "None" if config is None else type(config).__name__
        raise ConfigError(f"--config={argument}: its get_config returned {got}, expected a ConfigDict.")
    return config


def _overrides(arguments: Sequence[str]) -> Iterator[_Override]:
    for number, argument in enumerate(arguments):
        if argument == "--":
            return
        found = re.match(rf"--?(?:no)?{NAME}\.([^=]*)(?:=(.*))?$", argument, re.DOTALL)
        if not found:
            continue
        path, value = found.groups()
        following = arguments[number + 1 : number + 2]
        yield _Override(argument, path, value if value is not None else next(iter(following), None))


def _check_override(config: ml_collections.ConfigDict, override: _Override) -> None:
    try:
        parts = config_path.split(override.path)
    except ValueError:
        raise ConfigError(f"{override.flag}: expected --config.SECTION.FIELD=VALUE. {listed(config, NAME)}") from None
    found = find(config, parts, override.flag, f"--{NAME}.")
    _check_value(found.value, found.kind, found.name, override)


def _check_value(old: Any, kind: type, name: str, override: _Override) -> None:
    """Checks that the text can be a value of the field; `old` is the one it has."""
    if issubclass(kind, ml_collections.ConfigDict) and not (override.value or "").lstrip().startswith("{"):
        example = next(iter(old), "FIELD")
        raise ConfigError(f"{override.flag}: {name} is a section: --{name}.{example}=VALUE. {listed(old, name)}")
    if issubclass(kind, tuple):
        _check_tuple(old, name, override)
    if kind in _KINDS and ("=" in override.flag or kind is not bool):
        parser, expected = _KINDS[kind]
        try:
            parser.parse(override.value)
        except (TypeError, ValueError):
            raise ConfigError(f"{override.flag}: expected {expected}; {name} is {old!r} where it is not set.") from None


def _check_tuple(old: tuple, name: str, override: _Override) -> None:
    """Refuses what would become one text with brackets and commas in it, or holds other things than the field does.

    An empty field is one of texts.
    """
    text = override.value or ""
    try:
        parsed = tuple_parser.TupleParser().parse(text)
    except ValueError:
        parsed = (text,)
    if parsed == (text,) and ("," in text or text.startswith(("(", "["))):
        parts = [part.strip(" '\"") for part in text.strip("()[]").split(",")]
        meant = tuple_flag(name, [part for part in parts if part])
        raise ConfigError(
            f"{override.flag}: expected texts in quotes, in brackets: {meant} or, if it is one text, "
            f"{tuple_flag(name, [text])}"
        )
    if is_made_of(parsed, old):
        return
    if element_kinds(old) == {str}:
        raise ConfigError(
            f"{override.flag}: expected texts in quotes, in brackets: {tuple_flag(name, [*map(str, parsed)])}"
        )
    raise ConfigError(f"{override.flag}: expected what {name} is made of where it is not set, {old!r}")


def tuple_flag(name: str, values: Sequence[str]) -> str:
    """How a tuple of texts is given in a shell: --config.data.cleaning='("strip_whitespace",)'."""
    return f"--{name}={shlex.quote(tuple_text(values))}"
