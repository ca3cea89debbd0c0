"""Records made of a few words."""

import pytest

from sft_jax.data.cleaning import Cleaner, CleaningLog, Context
from sft_jax.data.conversations import Chat, Message
from sft_jax.data.records import Record
from sft_jax.data.tokenized import DroppedRow


@pytest.fixture(scope="session")
def record():
    """A record of a question and an answer."""

    def make(answer="Yes.", question="Is it?", name="t:1", **more):
        return Record(name, Chat((Message("user", question), Message("assistant", answer))), {}, **more)

    return make


@pytest.fixture(scope="session")
def clean():
    """Runs steps over records: (clean records, log)."""

    def run(records, *steps, context=None, log=None):
        log = log or CleaningLog()
        found = list(Cleaner(steps, context or Context())(lambda: iter(records), log))
        assert [row for row in found if isinstance(row, DroppedRow)] == log.dropped
        return [one for one in found if isinstance(one, Record)], log

    return run


@pytest.fixture(scope="session")
def one(record, clean):
    """The answer after one step, and None where the row was dropped."""

    def run(answer, step, **more):
        kept, _ = clean([record(answer, **more)], step)
        return kept[0].conversation[-1].content if kept else None

    return run
