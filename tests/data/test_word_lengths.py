"""From a file to ids and labels, in the world of torchtune's tests: a word is its length, BOS is 0 and EOS is -1."""

import json

import pytest
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers

from sft_jax.data.reading import Reading
from sft_jax.data.records import read_records
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.rendering.masking import Masking

# Words apart, BOS before what begins a question and EOS behind an answer, as their tokenizer for tests does.
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role != 'assistant' and (loop.first or loop.previtem.role == 'assistant') %}<bos>{% endif %}"
    "{{ m.content + ('<eos>' if m.role == 'assistant' else ' ') }}{% endfor %}"
)
CHAT = {
    "conversations": [
        {"from": "system", "value": "You are an AI assistant."},
        {"from": "human", "value": "What is the meaning of life?"},
        {"from": "gpt", "value": "The meaning of life is 42."},
        {"from": "human", "value": "That's ridiculous."},
        {"from": "gpt", "value": "I agree."},
    ]
}
TIME = {"instruction": "What time is it in London?", "response": "It is 10:00 AM in London"}
CITY = {
    "instruction": "Is is Istanbul or Constantinople?",
    "response": "Istanbul was Constantinople. Now it's Istanbul, not Constantinople.",
}
INSTRUCT = Reading(columns=("prompt=instruction", "completion=response"), system="follow this prompt")
FIRST, SECOND = [3, 7, 2, 4, 2, 3, -1], [1, 6, -1]  # the answers of the chat
TABLE = [  # (row, how it is read, what is trained, ids, labels: of each place the next id, or -100)
    (
        CHAT,
        Reading(),
        "assistant",
        [0, 3, 3, 2, 2, 10, 4, 2, 3, 7, 2, 5, *FIRST, 0, 6, 11, *SECOND],
        [-100] * 11 + FIRST + [-100] * 3 + SECOND,
    ),
    (
        TIME,
        INSTRUCT,
        "assistant",
        [0, 6, 4, 6, 4, 4, 2, 2, 2, 7, 2, 2, 5, 2, 2, 6, -1],
        [-100] * 9 + [2, 2, 5, 2, 2, 6, -1],
    ),
    (
        CITY,
        INSTRUCT,
        "assistant",
        [0, 6, 4, 6, 2, 2, 8, 2, 15, 8, 3, 15, 3, 4, 9, 3, 15, -1],
        [-100] * 8 + [8, 3, 15, 3, 4, 9, 3, 15, -1],
    ),
    (  # their train_on_input: all but the system message
        TIME,
        INSTRUCT,
        "user,assistant",
        [0, 6, 4, 6, 4, 4, 2, 2, 2, 7, 2, 2, 5, 2, 2, 6, -1],
        [-100] * 3 + [4, 4, 2, 2, 2, 7, 2, 2, 5, 2, 2, 6, -1],
    ),
]


@pytest.mark.parametrize(("row", "reading", "train_on", "ids", "labels"), TABLE)
def test_ids_and_labels(tmp_path, row, reading, train_on, ids, labels):
    """torchtune's tables of chat_tiny and instruct_tiny; there the last place has a label too, -100."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps([row]))
    (record,) = read_records(path, reading)
    tokenizer, as_length = length_tokenizer(message.content for message in record.conversation)
    rendered = ConversationRenderer(tokenizer, TEMPLATE, Masking(train_on=train_on)).render(record.conversation)
    found = [as_length[token] for token in rendered.tokens.tolist()]
    assert found == ids
    trained = (rendered.weights > 0).tolist()
    assert [token if train else -100 for token, train in zip(found[1:], trained[1:], strict=True)] == labels


def length_tokenizer(texts):
    """A tokenizer of words, and the length of the word of each id."""
    words = dict.fromkeys(" ".join(texts).split())
    vocab = {word: number for number, word in enumerate(["<bos>", "<eos>", *words])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<bos>", "<eos>"])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    return tokenizer, {number: len(word) for word, number in vocab.items()} | {0: 0, 1: -1}
