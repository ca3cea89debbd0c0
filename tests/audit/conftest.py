"""Checked data of a few rows, written as (question, answer) pairs."""

import pytest

from sft_jax.audit.checks import CheckedData
from sft_jax.data.conversations import Chat, Message
from sft_jax.data.records import Record
from sft_jax.data.tokenized import TokenizedExamples


@pytest.fixture(scope="session")
def records():
    """Records from (question, answer) pairs; ids are a:1, a:2, ..."""

    def make(*pairs, file="a", group=""):
        return [
            Record(f"{file}:{n}", Chat((Message("user", q), Message("assistant", a))), {}, group=group)
            for n, (q, a) in enumerate(pairs, 1)
        ]

    return make


@pytest.fixture(scope="session")
def checked(records):
    """CheckedData of (question, answer) pairs, each three tokens long."""

    def make(*pairs, **fields):
        made = records(*pairs)
        examples = TokenizedExamples.from_examples([([1, 2, 3], [0, 1, 1])] * len(made), [record.id for record in made])
        return CheckedData(made, examples, **fields)

    return make


@pytest.fixture(scope="session")
def shown():
    """The row ids of the examples of an observation or a finding."""
    return lambda found: [place.row_id for place in found.examples]
