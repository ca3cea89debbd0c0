"""Answers in parts: read back from what templates write, by marks that are read off the templates."""

import pytest

from sft_jax.data.conversations import Message, ToolCall
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.rendering.answers import Answer, answer_format, same_calls, same_json
from tests.data.rendering.chat_formats import FORMATS

ASK = Message("user", "Weather in Rome?")
ROME = ToolCall("weather", {"city": "Rome", "days": [1, 2.5], "deep": {"a": None}}, "abcdefghi")
OSLO = ToolCall("weather", {"city": 'Os"lo\n'}, "abcdefghj")
# Their templates write calls that do not tell text from other values, or in a syntax of their own.
UNREAD = ("Gemma 4", "Gemma 4 31B", "Gemma 4 first", "Qwen 3.5", "Qwen 3.6", "GLM 4.5", "GLM 4.7")
WITH_CALLS = [name for name, chat_format in FORMATS.items() if chat_format.call and name not in UNREAD]
ONE_CALL_ONLY = ("Llama 3.1", "gpt-oss")


def read_back(renderer, message):
    text = renderer.answer_text((ASK, message))
    return renderer.read_answer(text, may_call=bool(message.tool_calls))


@pytest.mark.parametrize("name", FORMATS)
def test_contents_are_read_back(name):
    renderer = ConversationRenderer(FORMATS[name].tokenizer())
    assert read_back(renderer, Message("assistant", "It is <b>warm</b>.\n\nVery.")) == Answer(
        content="It is <b>warm</b>.\n\nVery."
    )


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        (name, calls)
        for name in WITH_CALLS
        for calls in ((ROME,), (OSLO,), (ROME, OSLO))
        if not (name in ONE_CALL_ONLY and len(calls) > 1)
    ],
)
def test_calls_are_read_back(name, calls):
    found = read_back(ConversationRenderer(FORMATS[name].tokenizer()), Message("assistant", "", tool_calls=calls))
    assert same_calls(found.calls, calls)
    assert (found.thinking, found.content) == ("", "")


@pytest.mark.parametrize("name", UNREAD)
def test_calls_that_cannot_be_read_back_stay_text(name):
    """As they are written, to be compared as text."""
    renderer = ConversationRenderer(FORMATS[name].tokenizer())
    call = ToolCall("weather", {"city": "Rome"}, "abcdefghi")
    found = read_back(renderer, Message("assistant", "", tool_calls=(call,)))
    assert found.calls == ()
    assert "weather" in found.content
    assert found.content in renderer.answer_text((ASK, Message("assistant", "", tool_calls=(call,))))


@pytest.mark.parametrize("name", ["Qwen 2.5", "Qwen 3", "DeepSeek R1", "OLMo 3", "Ministral 3", "Granite 4"])
def test_a_content_before_calls_is_read_back(name):
    message = Message("assistant", "Let me look.", tool_calls=(ROME,))
    found = read_back(ConversationRenderer(FORMATS[name].tokenizer()), message)
    assert found.content == "Let me look."
    assert same_calls(found.calls, (ROME,))


@pytest.mark.parametrize(("reasoning", "content"), [("", "Oslo"), ("I know it.", "Oslo"), ("I know it.", "a</think>b")])
@pytest.mark.parametrize(
    "name", ["Qwen 3", "Ministral 3 Reasoning", "Qwen 3 Next Thinking", "Qwen 3.6", "GLM 4.5", "GLM 4.7"]
)
def test_thinking(name, reasoning, content):
    renderer = ConversationRenderer(FORMATS[name].tokenizer())
    assert read_back(renderer, Message("assistant", content, reasoning=reasoning)) == Answer(reasoning, content)


@pytest.mark.parametrize(
    ("name", "written", "expected"),
    [
        ("Qwen 3", "<think>\n\n</think>\n\n4", Answer("", "4")),
        ("Qwen 3", "<think>\nlong\n</think>\n\n", Answer("long", "")),
        ("Qwen 3", "<think>\nnever ends", Answer("never ends", "")),
        ("Qwen 3", "no thinking at all", Answer("", "no thinking at all")),
        ("Qwen 3", "", Answer()),
        ("Qwen 3", '<tool_call>{"arguments":{"a":1},"name":"f"}</tool_call>', Answer(calls=(ToolCall("f", {"a": 1}),))),
        ("Qwen 3", '<tool_call>\n{"name": "f", "argum', Answer(content='<tool_call>\n{"name": "f", "argum')),
        ("Qwen 3", "<tool_call>\n[1]\n</tool_call>", Answer(content="<tool_call>\n[1]\n</tool_call>")),
        ("DeepSeek R1", "<think>\nhm\n</think>\n\nfour", Answer("<think>\nhm", "four")),
        ("ChatML", "<think>x</think>4", Answer("", "<think>x</think>4")),
        ("OLMo 3 Think", "hm\n</think>\n\nfour", Answer("hm", "four")),
        ("OLMo 3 Think", "four", Answer("", "four")),
        ("Ministral 3 Reasoning", "[THINK]hm[/THINK]four", Answer("hm", "four")),
    ],
)
def test_what_models_write(name, written, expected):
    found = ConversationRenderer(FORMATS[name].tokenizer()).read_answer(written)
    assert found == expected


