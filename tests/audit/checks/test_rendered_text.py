"""Conversations that are rendered already."""

import pytest

from sft_jax.audit.checks import CheckedData, run_checks
from sft_jax.audit.checks.rendered_text import HEADERS, rendered_text
from sft_jax.data.conversations import Chat, Message, Preference, Segment, Segments, TokenExample
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.tokenized import TokenizedExamples
from tests.data.rendering.chat_formats import FORMATS

RENDERED = "<|im_start|>user\nTwo plus two?<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>\n"
PLAIN = "The marker <|im_start|>user begins what a user says, and <|im_end|> ends it."


def seen(*examples, **fields):
    records = [Record(f"a:{number}", example, {}) for number, example in enumerate(examples, 1)]
    examples = TokenizedExamples.from_examples([([1, 2], [0, 1])] * len(records), [record.id for record in records])
    return rendered_text(CheckedData(records, examples, **fields))


def text(content, weight=1.0):
    return Segments((Segment(content, weight),))


@pytest.mark.parametrize(("user", "answer"), HEADERS)
def test_the_headers_of_common_templates(user, answer, shown):
    (found,) = seen(text(f"\n{user} Hi\n{answer} Ho"), text(f"\n{answer} Ho"), text(f"\n{user} Hi"))
    assert shown(found) == ["a:1"]
    assert found.title == "1 row of text holds a whole conversation: what users say is trained like the answers"
    assert found.share == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", FORMATS)
def test_the_headers_of_the_models_own_template(name, shown):
    """Whatever it writes before turns; text that another program rendered with it is found."""
    renderer = ConversationRenderer(FORMATS[name].tokenizer())
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    made = renderer.tokenizer.apply_chat_template(turns, chat_template=renderer.chat_template, tokenize=False)
    assert all(header in made for header in renderer.turn_headers)
    (found,) = seen(text(made), text("Hi"), turn_headers=renderer.turn_headers)
    assert shown(found) == ["a:1"]


def test_headers_of_a_template_of_ones_own(byte_tokenizer):
    source = (
        "{% for m in messages %}{{ '[[' + m['role'] + ']] ' + m['content'] + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[[assistant]] ' }}{% endif %}"
    )
    headers = ConversationRenderer(byte_tokenizer("<end>", eos="<end>", chat_template=source)).turn_headers
    assert headers == ("[[user]]", "[[assistant]]")
    rendered = text("[[user]] Hi<end>[[assistant]] Ho<end>")
    assert len(seen(rendered, turn_headers=headers)) == 1
    assert seen(rendered) == []


@pytest.mark.parametrize(
    "example",
    [
        text(PLAIN),
        Segments(
            (Segment("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", 0.0), Segment("Ho<|im_end|>", 1.0))
        ),
        Chat((Message("user", PLAIN), Message("assistant", PLAIN))),
    ],
)
def test_what_is_no_rendered_conversation(example):
    """Text about markers, segments of which the answers alone are trained, and messages that name a marker."""
    assert seen(example) == []


def test_tokens_of_a_rendered_conversation(chatml_tokenizer, shown):
    ids = chatml_tokenizer(RENDERED)["input_ids"]
    answer = len(chatml_tokenizer(RENDERED.partition("Four.")[0])["input_ids"])
    given = TokenExample(ids, [1.0] * len(ids)), TokenExample(ids, [0.0] * answer + [1.0] * (len(ids) - answer))
    (found,) = seen(*given, tokenizer=chatml_tokenizer)
    assert shown(found) == ["a:1"]


@pytest.mark.parametrize(
    "example",
    [
        Chat((Message("user", RENDERED), Message("assistant", "Four."))),
        Preference((Message("user", "a"),), (Message("assistant", RENDERED),), (Message("assistant", "b"),)),
    ],
)
def test_messages_that_hold_a_conversation(example):
    (found,) = seen(example)
    assert found.title == "1 row has a message that holds a whole conversation, headers included"
    assert "make each turn a message" in found.advice


def test_it_is_looked_for_at_the_start_of_a_run(chatml_tokenizer):
    records = [Record("a:1", text(RENDERED), {})]
    examples = TokenizedExamples.from_examples([([1, 2], [0, 1])], ["a:1"])
    found = [f for f in run_checks(CheckedData(records, examples), quick=True) if f.check == "rendered_text"]
    assert [finding.severity for finding in found] == ["warning"]
