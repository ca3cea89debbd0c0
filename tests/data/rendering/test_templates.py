"""Chat templates are programs of others: what they may do, and what is said when they do something else."""

import datetime
import pickle
import re

import pytest
import transformers
from tokenizers import processors

from sft_jax.data.conversations import Chat, Message, Segment, Segments, ToolCall
from sft_jax.data.rendering import ConversationRenderer, ExampleError, template_engine
from tests import clock
from tests.data.rendering.chat_formats import FORMATS

TURNS = (Message("user", "Hi"), Message("assistant", "Ho"))
LINE = "{{ m.role }}\n{{ m.content }}<|im_end|>\n"

RAISING = [  # (what the template does, template, the error)
    ("raises", "{{ raise_exception('Not so!') }}", "refuses the conversation: Not so!"),
    ("asks an unknown variable", "{{ nobody.content }}", "refuses the conversation: 'nobody' is undefined"),
    ("adds a number to text", "{{ 'a' + 1 }}", "refuses the conversation: can only concatenate str"),
    ("divides by zero", "{{ 1 / 0 }}", "refuses the conversation: division by zero"),
    ("leaves the sandbox", "{{ ''.__class__.__mro__ }}", "refuses the conversation"),
    ("changes its input", "{{ messages.append(1) }}", "refuses the conversation"),
    ("takes a long range", "{% for i in range(1000000) %}{% endfor %}", "Range too big"),
    (
        "loops for ever",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = j %}{% endfor %}{% endfor %}",
        "loops for too long: its loops take more than 1,000 iterations",
    ),
    ("calls itself for ever", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ("fills the memory", "{{ 'x' * 100000000000 }}", "makes more than a chat template needs"),
    ("fills the memory with a list", "{{ (100000000000 * [1]) | length }}", "makes more than a chat template needs"),
    ("takes a power", "{{ 9 ** 99999 }}", "makes more than a chat template needs"),
]


@pytest.mark.parametrize(("_", "template", "error"), RAISING, ids=[case[0] for case in RAISING])
def test_templates_that_fail(chatml_tokenizer, monkeypatch, _, template, error):
    monkeypatch.setattr(template_engine, "_MAX_ITERATIONS", 1000)
    renderer = ConversationRenderer(chatml_tokenizer, "{% for m in messages %}" + LINE + "{% endfor %}" + template)
    with pytest.raises(ExampleError, match=re.escape(error)):
        renderer.render(TURNS)


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{% for m in messages %}", "not valid Jinja"),
        ("{{ messages | no_such_filter }}", "not valid Jinja (line 1): No filter named 'no_such_filter'"),
        ("{% generation %}", "not valid Jinja"),
        ("{{ messages", "not valid Jinja"),
        ("a\u169bb", "the character U+169B, which is needed as a mark"),
        ("a\ue0d2b", "the character U+E0D2, which is needed as a mark"),
    ],
)
def test_what_no_template_is(chatml_tokenizer, template, error):
    with pytest.raises(ValueError, match=re.escape(error)):
        ConversationRenderer(chatml_tokenizer, template)


DATED = "{{ strftime_now('%d %b %Y %H:%M') }}\n{% for m in messages %}" + LINE + "{% endfor %}"


def test_a_renderer_writes_one_time_however_long_it_is_used(chatml_tokenizer, monkeypatch):
    """Also one sent to another process."""
    with monkeypatch.context() as patch:
        clock.tell(patch, (f"2026-01-{day:02d}" for day in range(1, 32)))
        renderer = ConversationRenderer(chatml_tokenizer, DATED)
        texts = [renderer.render(TURNS).text for _ in range(2)]
    texts.append(pickle.loads(pickle.dumps(renderer)).render(TURNS).text)
    assert [text.partition("\n")[0] for text in texts] == ["01 Jan 2026 00:00"] * 3


def test_a_time_that_is_given_is_written(chatml_tokenizer):
    renderer = ConversationRenderer(chatml_tokenizer, DATED, now=datetime.datetime(2024, 7, 26, 13, 5))
    assert renderer.render(TURNS).text.startswith("26 Jul 2024 13:05\n")


def test_text_that_is_no_template_shows_no_message(chatml_tokenizer):
    with pytest.raises(ExampleError, match="leaves out a message"):
        ConversationRenderer(chatml_tokenizer, "just some text").render(TURNS)


ALL_CALLS = "{% for c in m.tool_calls %}<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %}"
FIRST_CALL = "{% if m.tool_calls %}<{{ m.tool_calls[0].function.name }}>{% endif %}"


