"""What is trained in the chat formats in use: every answer with its end-of-turn and nothing else, or a reason."""

import dataclasses
import datetime
import functools
import itertools
import json
import re

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils import chat_template_utils

from sft_jax.data.conversations import Chat, Message, ToolCall
from sft_jax.data.rendering import ConversationRenderer, ExampleError
from sft_jax.data.rendering.masking import Masking
from tests.command_line import SFT, config_of, flags_in
from tests.data.rendering.chat_formats import FORMATS, IM_END

ONE, TWO = Message("assistant", "ASSISTONE"), Message("assistant", "ASSISTTWO")
ASK, AGAIN = Message("user", "USERONE"), Message("user", "USERTWO")
TOOL = {"type": "function", "function": {"name": "f", "description": "TOOLTEXT", "parameters": {"type": "object"}}}
CALL = Message("assistant", "", tool_calls=(ToolCall("f", {"city": "ARGUMENT", "n": 2}, "call00001"),))
RESULT = Message("tool", "RESULT", name="f", tool_call_id="call00001")
CASES = {
    "alternating": Chat((ASK, ONE, AGAIN, TWO)),
    "consecutive": Chat((ASK, ONE, TWO, AGAIN)),
    "system": Chat((Message("system", "SYSTEM"), ASK, ONE, AGAIN, TWO)),
    "tools": Chat((ASK, CALL, RESULT, TWO), (TOOL,)),
}
EXPAND = Masking(history="expand")
NOW = datetime.datetime(2024, 2, 3)


def trained_text(example):
    """The text of the trained tokens."""
    characters = set()
    for (start, end), weight in zip(example.offsets.tolist(), example.weights.tolist(), strict=True):
        if weight:
            characters.update(range(start, end))
    return "".join(example.text[at] for at in sorted(characters))


def call_of(chat_format):
    """The call, with reasoning where the template shows it: Qwen 3 shows a call without reasoning in two ways."""
    return CALL._replace(reasoning="REASON") if "{reasoning}" in chat_format.call else CALL


