"""Records, their tokens, and what the preview is made of."""

import pytest

from sft_jax.audit.checks import CheckedData
from sft_jax.data.conversations import Chat, Message
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.tokenizing import tokenize_records


@pytest.fixture(scope="session")
def record():
    """A record of a question and an answer."""

    def make(number, answer="Yes.", question="Is it?", file="t", **more):
        return Record(f"{file}:{number}", Chat((Message("user", question), Message("assistant", answer))), {}, **more)

    return make


@pytest.fixture(scope="session")
def renderer(chatml_tokenizer):
    return ConversationRenderer(chatml_tokenizer)


@pytest.fixture(scope="session")
def checked(renderer):
    """What the checks look at, of some records."""

    def make(records, sequence_length=1000, **more):
        examples, dropped = tokenize_records(records, renderer, sequence_length)
        return CheckedData(records, examples, dropped, renderer.tokenizer, sequence_length, renderer.stop_ids, **more)

    return make
