"""Every form of record as texts, and the template that prompts share."""

import pytest

from sft_jax.data.conversations import Chat, Message, Preference, Segment, Segments, TokenExample, ToolCall
from sft_jax.data.records import Record
from sft_jax.data.views import NO_TEMPLATE, PromptTemplate, View, shared_beginning, view_of

SYSTEM, HI, HO = Message("system", "s"), Message("user", "hi"), Message("assistant", "ho")
CALL = Message("assistant", "", reasoning="hm", tool_calls=(ToolCall("f", {"a": 1}),))


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (Chat((SYSTEM, HI, HO)), ("s", "hi", "hi", ("ho",))),
        (Chat((HI, HO, Message("user", "and?"), HO)), ("", "hi\nho\nand?", "and?", ("ho", "ho"))),
        (Chat((HI, CALL, Message("tool", "1"), HO)), ("", "hi\nhm\nf({'a': 1})\n1", "hi", ("hm\nf({'a': 1})", "ho"))),
        (Chat((SYSTEM, HI)), ("s", "hi", "hi", ())),
        (Preference((HI,), (HO,), (Message("assistant", "no"),)), ("", "hi", "hi", ("ho",), "", "no")),
        (Chat((HI, HO), tools=({"name": "f"},)), ("", "hi", "hi", ("ho",), '[{"name": "f"}]', "")),
        (Segments(tuple(Segment(t, t in "bd") for t in "abcd")), ("", "abc", "abc", ("b", "d"))),
        (Segments((Segment("text", 1),)), ("", "", "", ("text",))),
    ],
)  # fmt: skip
def test_views(example, expected):
    system, asked, question, answers, *more = expected
    assert view_of(Record("a:1", example, {}, group="g")) == View("a:1", system, asked, question, answers, "g", *more)


def test_tokens_are_decoded(chatml_tokenizer):
    ids = chatml_tokenizer("ask tell", add_special_tokens=False)["input_ids"]
    row = Record("a:1", TokenExample(ids, [0, 0, 0, 0, 1, 1, 1, 1]), {})
    assert view_of(row, chatml_tokenizer) == View("a:1", "", "ask ", "ask ", ("tell",), "")
    with pytest.raises(ValueError, match="give one to `view_of`"):
        view_of(row)


@pytest.mark.parametrize(
    ("questions", "begin", "end"),
    [
        (["Classify: red card\nIntent:", "Classify: lost\nIntent:"], "Classify:", "Intent:"),
        (["red", "lost"], "", ""),
        (["Say cat", "Say car"], "Say", ""),  # no word is split
        (["Is it red now?", "Is it late now?"], "Is it", "now?"),
    ],
)
def test_prompt_templates(questions, begin, end):
    assert PromptTemplate.of(questions) == (begin, end)


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("Classify: red\nIntent:", "red"),
        (" other text ", "other text"),
        ("Classify: red", "Classify: red"),  # not made by this template
        ("Classify:\nIntent:", "Classify:\nIntent:"),  # nothing between: the whole says more
    ],
)
def test_what_is_not_the_templates(text, own):
    assert PromptTemplate("Classify:", "Intent:").own(text) == own


@pytest.mark.parametrize(
    ("texts", "shared"), [(["abc", "abd"], "ab"), (["a", "abc"], "a"), (["x", "y"], ""), (["", "a"], "")]
)
def test_shared_beginning(texts, shared):
    assert shared_beginning(texts) == shared


def test_a_template_is_read_off_the_first_records():
    views = [View(f"a:{n}", "", f"Classify: {n}", f"Classify: {n}", ("x",), "") for n in range(2_000)]
    assert PromptTemplate.of_views(views) == ("Classify:", "")
    assert PromptTemplate.of_views([*views, View("b:1", "", "Else", "Else", ("x",), "")]) == ("Classify:", "")
    assert PromptTemplate.of_views([View("b:1", "", "Else", "Else", ("x",), ""), *views]) == NO_TEMPLATE
    assert PromptTemplate.of_views(views[:9]) == NO_TEMPLATE  # nine rows may begin alike