@pytest.mark.parametrize(("calls", "shown"), [("", 0), (FIRST_CALL, 1), (ALL_CALLS, 2)])
def test_calls_without_texts_are_not_lost_either(chatml_tokenizer, calls, shown):
    """Nor where the turn speaks of the tool, or two calls are of one."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}" + calls + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    renderer = ConversationRenderer(chatml_tokenizer, template)
    twice = tuple(ToolCall("now", {"zone": number}) for number in (1, 2))
    conversation = (TURNS[0], Message("assistant", "now now", tool_calls=twice))
    if shown == 2:
        assert renderer.render(conversation).text.count("<now {") == 2
        return
    with pytest.raises(ExampleError, match=rf"leaves out a message: message 1 .*: shows {shown} of 2 calls of now"):
        renderer.render(conversation)


PROMPT = "{% if add_generation_prompt %}assistant\n{% endif %}"


def test_words_that_a_template_replaces_are_not_lost(chatml_tokenizer, trained):
    turn = "{{ m.role }}\n{{ m.content.replace('<br>', ' ') }}<|im_end|>\n"
    template = "{% for m in messages %}" + turn + "{% endfor %}" + PROMPT
    renderer = ConversationRenderer(chatml_tokenizer, template)
    assert trained(renderer.render(TURNS)) == ["Ho<|im_end|>"]
    with pytest.raises(ExampleError, match="leaves out part of an answer: message 1: content"):
        renderer.render((TURNS[0], Message("assistant", "one<br>two")))


TAKEN = [  # (how the template knows a call, how it shows an argument, what that gives)
    ("m.content == '' and m.tool_calls", "c.arguments.a", "ARGUMENT"),
    ("m.content == '' and m.tool_calls", "'' + c.arguments", '{"a": "ARGUMENT"}'),
    ("m.content is none", "c.arguments.a", "ARGUMENT"),
    ("m.content is none", "'' + c.arguments", '{"a": "ARGUMENT"}'),
]


@pytest.mark.parametrize(("is_call", "argument", "shown"), TAKEN)
def test_calls_are_given_as_the_template_takes_them(chatml_tokenizer, trained, is_call, argument, shown):
    """No content as "" or as None (which DeepSeek V3 asks for), arguments as an object or as text."""
    calls = "{% for t in m.tool_calls %}{% set c = t.function %}{{ c.name }}: {{ ARGUMENT }}{% endfor %}"
    turn = "{{ m.role }}\n{% if CALL %}" + calls + "{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
    turn = turn.replace("CALL", is_call).replace("ARGUMENT", argument)
    renderer = ConversationRenderer(chatml_tokenizer, "{% for m in messages %}" + turn + "{% endfor %}" + PROMPT)
    call = Message("assistant", "", tool_calls=(ToolCall("f", {"a": "ARGUMENT"}),))
    example = renderer.render((TURNS[0], call, Message("tool", "RESULT"), TURNS[1]))
    assert trained(example) == [f"f: {shown}<|im_end|>", "Ho<|im_end|>"]


@pytest.mark.parametrize("mark", ["\u169b0\u169c", "\u169b\u169c", "\u169b"])
def test_contents_may_hold_marks(chatml_tokenizer, trained, mark):
    example = ConversationRenderer(chatml_tokenizer).render((TURNS[0], Message("assistant", f"a{mark}b")))
    assert trained(example) == [f"a{mark}b<|im_end|>"]


def test_contents_with_the_marks_of_generation_blocks_are_refused(chatml_tokenizer):
    template = "{% for m in messages %}{% generation %}" + LINE + "{% endgeneration %}{% endfor %}"
    renderer = ConversationRenderer(chatml_tokenizer, template)
    with pytest.raises(ExampleError, match=r"U\+E0D2"):
        renderer.render((TURNS[0], Message("assistant", "a\ue0d2b")))


def test_generation_blocks_in_macros(chatml_tokenizer, trained):
    """Where transformers' own mask is at the wrong place: it counts characters from the beginning of the macro."""
    template = (
        "{% macro say(m) %}{{ m.role }}\n{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n{% endmacro %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ say(m) }}{% else %}" + LINE + "{% endif %}{% endfor %}"
    )
    example = ConversationRenderer(chatml_tokenizer, template).render((*TURNS, *TURNS))
    assert trained(example) == ["Ho<|im_end|>", "Ho<|im_end|>"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        " ",
        "\n",
        "a\n",
        "\n a",
        " a ",
        '"quoted"',
        "back\\slash",
        "é漢",
        "</think>",
        "<think>\n\n</think>\n\n",
        "{{ x }}",
    ],
)
@pytest.mark.parametrize("name", FORMATS)
def test_contents_of_all_kinds_are_found(name, content):
    """Stripped, escaped, empty, or spelling what the template looks for: trained or refused, never misplaced."""
    tokenizer = FORMATS[name].tokenizer()
    renderer = ConversationRenderer(tokenizer)
    answer = FORMATS[name].spelling(Message("assistant", content))
    (found,) = renderer.render_many([Chat((Message("user", "QUESTION"), answer))])
    if isinstance(found, ExampleError):
        refused = "refuses the conversation: an answer says nothing" if name.startswith("Ministral") else "leaves out"
        assert name == "Qwen 3" or refused in str(found), found
        return
    example = found[0]
    prompt = renderer.render_prompt((Message("user", "QUESTION"),))
    assert example.tokens[: len(prompt)].tolist() == prompt.tolist()
    assert not example.weights[: len(prompt)].any()
    said = "".join(
        example.text[start:end] for (start, end), weight in zip(example.offsets, example.weights, strict=True) if weight
    )
    assert "QUESTION" not in said
    # Where the template itself writes tags of empty thoughts, those of a content are among them, without white space.
    writes_tags = name.startswith(("Qwen 3", "DeepSeek V3.1", "GLM"))
    shown = "".join(example.text.rpartition("QUESTION")[2].split()) if writes_tags else said
    content_shown = "".join(content.split()) if writes_tags else content.strip()
    assert content_shown in shown or len(content.encode()) > len(content)


