"""Flags of the commands that read rows: `--reading.split=test` and so on, the options of `config.data.reading`."""

import ast
import dataclasses
from typing import Any

from absl import flags

from sft_jax.data.reading import DEFAULT, OPTIONS, Reading


class _TupleParser(flags.ArgumentParser):
    """Tuples as in a config, ("a=b", "c=d"), or with commas alone: a=b,c=d."""

    def parse(self, argument: Any) -> tuple[str, ...]:
        if isinstance(argument, str) and argument.startswith("("):
            try:
                argument = ast.literal_eval(argument)
            except (ValueError, SyntaxError):
                raise ValueError(f"{argument} is no tuple, expected a=b,c=d or ('a=b', 'c=d')") from None
        return tuple(argument.split(",")) if isinstance(argument, str) and argument else tuple(argument)


def _define(name: str, default: str | bool | tuple) -> flags.FlagHolder:
    flag, text = f"reading.{name}", f"Of the rows, as config.data.reading.{name}."
    if isinstance(default, tuple):
        return flags.DEFINE(_TupleParser(), flag, default, text)
    return (flags.DEFINE_bool if isinstance(default, bool) else flags.DEFINE_string)(flag, default, text)


# Not whether bad rows are dropped: all rows are measured or answered.
_FLAGS = {name: _define(name, getattr(DEFAULT, name)) for name in OPTIONS if name != "on_bad_row"}
NAMES = tuple(flag.name for flag in _FLAGS.values())


def reading(split: str = "", split_flag: str = DEFAULT.split_flag) -> Reading:
    """How rows are read, as the flags ask for; `split` takes the place of theirs, unless empty."""
    given = {name: flag.value for name, flag in _FLAGS.items()} | {"flags": "--reading.", "split_flag": split_flag}
    return dataclasses.replace(DEFAULT, **given | ({"split": split} if split else {}))