@pytest.mark.parametrize(
    ("name", "written", "calls"),
    [
        ("OLMo 3", "<function_calls>f(a=1, b=[true, null])\ng()</function_calls>", [{"a": 1, "b": [True, None]}, {}]),
        ("OLMo 3", '<function_calls>f( a = "x)" ,b=2 )</function_calls>', [{"a": "x)", "b": 2}]),
        ("OLMo 3", "<function_calls>f(a=x)</function_calls>", []),
        ("OLMo 3", "<function_calls>f(1)</function_calls>", []),
        ("OLMo 3", "<function_calls>f(a=1", []),
        ("Mistral Small 3", '[TOOL_CALLS]f[CALL_ID]x1y2z3a4b[ARGS]{"a": 1}', [{"a": 1}]),
        ("Mistral Small 3", '[TOOL_CALLS]f[CALL_ID][ARGS]{"a": 1}', []),
    ],
)
def test_calls_that_models_write(name, written, calls):
    """Arguments one by one, and ids that no template could know."""
    found = ConversationRenderer(FORMATS[name].tokenizer()).read_answer(written, may_call=True)
    assert [call.arguments for call in found.calls] == calls
    assert found.content == ("" if calls else written)


# As that of gpt-oss: thinking, content and calls are messages of their own, on channels.
CHANNELS = (
    "{% for m in messages %}{{ '<|start|>' + m.role }}{% if m.role == 'assistant' %}"
    "{% if m.thinking %}{{ '<|channel|>analysis<|message|>' + m.thinking + '<|end|><|start|>assistant' }}{% endif %}"
    "{% if m.tool_calls %}{{ ' to=functions.' + m.tool_calls[0].function.name }}"
    "{{ '<|channel|>commentary json<|message|>' + m.tool_calls[0].function.arguments | tojson + '<|call|>' }}"
    "{% else %}{{ '<|channel|>final<|message|>' + m.content + '<|return|>' }}{% endif %}"
    "{% else %}{{ '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)


@pytest.mark.parametrize("reasoning", ["", "hm"])
@pytest.mark.parametrize("calls", [(), (ROME,)], ids=["content", "call"])
def test_channels(byte_tokenizer, reasoning, calls):
    special = [f"<|{name}|>" for name in ("start", "end", "message", "channel", "call", "return")]
    tokenizer = byte_tokenizer(*special, eos="<|return|>", chat_template=CHANNELS)
    renderer = ConversationRenderer(tokenizer)
    message = Message("assistant", "" if calls else "four", reasoning=reasoning, tool_calls=calls)
    text = renderer.answer_text((ASK, message))
    assert ("<|return|>" in text, "<|call|>" in text) == (False, False)
    assert renderer.written_text(tokenizer(text, add_special_tokens=False).input_ids) == text
    found = renderer.read_answer(text, may_call=bool(calls))
    assert (found.thinking, found.content) == (reasoning, message.content)
    assert same_calls(found.calls, calls)


def test_an_object_is_a_call_only_where_there_is_something_to_call():
    """Llama 3.1 marks calls by nothing."""
    renderer, written = ConversationRenderer(FORMATS["Llama 3.1"].tokenizer()), '{"name": "f", "parameters": {}}'
    assert renderer.read_answer(written).content == written
    assert renderer.read_answer(written, may_call=True).calls == (ToolCall("f", {}),)
    assert renderer.read_answer(f"I call {written}", may_call=True).calls == ()


def test_special_tokens_around_calls_are_kept_and_others_are_not():
    tokenizer = FORMATS["Mistral Nemo"].tokenizer()
    renderer = ConversationRenderer(tokenizer)
    text = renderer.answer_text((ASK, Message("assistant", "", tool_calls=(ROME,))))
    ids = tokenizer(f"<|im_end|>{text}", add_special_tokens=False).input_ids
    assert renderer.written_text(ids) == text
    assert text.startswith("[TOOL_CALLS]")


def test_arguments_that_are_no_json_are_not_read():
    """As of templates that write parameters as tags: the type of a value is lost."""

    def write(message):
        tags = "".join(f"<p={k}>{v}</p>" for call in message.tool_calls for k, v in call.arguments.items())
        return message.content + "".join(f"<f={call.name}>" for call in message.tool_calls) + tags

    assert answer_format(write).calls is None


def test_a_template_that_refuses_everything_has_no_format():
    assert answer_format(lambda message: None).read(" text ") == Answer(content="text")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"a": 1, "b": [2]}, {"b": [2.0], "a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": "1"}, {"a": 1}, False),
        ({"a": None}, {}, False),
        ([1, 2], [2, 1], False),
    ],
)
def test_values_are_compared_as_json(one, other, expected):
    assert same_json(one, other) == expected
