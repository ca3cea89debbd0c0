"""Python files that say what is to be run, and the fields of the configs that they make.

For `--config` (`config_flag.py`) and for the file of a sweep: what is wrong in such a file is named with its line, and
a field that there is not with the one that was probably meant.
"""

import difflib
import importlib.machinery
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import ml_collections
from absl import flags

_KEPT = "defaults."  # the values of fields that are not set: to compare with, not to be set

# What a mistake in the code of a config can raise.
MISTAKES = (
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
ELEMENTS = {int: float}  # in a tuple of numbers a whole one may stand for any

flags.disclaim_key_flags()


class ConfigError(flags.Error):
    """A config that cannot be loaded, or a field of it that cannot be set."""


class Field(NamedTuple):
    """A field, or a section, of a config.

    Attributes:
        name: with `config.` before its path.
        kind: type of its values.
        value: that it has.
    """

    name: str
    kind: type
    value: Any


def module_of(path: str, flag: str) -> ModuleType:
    """What a file defines, run as a module of its own.

    Args:
        path: of a Python file.
        flag: that names it, without dashes.

    Raises:
        ConfigError: there is no such file, or it fails; names its line.
    """
    if not Path(path).is_file():
        raise ConfigError(f"--{flag}={path}: {_not_a_file(Path(path))}")
    name = f"{flag}_file"
    loader = importlib.machinery.SourceFileLoader(name, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    sys.modules[name] = module  # where dataclasses and pickle look for it
    try:
        loader.exec_module(module)
    except MISTAKES as error:
        raise ConfigError(f"--{flag}={path}: {said(error, path)}") from error
    return module


def _not_a_file(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    what = "is a directory." if path.is_dir() else "there is no such file."
    if not folder.is_dir():
        return f"{what} There is no directory {folder} either."
    inside = sorted(child.name for child in folder.glob("*.py") if child.name != "__init__.py")
    return f"{what} In {folder} there are: {', '.join(inside) or 'no configs'}."


def said(error: BaseException, path: str) -> str:
    """What went wrong, and on which line of the file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    if isinstance(error, SyntaxError) and error.filename == path:
        lines = [error.lineno]
    where = f"{path}, line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {error}"


def find(config: ml_collections.ConfigDict, parts: Sequence[str], given: str, prefix: str) -> Field:
    """The field of a path.

    Args:
        config: in which it lies.
        parts: of the path.
        given: what named the field, for errors.
        prefix: of a path where it is given: `--config.` on a command line.

    Raises:
        ConfigError: there is no such field; names what was probably meant, and what there is.
    """
    holder, name, kind = config, "config", ml_collections.ConfigDict
    for number, part in enumerate(parts):
        if not isinstance(holder, ml_collections.ConfigDict):
            raise ConfigError(
                f"{given}: {name} is no section but a value, {holder!r}. Set it by {_spelled(name, prefix)}=VALUE"
            )
        if part not in holder:
            where = f"the section {name}" if number else "the config"
            meant = _meant(config, holder, name, parts[number:], prefix)
            raise ConfigError(f"{given}: {where} has no field {part!r}.{meant} {listed(holder, name)}")
        kind, holder, name = holder.get_type(part), holder[part], f"{name}.{part}"
    return Field(name, kind, holder)


def _spelled(name: str, prefix: str) -> str:
    """How `config.batch.sequences` is written where it is given."""
    return prefix + name.removeprefix("config.")


def _meant(
    config: ml_collections.ConfigDict,
    holder: ml_collections.ConfigDict,
    name: str,
    parts: Sequence[str],
    prefix: str,
) -> str:
    """What was probably meant: the same name in another section, or a similar one in this."""
    paths = [path for path in leaves(config) if not path.startswith(_KEPT)]
    same = [path for path in paths if path.rsplit(".", 1)[-1] == parts[-1]]
    if same:
        return f" Did you mean {' or '.join(f'{prefix}{path}' for path in same)}?"
    similar = difflib.get_close_matches(str(parts[0]), list(holder), n=1)
    if not similar:
        return ""
    found, name = holder[similar[0]], f"{name}.{similar[0]}"
    section = f", a section? {listed(found, name)}" if isinstance(found, ml_collections.ConfigDict) else "?"
    return f" Did you mean {_spelled(name, prefix)}{section}"


def leaves(config: ml_collections.ConfigDict, before: str = "") -> Iterator[str]:
    """The paths of all fields that are no sections."""
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from leaves(value, f"{before}{name}.")
        else:
            yield before + name


def listed(holder: ml_collections.ConfigDict, name: str) -> str:
    """`config.batch has: micro_batches, sequences.`"""
    return f"{name} has: {', '.join(holder) or 'no fields'}."


def is_made_of(values: Sequence[Any], old: Sequence[Any]) -> bool:
    """Whether a tuple holds what the field's own does; an empty field is one of texts."""
    return all(ELEMENTS.get(type(part), type(part)) in element_kinds(old) for part in values)


def element_kinds(old: Sequence[Any]) -> set[type]:
    """The types of what a tuple holds."""
    return {ELEMENTS.get(type(part), type(part)) for part in old} or {str}
