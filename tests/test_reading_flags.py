"""Flags of reading: each option of the config has one, and tuples may be written either way."""

import dataclasses

import pytest
from absl import flags

from sft_jax import reading_flags
from sft_jax.data.reading import OPTIONS, Reading


def parse(*arguments):
    values = flags.FlagValues()
    for name, holder in reading_flags._FLAGS.items():
        values[f"reading.{name}"] = flags.FLAGS[holder.name]
    try:
        values(["program", *arguments])
        return reading_flags.reading()
    finally:
        values.unparse_flags()
        for holder in reading_flags._FLAGS.values():
            flags.FLAGS[holder.name].unparse()


PARSED = [
    ((), Reading()),
    (("--reading.columns=a=b,c=d",), Reading(columns=("a=b", "c=d"))),
    (('--reading.columns=("a=b","c=d")', "--reading.ignore=x"), Reading(columns=("a=b", "c=d"), ignore=("x",))),
    (("--reading.split=test", "--reading.streaming"), Reading(split="test", streaming=True)),
]


@pytest.fixture(autouse=True)
def parsed():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


@pytest.mark.parametrize(("arguments", "expected"), PARSED)
def test_flags(arguments, expected):
    assert parse(*arguments) == dataclasses.replace(expected, flags="--reading.")


def test_what_is_no_tuple():
    with pytest.raises(flags.IllegalFlagValueError, match="is no tuple, expected a=b,c=d"):
        parse("--reading.columns=(a")


def test_every_option_has_a_flag():
    assert {*reading_flags._FLAGS, "on_bad_row"} == set(OPTIONS)
