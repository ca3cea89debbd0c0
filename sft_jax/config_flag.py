"""The flag `--config`, and flags that set its fields, as `--config.batch.sequences=16`.

`config_flags` of ml_collections loads the file and sets the fields. Mistakes are found here first, so that a message
names the flag and what is allowed instead of showing a Python error.
"""

import difflib
import importlib.machinery
import importlib.util
import inspect
import re
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import config_path, tuple_parser

from sft_jax.data.reading import tuple_text

NAME = "config"

_KEPT = "defaults."  # the values of fields that are not set: to compare with, not to be set

# What a mistake in the code of a config can raise.
_MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
_KINDS = {
    int: (flags.IntegerParser(), "a whole number"),
    float: (flags.FloatParser(), "a number"),
    bool: (flags.BooleanParser(), "true or false"),
}

flags.disclaim_key_flags()  # the flag is that of the command which defines it

_ELEMENTS = {int: float}  # in a tuple of numbers a whole one may stand for any


class ConfigError(flags.Error):
    """A config that cannot be loaded, or a field of it that cannot be set."""


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
    get_config = getattr(_module(path), "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"--config={argument}: {path} has no function get_config, which makes the config.")
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError:
        what = f"takes no argument: --config={path}" if given else f"needs an argument: --config={path}:ARGUMENT"
        raise ConfigError(f"--config={argument}: its get_config {what}") from None
    try:
        config = get_config(*given)
    except _MISTAKES as error:
        raise ConfigError(f"--config={argument}: {_said(error, path)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        got = "None" if config is None else type(config).__name__
        raise ConfigError(f"--config={argument}: its get_config returned {got}, expected a ConfigDict.")
    return config


def _module(path: str) -> ModuleType:
    if not Path(path).is_file():
        raise ConfigError(f"--config={path}: {_not_a_file(Path(path))}")
    name = f"{NAME}_file"
    loader = importlib.machinery.SourceFileLoader(name, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    sys.modules[name] = module  # where dataclasses and pickle look for it
    try:
        loader.exec_module(module)
    except _MISTAKES as error:
        raise ConfigError(f"--config={path}: {_said(error, path)}") from error
    return module


def _not_a_file(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    what = "is a directory." if path.is_dir() else "there is no such file."
    if not folder.is_dir():
        return f"{what} There is no directory {folder} either."
    inside = sorted(child.name for child in folder.glob("*.py") if child.name != "__init__.py")
    return f"{what} In {folder} there are: {', '.join(inside) or 'no configs'}."


def _said(error: BaseException, path: str) -> str:
    """What went wrong, and on which line of the file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    if isinstance(error, SyntaxError) and error.filename == path:
        lines = [error.lineno]
    where = f"{path}, line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {error}"


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
        raise ConfigError(f"{override.flag}: expected --config.SECTION.FIELD=VALUE. {_fields(config, NAME)}") from None
    holder, name = config, NAME
    for number, part in enumerate(parts):
        if not isinstance(holder, ml_collections.ConfigDict):
            raise ConfigError(
                f"{override.flag}: {name} is no section but a value, {holder!r}. Set it by --{name}=VALUE"
            )
        if part not in holder:
            where = f"the section {name}" if number else "the config"
            meant = _meant(config, holder, name, parts[number:])
            raise ConfigError(f"{override.flag}: {where} has no field {part!r}.{meant} {_fields(holder, name)}")
        kind, holder, name = holder.get_type(part), holder[part], f"{name}.{part}"
    _check_value(holder, kind, name, override)


def _meant(
    config: ml_collections.ConfigDict, holder: ml_collections.ConfigDict, name: str, parts: Sequence[str]
) -> str:
    """What was probably meant: the same name in another section, or a similar one in this."""
    paths = [path for path in _leaves(config) if not path.startswith(_KEPT)]
    same = [path for path in paths if path.rsplit(".", 1)[-1] == parts[-1]]
    if same:
        return f" Did you mean {' or '.join(f'--{NAME}.{path}' for path in same)}?"
    similar = difflib.get_close_matches(str(parts[0]), list(holder), n=1)
    if not similar:
        return ""
    found, name = holder[similar[0]], f"{name}.{similar[0]}"
    section = f", a section? {_fields(found, name)}" if isinstance(found, ml_collections.ConfigDict) else "?"
    return f" Did you mean --{name}{section}"


def _leaves(config: ml_collections.ConfigDict, before: str = "") -> Iterator[str]:
    """The paths of all fields that are no sections."""
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _leaves(value, f"{before}{name}.")
        else:
            yield before + name


def _fields(holder: ml_collections.ConfigDict, name: str) -> str:
    return f"{name} has: {', '.join(holder) or 'no fields'}."


def _check_value(old: Any, kind: type, name: str, override: _Override) -> None:
    """Checks that the text can be a value of the field; `old` is the one it has."""
    if issubclass(kind, ml_collections.ConfigDict) and not (override.value or "").lstrip().startswith("{"):
        example = next(iter(old), "FIELD")
        raise ConfigError(f"{override.flag}: {name} is a section: --{name}.{example}=VALUE. {_fields(old, name)}")
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
    wanted = {_ELEMENTS.get(type(part), type(part)) for part in old} or {str}
    if all(_ELEMENTS.get(type(part), type(part)) in wanted for part in parsed):
        return
    if wanted == {str}:
        raise ConfigError(
            f"{override.flag}: expected texts in quotes, in brackets: {tuple_flag(name, [*map(str, parsed)])}"
        )
    raise ConfigError(f"{override.flag}: expected what {name} is made of where it is not set, {old!r}")


def tuple_flag(name: str, values: Sequence[str]) -> str:
    """How a tuple of texts is given in a shell: --config.data.cleaning='("strip_whitespace",)'."""
    return f"--{name}={shlex.quote(tuple_text(values))}"