BEGINNINGS = [  # (template begins with it, tokenizer puts it before, how often it stands there)
    (True, False, 1),
    (False, True, 1),
    (True, True, 1),
    (False, False, 0),
]


@pytest.mark.parametrize(("writes", "puts", "expected"), BEGINNINGS)
def test_the_beginning_of_the_sequence_stands_there_once(byte_tokenizer, writes, puts, expected):
    tokenizer = _beginning_tokenizer(byte_tokenizer, puts)
    begin = tokenizer.convert_tokens_to_ids("<s>")
    template = ("{{ bos_token }}" if writes else "") + "{% for m in messages %}" + LINE + "{% endfor %}"
    renderer = ConversationRenderer(tokenizer, template)
    example, prompt = renderer.render(TURNS), renderer.render_prompt(TURNS[:1])
    for tokens in (example.tokens, prompt):
        assert tokens.tolist().count(begin) == expected
        assert (tokens[0] == begin) == bool(expected)
    assert example.messages[0] == (-1 if expected else 0)
    if puts:  # and the plain tokenizer, left to itself, gives the same ids
        assert tokenizer(example.text.removeprefix("<s>"))["input_ids"] == example.tokens.tolist()


@pytest.mark.parametrize("spelt", [True, False])
@pytest.mark.parametrize("puts", [True, False])
def test_the_beginning_of_segments_stands_there_once(byte_tokenizer, puts, spelt):
    tokenizer = _beginning_tokenizer(byte_tokenizer, puts)
    renderer = ConversationRenderer(tokenizer, LINE)
    ((example,),) = renderer.render_many([Segments((Segment("<s>" * spelt + "ab", 1.0),))])
    begin = tokenizer.convert_tokens_to_ids("<s>")
    assert example.tokens.tolist().count(begin) == (puts or spelt)
    assert example.weights.tolist() == [0, 1, 1] if puts or spelt else [0, 1]


def _beginning_tokenizer(byte_tokenizer, puts):
    made = byte_tokenizer("<s>", "<|im_end|>", eos="<|im_end|>")
    backend = made.backend_tokenizer
    if puts:
        first = ("<s>", backend.token_to_id("<s>"))
        backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[first])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>")


# As multimodal models have them, written for this test.
_PARTS = "{% for p in m.content %}{{ p.text | trim if p.type == 'text' else '<image>' }}{% endfor %}"
IN_PARTS = {
    "parts alone": _PARTS,
    "strings too": "{% if m.content is string %}{{ m.content | trim }}{% else %}" + _PARTS + "{% endif %}",
    "strings of the system": "{% if m.role == 'system' %}{{ m.content[0].text | trim }}{% else %}"
    + _PARTS
    + "{% endif %}",
}


@pytest.mark.parametrize("name", IN_PARTS)
def test_contents_in_parts_are_the_same_text_to_the_template(chatml_tokenizer, name):
    """Rows have strings, or text parts that are read as strings; the text is that of parts in transformers."""
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n" + IN_PARTS[name] + "<|im_end|>\n{% endfor %}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    turns = [("system", "Be brief."), ("user", " What? "), ("assistant", "That </think> one."), ("user", "And?")]
    turns.append(("assistant", "This."))
    renderer = ConversationRenderer(chatml_tokenizer, template)
    example = renderer.render(tuple(Message(role, text) for role, text in turns))
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    assert example.text == chatml_tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    said = "".join(
        example.text[start:end] for (start, end), weight in zip(example.offsets, example.weights, strict=True) if weight
    )
    assert said == "That </think> one.<|im_end|>This.<|im_end|>"
    prompt = renderer.render_prompt(tuple(Message(role, text) for role, text in turns[:2]))
    assert example.tokens[: len(prompt)].tolist() == prompt.tolist()
