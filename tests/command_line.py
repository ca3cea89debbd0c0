"""What a person does with a message: takes a flag out of it, and gives it to the command."""

import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

import ml_collections
import pytest
from absl import flags

from sft_jax import config_flag
from sft_jax.data.reading import Reading, reading_of

SFT = Path(__file__).parents[1] / "configs" / "sft.py"


def config_of(*arguments: str) -> ml_collections.ConfigDict:
    """The config that the commands make of these arguments, `--config=…` among them."""
    values = flags.FlagValues()
    holder = config_flag.define(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *arguments])  # where overrides are looked for
        values(sys.argv)
    return holder.value


def reading_by(*arguments: str) -> Reading:
    """How rows are read under these flags of `configs/sft.py`."""
    return reading_of(config_of(f"--config={SFT}", *arguments).data.reading)


def taken(config: ml_collections.ConfigDict, flags: Iterable[str]) -> ml_collections.ConfigDict:
    """The config with what the flags of a message set."""
    given = config_of(f"--config={SFT}", *flags)
    changed = config.copy_and_resolve_references().unlock()
    for flag in flags:
        *sections, name = flag.partition("=")[0].removeprefix("--config.").split(".")
        there, here = given, changed
        for section in sections:
            there, here = there[section], here[section]
        here[name] = there[name]
    return changed.lock()


def flags_in(message: str) -> list[str]:
    """The flags that a message gives with a value, as a shell hands them to a command."""
    begins = [found.start() for found in re.finditer(r"--\w[\w.]*=", message)]
    return [_first_word(message[begin:]) for begin in begins]


def _first_word(text: str) -> str:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    return next(lexer).rstrip(".,;:?)") if not re.match(r"--[\w.]+=['\"]", text) else _quoted(text)


def _quoted(text: str) -> str:
    """A flag whose value stands in quotes, which may hold anything."""
    end = re.match(r"--[\w.]+=(?:'[^']*'(?:\"'\"'[^']*')*|\"[^\"]*\")", text)
    return shlex.split(end[0])[0]
