"""Chat templates that have names: each example takes the one that transformers takes."""

import pickle

import pytest

from sft_jax.data.conversations import Chat, Message, ToolCall
from sft_jax.data.rendering import ConversationRenderer, ExampleError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As Command R's: it takes no conversation without tools.
WITH_TOOLS = (
    "{% for tool in tools %}<tool>{{ tool | tojson }}</tool>{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}{{ '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NAMED = {"default": CHATML, "tool_use": WITH_TOOLS, "rag": "{{ no_template_at_all"}
TOOL = {"type": "function", "function": {"name": "opens", "description": "hours", "parameters": {}}}
ASK, SAY = Message("user", "When does it open?"), Message("assistant", "At eight.")
CALL = Message("assistant", "", tool_calls=(ToolCall("opens", {"shop": 7}),))
RESULT = Message("tool", "08:00")
WITHOUT, WITH = Chat((ASK, SAY)), Chat((ASK, CALL, RESULT, SAY), (TOOL,))


@pytest.fixture
def tokenizer(byte_tokenizer):
    return byte_tokenizer("<|im_start|>", "<|im_end|>", "<|end|>", chat_template=dict(NAMED))


def theirs(tokenizer, chat, **options):
    messages = [{"role": m.role, "content": m.content} for m in chat.messages]
    for message, fields in zip(chat.messages, messages, strict=True):
        if message.tool_calls:
            fields["tool_calls"] = [
                {"function": {"name": c.name, "arguments": c.arguments}} for c in message.tool_calls
            ]
    return tokenizer.apply_chat_template(messages, list(chat.tools) or None, tokenize=False, **options)


@pytest.mark.parametrize("chat", [WITHOUT, WITH], ids=["without tools", "with tools"])
def test_an_example_takes_the_template_that_transformers_takes(tokenizer, chat):
    renderer = ConversationRenderer(tokenizer)
    example = renderer.render(chat.messages, chat.tools)
    assert example.text == theirs(tokenizer, chat)
    assert ("<tool>" in example.text) == bool(chat.tools)
    prompt = renderer.render_prompt(chat.messages[:-1], chat.tools)
    expected = theirs(tokenizer, Chat(chat.messages[:-1], chat.tools), add_generation_prompt=True)
    assert tokenizer.decode(prompt) == expected


def test_masks_are_those_of_the_template_of_the_example(tokenizer, trained):
    renderer = ConversationRenderer(tokenizer)
    (plain,), (called,) = renderer.render_many([WITHOUT, WITH])
    assert trained(plain) == ["At eight.<|im_end|>"]
    call = '<call>{"name": "opens", "arguments": {"shop": 7}}</call><|end|>'
    assert trained(called) == [call, "At eight.<|end|>"]


def test_ends_of_turns_of_all_templates_stop(tokenizer):
    ids = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|end|>"])
    assert ConversationRenderer(tokenizer).stop_ids == tuple(sorted(ids))


def test_other_processes_get_all_of_them(tokenizer):
    renderer = pickle.loads(pickle.dumps(ConversationRenderer(tokenizer)))
    assert renderer.chat_template == NAMED
    assert renderer.render(WITH.messages, WITH.tools).text == theirs(tokenizer, WITH)


def test_a_template_of_the_users_own_is_for_all_examples(tokenizer):
    renderer = ConversationRenderer(tokenizer, WITH_TOOLS.replace("in tools", "in tools or []"))
    assert renderer.render(WITHOUT.messages).text.endswith("At eight.<|end|>\n")
    assert "<tool>" in renderer.render(WITH.messages, WITH.tools).text


def test_tools_alone_without_a_template_for_them(tokenizer):
    """As transformers: the default, which does not show them."""
    tokenizer.chat_template.pop("tool_use")
    assert "<tool>" not in theirs(tokenizer, Chat((ASK, SAY), (TOOL,)))
    (found,) = ConversationRenderer(tokenizer).render_many([Chat((ASK, SAY), (TOOL,))])
    assert found.reason == "the chat template does not show the definitions of tools"


def test_without_a_default(tokenizer):
    tokenizer.chat_template.pop("default")
    with pytest.raises(ValueError, match="multiple chat templates with no default"):
        theirs(tokenizer, WITHOUT)
    renderer = ConversationRenderer(tokenizer)
    found, (example,) = renderer.render_many([WITHOUT, WITH])
    assert isinstance(found, ExampleError)
    assert found.stops
    assert "none of its named templates is 'default'; give one as a file, --config.model.chat_template" in str(found)
    assert example.text == theirs(tokenizer, WITH)
    tokenizer.chat_template.pop("tool_use")
    with pytest.raises(ValueError, match=r"are named rag, and examples take 'default', or 'tool_use' with tools"):
        ConversationRenderer(tokenizer)
    given = ConversationRenderer(tokenizer, WITH_TOOLS.replace("in tools", "in tools or []"))  # as from a file
    assert [len(examples) for examples in given.render_many([WITHOUT, WITH])] == [1, 1]