def expected_text(chat_format, chat, eos):
    """What is to be trained, in the order of the conversation."""
    end = chat_format.ending(eos)
    pieces = []
    for message in chat.messages:
        if message.tool_calls:
            arguments = '{"city": "ARGUMENT", "n": 2}'
            pieces.append(chat_format.call.format(arguments=arguments, end=end, reasoning=message.reasoning))
        elif message.role == "assistant":
            pieces.append(chat_format.answer.format(message.content, end=end))
    return "".join(pieces)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("eos", ["", IM_END], ids=["native", "im_end"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_answer_with_its_end_and_nothing_else(name, eos, case):
    """open-instruct's sweep; and the text is transformers' rendering byte for byte, begun once."""
    chat_format, asked = FORMATS[name], CASES[case]
    chat = spelt(chat_format, asked)
    tokenizer = chat_format.tokenizer(eos)
    (examples,) = ConversationRenderer(tokenizer, masking=EXPAND, now=NOW).render_many([chat])
    if case in chat_format.refuses:
        assert isinstance(examples, ExampleError)
        assert chat_format.refuses[case] in str(examples)
        return
    assert not isinstance(examples, ExampleError), examples
    text = "".join(trained_text(example) for example in examples)
    assert text == expected_text(chat_format, asked, eos or chat_format.native_end)
    shown = dataclasses.replace(chat, messages=chat.messages[: examples[-1].messages.max() + 1])
    assert examples[-1].text == as_generated(chat_format, tokenizer, shown)
    assert examples[-1].tokens.tolist() == tokenizer(examples[-1].text, add_special_tokens=False)["input_ids"]


def as_generated(chat_format, tokenizer, chat):
    """The rendering of transformers; a last answer behind its prompt, and with the end that the next turn brings."""
    text = theirs(tokenizer, chat, chat_format)
    last = chat.messages[-1]
    if last.role == "assistant":
        asked = dataclasses.replace(chat, messages=chat.messages[:-1])
        prompt = theirs(tokenizer, asked, chat_format, add_generation_prompt=True)
        if chat_format.empty_thought and not text.startswith(prompt):
            assert prompt.endswith(chat_format.empty_thought)
            before = prompt.removesuffix(chat_format.empty_thought)
            assert text.startswith(before)
            text = prompt + text.removeprefix(before)
        text += "<|observation|>" if chat_format.next_turn and last.tool_calls else chat_format.next_turn
    return with_beginning(chat_format, text)


def spelt(chat_format, chat):
    """The conversation with answers that begin as the prompts of the format end."""
    return dataclasses.replace(chat, messages=tuple(map(chat_format.spelling, chat.messages)))


def theirs(tokenizer, chat, chat_format, **options):
    """The rendering of transformers, of the day `NOW`."""
    tools = [dict(tool) for tool in chat.tools] or None
    messages = fields(chat, chat_format)
    if chat_format.tools_field and tools and messages[0]["role"] == "system":
        messages[0][chat_format.tools_field] = json.dumps(tools)
    source = re.sub(r"strftime_now\('(.*?)'\)", lambda call: repr(NOW.strftime(call[1])), tokenizer.chat_template)
    if chat_format.no_content:  # which transformers takes out, and the template asks for
        compiled = chat_template_utils._compile_jinja_template(source)
        beginning = tokenizer.special_tokens_map["bos_token"]
        return compiled.render(messages=messages, tools=tools, bos_token=beginning, **options)
    return tokenizer.apply_chat_template(messages, tools=tools, chat_template=source, tokenize=False, **options)


def fields(chat, chat_format):
    """Messages as a data set has them, contents and the arguments of calls as the template takes them."""
    arguments = json.dumps if chat_format.text_arguments else dict
    messages = []
    for message in chat.messages:
        found = {"role": message.role, "content": message.content}
        if message.reasoning:
            found |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
        if chat_format.in_parts == "all" or (chat_format.in_parts == "thinking" and message.reasoning):
            thought = [{"type": "thinking", "thinking": message.reasoning}] if message.reasoning else []
            said = [{"type": "text", "text": message.content}] if message.content else []
            found["content"] = thought + said
        if message.tool_calls:
            found["content"] = found["content"] or (None if chat_format.no_content else found["content"])
            found["tool_calls"] = [
                {
                    "type": "function",
                    "id": call.id,
                    "function": {"name": call.name, "arguments": arguments(call.arguments)},
                }
                for call in message.tool_calls
            ]
        if message.role == "tool":
            found |= {"name": message.name, "tool_call_id": message.tool_call_id}
        messages.append(found)
    return messages


def with_beginning(chat_format, text):
    """The text begins with what the tokenizer begins sequences with."""
    first = chat_format.special[0]
    return text if not chat_format.begins or text.startswith(first) else first + text


OTHERWISE = ("Qwen 3", "Qwen 3 Next Thinking", "Qwen 3.5", "Qwen 3.6", "Gemma 4 31B", "Gemma 4 first", "GLM 4.7")
REWRITTEN = dict.fromkeys(OTHERWISE, "another history at inference") | {
    "OLMo 3 Think": "no end-of-turn token after an answer",
    "gpt-oss": "no end-of-turn token after an answer",
}


@pytest.mark.parametrize("name", FORMATS)
def test_examples_are_refused_or_expanded_where_history_is_rewritten(name):
    """By default such examples are refused; and examples whose history is not rewritten are not expanded."""
    rewritten, chat = name in REWRITTEN, spelt(FORMATS[name], CASES["alternating"])
    tokenizer = FORMATS[name].tokenizer()
    (refused,) = ConversationRenderer(tokenizer).render_many([chat])
    (expanded,) = ConversationRenderer(tokenizer, masking=EXPAND).render_many([chat])
    assert isinstance(refused, ExampleError) == rewritten
    assert len(expanded) == (2 if rewritten else 1)
    if rewritten:
        assert REWRITTEN[name] in str(refused)
        (flag,) = flags_in(str(refused))
        assert config_of(f"--config={SFT}", flag).data.masking.history == EXPAND.history


def test_advice_names_no_flag_that_was_given():
    """Where an example of its own was tried, or would not do, it is not advised."""
    tokenizer = FORMATS["Qwen 3"].tokenizer()
    split = Chat((ASK, CALL, CALL, RESULT, TWO), (TOOL,))
    refused, expanded = (
        str(ConversationRenderer(tokenizer, masking=masking).render_many([split])[0]) for masking in (None, EXPAND)
    )
    assert "the model another history at inference than in training: message 1 is" in refused
    assert "the prompt for message 2 is not the beginning" in expanded
    assert expanded.endswith(
        "give a template that does not rewrite earlier turns, or mark the answers with {% generation %}"
    )
    assert refused.endswith(
        "give a template that does not rewrite earlier turns, or mark the answers with {% generation %}"
    )


BYTES = {  # conversation, options
    "user only": (Chat((ASK,)), {}),
    "generation prompt": (Chat((ASK,)), {"add_generation_prompt": True}),
    "final assistant": (Chat((ASK, ONE)), {}),
    "reasoning": (Chat((ASK, ONE._replace(reasoning="REASON"))), {}),
    "think tags": (Chat((ASK, ONE._replace(content="<think>\nREASON\n</think>\n\nASSISTONE"))), {}),
    "tool calls": (Chat((ASK, CALL, RESULT, TWO)), {}),
    "tools": (Chat((ASK, CALL, RESULT, TWO), (TOOL,)), {}),
    "tools and system": (Chat((Message("system", "SYSTEM"), ASK, CALL, RESULT, TWO), (TOOL,)), {}),
}


@pytest.mark.parametrize("case", BYTES)
@pytest.mark.parametrize("name", FORMATS)
def test_text_is_transformers_byte_for_byte(name, case):
    """TRL's table of what a training template must render as the original does."""
    chat_format, (chat, options) = FORMATS[name], BYTES[case]
    tokenizer = chat_format.tokenizer()
    template = ConversationRenderer(tokenizer, now=NOW).template_for(chat.tools)
    ours = theirs_or_refusal(lambda: template.render(chat.messages, chat.tools, generation_prompt=bool(options)))
    reference = theirs_or_refusal(lambda: with_beginning(chat_format, theirs(tokenizer, chat, chat_format, **options)))
    assert ours == reference


def theirs_or_refusal(render):
    try:
        return render()
    except (jinja2.TemplateError, ExampleError, TypeError) as error:
        return str(error).removeprefix("the chat template refuses the conversation: ")


REASONED = Message("assistant", "ANSWER", reasoning="REASON")


@pytest.mark.parametrize(
    "message", [REASONED, Message("assistant", "<think>\nREASON\n</think>\n\nANSWER")], ids=["field", "tags"]
)
def test_reasoning_is_trained_once_where_the_model_sees_it(message):
    """Qwen 3: reasoning of earlier turns is removed; each turn is trained with its own, after what inference shows."""
    tokenizer = FORMATS["Qwen 3"].tokenizer()
    chat = Chat((ASK, message, AGAIN, message, ASK, message._replace(weight=0.0)))
    (examples,) = ConversationRenderer(tokenizer, masking=EXPAND).render_many([chat])
    assert [trained_text(example) for example in examples] == ["<think>\nREASON\n</think>\n\nANSWER<|im_end|>"] * 2
    assert examples[1].text == (
        "<|im_start|>user\nUSERONE<|im_end|>\n<|im_start|>assistant\nANSWER<|im_end|>\n"
        "<|im_start|>user\nUSERTWO<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nREASON\n</think>\n\nANSWER<|im_end|>\n"
    )


def test_turns_of_one_question_stay_in_one_example():
    """Qwen 3 keeps the reasoning of calls until the next question: two examples for three trained turns."""
    call = CALL._replace(reasoning="REASON")
    chat = Chat((ASK, call, RESULT, REASONED, AGAIN, REASONED), (TOOL,))
    (examples,) = ConversationRenderer(FORMATS["Qwen 3"].tokenizer(), masking=EXPAND).render_many([chat])
    assert [trained_text(example).count("<|im_end|>") for example in examples] == [2, 1]
    assert [
        sorted({example.role(token) for token in range(len(example.tokens)) if example.weights[token]})
        for example in examples
    ] == [
        ["assistant"],
        ["assistant"],
    ]


def test_tools_that_stand_before_the_last_question():
    """Mistral: the definitions move to each new question; an example for each of them."""
    (examples,) = ConversationRenderer(FORMATS["Mistral Nemo"].tokenizer(), masking=EXPAND).render_many(
        [Chat((ASK, ONE, AGAIN, CALL, RESULT, TWO), (TOOL,))]
    )
    assert [trained_text(example).count("</s>") for example in examples] == [1, 2]
    assert examples[0].text.startswith("<s>[AVAILABLE_TOOLS][")
    assert examples[1].text.startswith("<s>[INST]USERONE[/INST]ASSISTONE</s>[AVAILABLE_TOOLS][")


AGAIN_CALL = CALL._replace(tool_calls=(ToolCall("f", {}, "call00002"),))
UNPROVEN = [  # (why, format, conversation, words of the refusal)
    (
        "tools at both of two equal questions",
        "Mistral Nemo",
        Chat((ASK, ONE, ASK, TWO), (TOOL,)),
        "changes what a message",
    ),
    (
        "a second call without the header of the assistant",
        "DeepSeek R1",
        Chat((ASK, CALL, RESULT, AGAIN_CALL, RESULT._replace(tool_call_id="call00002"), TWO)),
        "another history at inference",
    ),
]


@pytest.mark.parametrize(("_", "name", "chat", "words"), UNPROVEN, ids=[case[0] for case in UNPROVEN])
def test_oddities_of_published_templates_are_refused(_, name, chat, words):
    """One asks which messages equal the last question, the other writes its header before the first call alone."""
    (found,) = ConversationRenderer(FORMATS[name].tokenizer(), masking=EXPAND).render_many([chat])
    assert isinstance(found, ExampleError)
    assert words in str(found)


def test_only_the_last_turn_needs_no_other_example():
    renderer = ConversationRenderer(FORMATS["Qwen 3"].tokenizer(), masking=Masking(train_on="last"))
    assert trained_text(renderer.render((ASK, REASONED, AGAIN, REASONED))).startswith("<think>\nREASON\n")


def test_reasoning_that_a_template_does_not_show_is_not_lost():
    with pytest.raises(ExampleError, match="leaves out part of an answer: message 1: reasoning"):
        ConversationRenderer(FORMATS["ChatML"].tokenizer()).render((ASK, REASONED))


TAGGED = ["<think>\nREASON\n</think>\n\nANSWER", "<think>\n\n</think>\n\nANSWER", "</think>"]


@pytest.mark.parametrize("said", TAGGED)
def test_reasoning_that_a_template_takes_out_of_an_answer_is_not_lost(said):
    """DeepSeek R1 shows what stands behind the last </think>: nobody could learn to think, or to leave it empty."""
    renderer = ConversationRenderer(FORMATS["DeepSeek R1"].tokenizer())
    with pytest.raises(ExampleError, match="leaves out part of an answer: message 1: content"):
        renderer.render((ASK, Message("assistant", said)))
    example = renderer.render((ASK, Message("assistant", said, weight=0.0), AGAIN, TWO))
    assert trained_text(example).startswith("ASSISTTWO")


def test_prompt_that_opens_reasoning_trains_behind_it():
    """enable_thinking=False, fixed at the beginning of the template: the empty reasoning is the prompt's."""
    tokenizer = FORMATS["Qwen 3"].tokenizer()
    renderer = ConversationRenderer(tokenizer, "{%- set enable_thinking = false %}" + FORMATS["Qwen 3"].template)
    assert trained_text(renderer.render((ASK, ONE))) == "ASSISTONE<|im_end|>"
    prompt = renderer.render_prompt((ASK,))
    assert tokenizer.decode(prompt) == theirs(
        tokenizer, Chat((ASK,)), FORMATS["Qwen 3"], add_generation_prompt=True, enable_thinking=False
    )


@pytest.mark.parametrize("name", [name for name, chat_format in FORMATS.items() if chat_format.call])
def test_calls_without_definitions_and_their_prompts(name):
    """Every step of a conversation with calls is trained after its own prompt."""
    chat_format = FORMATS[name]
    tokenizer = chat_format.tokenizer()
    renderer = ConversationRenderer(tokenizer, masking=EXPAND)
    chat = Chat((ASK, call_of(chat_format), RESULT, TWO))
    (examples,) = renderer.render_many([chat])
    text = "".join(trained_text(example) for example in examples)
    assert text == expected_text(chat_format, chat, chat_format.native_end)
    assert tokenizer.convert_tokens_to_ids(chat_format.ending(chat_format.native_end)) in renderer.stop_ids
    for example, number in zip((examples[0], examples[-1]), (1, 3), strict=True):
        prompt = renderer.render_prompt(chat.messages[:number])
        assert example.tokens[: len(prompt)].tolist() == prompt.tolist()
        assert example.weights[len(prompt)] == 1
        assert example.messages[len(prompt)] == number


@pytest.mark.parametrize("place", ["user", "tool", "argument", "definition"])
@pytest.mark.parametrize("name", [name for name, chat_format in FORMATS.items() if chat_format.call])
def test_special_tokens_are_text_wherever_they_are_spelt(name, place):
    """In a question, in a result, in an argument, in the description of a tool: the same tokens but for that text."""
    chat_format = FORMATS[name]
    tokenizer = chat_format.tokenizer()
    end = chat_format.ending(chat_format.native_end)
    examples = []
    for text in (end, "x" * len(end)):
        call = call_of(chat_format)._replace(
            tool_calls=(ToolCall("f", {"city": text if place == "argument" else "c"}, "call00001"),)
        )
        user, result = (word if place == at else "w" for at, word in (("user", text), ("tool", text)))
        tool = {"type": "function", "function": {"name": "f", "description": text if place == "definition" else "d"}}
        turns = (Message("user", user), call, RESULT._replace(content=result), TWO)
        tools = () if name.startswith("DeepSeek") else (tool,)
        (found,) = ConversationRenderer(tokenizer, masking=EXPAND).render_many([Chat(turns, tools)])
        examples.append(found[-1])
    special = tokenizer.convert_tokens_to_ids(list(chat_format.special))
    counts = [[example.tokens.tolist().count(token) for token in special] for example in examples]
    assert counts[0] == counts[1]
    assert examples[0].text.replace(end, "x" * len(end)) == examples[1].text.replace(end, "x" * len(end))


def test_names_that_spell_special_tokens_are_refused():
    renderer = ConversationRenderer(FORMATS["Qwen 2.5"].tokenizer())
    for call in (ToolCall(IM_END, {}), ToolCall("f", {IM_END: 1}), ToolCall("f", {}, IM_END)):
        with pytest.raises(ExampleError, match="a name, an id or a key spells a special token"):
            renderer.render((ASK, CALL._replace(tool_calls=(call,)), RESULT, TWO))


@pytest.mark.parametrize("arguments", [{"a": {1, 2}}, {"a": datetime.date(2024, 1, 1)}])
@pytest.mark.parametrize("name", ["Qwen 3", "DeepSeek R1"])
def test_arguments_that_are_not_json_are_refused(name, arguments):
    renderer = ConversationRenderer(FORMATS[name].tokenizer())
    call = CALL._replace(tool_calls=(ToolCall("f", arguments),), reasoning="REASON" if name == "Qwen 3" else "")
    with pytest.raises(ExampleError, match="not JSON"):
        renderer.render((ASK, call, RESULT, TWO))


@pytest.mark.parametrize("arguments", [{}, {"n": 1.5, "deep": [{"a": None}, True]}, {"q": 'a "b"\n\\é漢'}])
@pytest.mark.parametrize("content", ["", "Let me see."])
def test_arguments_of_all_kinds(arguments, content):
    call = Message("assistant", content, tool_calls=(ToolCall("f", arguments), ToolCall("f", {"x": "y"})))
    for name, reasoning in (("Qwen 2.5", ""), ("Qwen 3", "REASON")):
        turns = (ASK, call._replace(reasoning=reasoning), RESULT, RESULT, TWO)
        example = ConversationRenderer(FORMATS[name].tokenizer()).render(turns, (TOOL,))
        first, second = trained_text(example).split(IM_END)[:2]
        assert first.count("<tool_call>") == 2
        assert content in first
        assert "ASSISTTWO" in second
        assert "RESULT" not in first + second


def test_messages_of_tokens():
    """Every token has its message: text with marks of -1 is the template's own beginning alone."""
    example = ConversationRenderer(FORMATS["Llama 3.1"].tokenizer()).render(CASES["tools"].messages)
    texts = {
        number: "".join(example.text[slice(*offset)] for offset, _ in group)
        for number, group in itertools.groupby(
            zip(example.offsets.tolist(), example.messages.tolist(), strict=True), key=lambda pair: pair[1]
        )
    }
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert list(texts) == [-1, 0, 1, 2, 3]
    assert texts[0] == header.format("user") + "USERONE<|eot_id|>"
    assert texts[1].startswith(header.format("assistant"))
    assert texts[2] == header.format("ipython") + '"RESULT"<|eot_id|>'
    assert texts[3] == header.format("assistant") + "ASSISTTWO<|eot_id|>"


PIECES = ["a", " ", "\n", '"', "\\", "é", "<think>", "</think>", *(chat_format.end for chat_format in FORMATS.values())]
TEXT = st.lists(st.sampled_from(sorted(set(PIECES))), max_size=6).map("".join)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(question=TEXT, answer=TEXT, argument=TEXT, result=TEXT)
@pytest.mark.parametrize("name", [name for name, chat_format in FORMATS.items() if chat_format.call])
def test_any_text_comes_through_or_is_refused(name, question, answer, argument, result):
    """No text moves a boundary or makes a special token: as many of them as with harmless texts of the same kind."""
    tokenizer, renderer = renderer_of(name)
    call = call_of(FORMATS[name])._replace(tool_calls=(ToolCall("f", {"q": argument}, "call00001"),))
    turns = (Message("user", question), call, RESULT._replace(content=result), Message("assistant", answer))
    harmless, found = renderer.render_many([Chat((ASK, call_of(FORMATS[name]), RESULT, TWO)), Chat(turns)])
    if isinstance(found, ExampleError):
        refusals = ["leaves out part of an answer", "leaves out a message", "another history"]
        refusals += ["begin with what prompts end with"]
        refusals += ["an answer says nothing"] if name.startswith("Ministral") else []
        assert any(words in str(found) for words in refusals), found
        return
    special = tokenizer.convert_tokens_to_ids([*FORMATS[name].special, IM_END])
    counts = [[example.tokens.tolist().count(token) for token in special] for example in (harmless[-1], found[-1])]
    assert counts[0] == counts[1]
    text = trained_text(found[-1])
    assert answer.strip() in text or "<think>" in answer or "</think>" in answer
    for example in found:
        roles = [example.role(token) for token in range(len(example.tokens))]
        assert not example.weights[[role in ("user", "tool") for role in roles]].any()


@functools.cache
def renderer_of(name):
    tokenizer = FORMATS[name].tokenizer()
    return tokenizer, ConversationRenderer(tokenizer, masking=EXPAND)
