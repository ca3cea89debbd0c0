"""What a chat template does, found by asking it: read off for the preview, and kept to where examples are made."""

import pytest

from sft_jax.data.conversations import Chat, Message
from sft_jax.data.rendering import ConversationRenderer, ExampleError
from sft_jax.data.rendering.masking import Masking
from sft_jax.data.rendering.properties import property_lines
from tests.data.rendering.chat_formats import FORMATS, IM_END
from tests.data.rendering.test_chat_formats import (
    AGAIN,
    ASK,
    CASES,
    EXPAND,
    NOW,
    ONE,
    TOOL,
    TWO,
    expected_text,
    theirs,
    trained_text,
)

SYSTEM = Message("system", "SYSTEM")
OWN, JOINED = "a turn of its own", "joined to the user's turn"
KEPT = "no place of its own; spelt in contents it is kept in earlier answers"
AS_WRITTEN = "stay as they were written"
WITH_TOOLS = "shown otherwise once others follow (with tools): data.masking.history=expand"
ALWAYS = "shown otherwise once others follow (always): data.masking.history=expand"
DEFAULT = f"{OWN}; where there is none the template writes 'You are a helpful assistant.'"

TAKEN_OUT = "shown; taken out of earlier answers"
CALLS_ALONE = "shown before calls alone; taken out of earlier answers"
UNREAD = "shown; not read in what the model writes"
THINKING = "shown otherwise once others follow (with thinking, with spelt thinking): data.masking.history=expand"

EMPTY = "<|channel>thought\n<channel|>"

PROPERTIES = {  # system message, thinking, tools, calls, earlier answers
    "ChatML": (OWN, KEPT, "not shown", "not shown", AS_WRITTEN),
    "Llama 2": (JOINED, KEPT, "not shown", "not shown", AS_WRITTEN),
    "Llama 3.1": (OWN, KEPT, "shown", "shown", AS_WRITTEN),
    "Mistral Nemo": ("not taken", KEPT, "shown", "shown", WITH_TOOLS),
    "Qwen 3": (OWN, "shown; taken out of earlier answers", "shown", "shown", ALWAYS),
    "Gemma 2": ("not taken", KEPT, "not shown", "not shown", AS_WRITTEN),
    "Gemma 3": (JOINED, KEPT, "not shown", "not shown", AS_WRITTEN),
    "Gemma 3 in parts": (JOINED, KEPT, "not shown", "not shown", AS_WRITTEN),
    "DeepSeek R1": (
        OWN,
        "no place of its own; spelt in contents it is taken out",
        "not shown",
        "shown",
        AS_WRITTEN,
    ),
    "OLMo 3": (f"{DEFAULT[:-1]} There are no functions to call.…'", KEPT, "shown", "shown", AS_WRITTEN),
    "OLMo 3 Think": (
        DEFAULT,
        "contents spell it, as prompts end with '<think>'; kept in earlier answers",
        "the field 'functions' of the system message, as JSON text",
        "not shown",
        ALWAYS,
    ),
    "Phi-3.5": (OWN, KEPT, "not shown", "not shown", AS_WRITTEN),
    "Phi-4-mini": (OWN, KEPT, "the field 'tools' of the system message, as JSON text", "not shown", AS_WRITTEN),
    "Phi-4-mini with calls": (OWN, KEPT, "shown", "shown", AS_WRITTEN),
    "Mistral Small 3": (f"{DEFAULT[:-1]} Today is 2024-02-03.'", KEPT, "shown", "shown", WITH_TOOLS),
    "Ministral 3": (DEFAULT, KEPT, "shown", "shown", AS_WRITTEN),
    "Ministral 3 Reasoning": (
        f"{DEFAULT[:-1]} Think first: [THINK]thoughts[/T…'",
        "a part of the content; kept in earlier answers",
        "shown",
        "shown",
        AS_WRITTEN,
    ),
    "Granite 3": (f"{DEFAULT[:-1]} Today is February 03, 2024.'", KEPT, "shown", "not shown", AS_WRITTEN),
    "Granite 4": (DEFAULT, KEPT, "shown", "shown", AS_WRITTEN),
    "Gemma 4": (OWN, CALLS_ALONE, "shown", UNREAD, AS_WRITTEN),
    "Gemma 4 31B": (OWN, CALLS_ALONE, "shown", UNREAD, ALWAYS),
    "Gemma 4 first": (OWN, KEPT, "shown", UNREAD, ALWAYS),
    "Qwen 3 Next Instruct": (OWN, KEPT, "shown", "shown", AS_WRITTEN),
    "Qwen 3 Next Thinking": (OWN, TAKEN_OUT, "shown", "shown", ALWAYS),
    "Qwen 3.5": (OWN, TAKEN_OUT, "shown", UNREAD, ALWAYS),
    "Qwen 3.6": (OWN, TAKEN_OUT, "shown", UNREAD, ALWAYS),
    "DeepSeek V3": (OWN, KEPT, "not shown", UNREAD, AS_WRITTEN),
    "DeepSeek V3.1": (
        OWN,
        "no place of its own; spelt in contents it is taken out",
        "not shown",
        "shown",
        AS_WRITTEN,
    ),
    "GLM 4.5": (OWN, TAKEN_OUT, "shown", UNREAD, THINKING),
    "GLM 4.7": (OWN, TAKEN_OUT, "shown", UNREAD, ALWAYS),
    "gpt-oss": (OWN, TAKEN_OUT, "shown", "shown", ALWAYS),
}
NOT_SHOWN = "; of it {!r} is not shown before answers: the last one is trained behind it"
GOES_ON = "; an answer without a thought goes on with {!r}"
PROMPTS = {  # what a generation prompt adds, and how the answer goes on behind it
    "ChatML": ("<|im_start|>assistant\n", ""),
    "Llama 2": ("", ""),
    "Qwen 3": ("<|im_start|>assistant\n", GOES_ON.format("<think>\n\n</think>\n\n")),
    "OLMo 3 Think": ("<|im_start|>assistant\n<think>", ""),
    "Gemma 4": ("<|turn>model\n", ""),
    "Gemma 4 31B": (f"<|turn>model\n{EMPTY}", NOT_SHOWN.format(EMPTY)),
    "Gemma 4 first": (f"<|turn>model\n{EMPTY}", NOT_SHOWN.format(EMPTY)),
    "Qwen 3 Next Instruct": ("<|im_start|>assistant\n", ""),
    "Qwen 3 Next Thinking": ("<|im_start|>assistant\n<think>\n", GOES_ON.format("\n</think>\n\n")),
    "Qwen 3.5": ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
    "Qwen 3.6": ("<|im_start|>assistant\n<think>\n", GOES_ON.format("\n</think>\n\n")),
    "DeepSeek V3": ("<｜Assistant｜>", ""),
    "DeepSeek V3.1": ("<｜Assistant｜></think>", ""),
    "GLM 4.5": ("<|assistant|>", GOES_ON.format("\n<think></think>\n")),
    "gpt-oss": ("<|start|>assistant", GOES_ON.format("<|channel|>final<|message|>")),
    "GLM 4.7": ("<|assistant|><think>", NOT_SHOWN.format("<think>") + GOES_ON.format("</think>")),
}


def properties_of(name, source=None):
    renderer = ConversationRenderer(FORMATS[name].tokenizer(), source, now=NOW)
    return renderer.template_properties()["default"]


@pytest.mark.parametrize("name", PROPERTIES)
def test_properties(name):
    found = properties_of(name)
    names = ("system message", "thinking", "tools", "calls", "earlier answers")
    assert tuple(found[what] for what in names) == PROPERTIES[name]
    next_turn = ", with which the next turn begins" if FORMATS[name].next_turn else ""
    assert found["end of turn"] == FORMATS[name].ending(FORMATS[name].native_end) + next_turn
    assert ("contents" in found) == (FORMATS[name].in_parts == "all")
    assert ("date" in found) == (name in ("Mistral Small 3", "Granite 3", "gpt-oss"))


@pytest.mark.parametrize("name", PROMPTS)
def test_what_a_generation_prompt_adds(name):
    added, behind = PROMPTS[name]
    assert properties_of(name)["generation prompt"] == (repr(added) if added else "adds nothing") + behind


def test_tokens_over_the_end_of_a_prompt_are_said():
    """Of two line ends in a row many tokenizers make one token: trained is what stands behind it."""
    tokenizer = FORMATS["Qwen 3.6"].tokenizer()
    tokenizer.add_tokens(["\n\n"])
    renderer = ConversationRenderer(tokenizer)
    found = renderer.template_properties()["default"]["generation prompt"]
    assert found.endswith(GOES_ON.format("\n</think>\n\n") + ", which tokens join with the end of the prompt")
    assert trained_text(renderer.render((ASK, ONE))) == "</think>\n\nASSISTONE<|im_end|>"
    off = ConversationRenderer(tokenizer, "{%- set enable_thinking = false %}" + FORMATS["Qwen 3.6"].template)
    example, prompt = off.render((ASK, ONE)), off.render_prompt((ASK,))
    assert trained_text(example) == "ASSISTONE<|im_end|>"
    assert example.tokens[: len(prompt)].tolist() == prompt.tolist()


def test_properties_of_named_templates_stand_apart():
    """In lines of a table, with the name of the template where there are several."""
    one, other = FORMATS["ChatML"].template, FORMATS["Qwen 2.5"].template
    renderer = ConversationRenderer(FORMATS["Qwen 2.5"].tokenizer(), {"default": one, "tool_use": other, "rag": one})
    lines = property_lines(renderer.template_properties())
    assert ("chat template 'default', tools", "not shown") in lines
    assert ("chat template 'tool_use', tools", "shown") in lines
    assert not any("rag" in name for name, _ in lines)
    (single,) = {name.split(",")[0] for name, _ in property_lines({"default": properties_of("ChatML")})}
    assert single == "chat template"


def test_a_template_that_gives_nothing_an_end():
    renderer = ConversationRenderer(
        FORMATS["ChatML"].tokenizer(), "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    found = renderer.template_properties()["default"]
    assert found["end of turn"] == "none"
    assert found["earlier answers"] == AS_WRITTEN


# Tools in a field of the system message


@pytest.mark.parametrize("name", ["Phi-4-mini", "OLMo 3 Think"])
def test_tools_in_the_system_message(name):
    """As in transformers, which is given the definitions in the message; without one there is no place for them."""
    chat_format = FORMATS[name]
    tokenizer, answer = chat_format.tokenizer(), chat_format.spelling(ONE)
    renderer = ConversationRenderer(tokenizer)
    chat = Chat((SYSTEM, ASK, answer), (TOOL,))
    example = renderer.render(chat.messages, chat.tools)
    assert example.text == theirs(tokenizer, chat, chat_format)
    assert example.text.index("SYSTEM") < example.text.index("TOOLTEXT") < example.text.index("USERONE")
    assert trained_text(example) == chat_format.answer.format("ASSISTONE", end=chat_format.ending("<|endoftext|>"))
    with pytest.raises(ExampleError, match=r"writes them in a system message: give the conversation one"):
        renderer.render(chat.messages[1:], chat.tools)


def test_special_tokens_in_such_tools_are_text():
    tokenizer = FORMATS["Phi-4-mini"].tokenizer()
    tool = {"type": "function", "function": {"name": "f", "description": '"<|end|>"'}}
    example = ConversationRenderer(tokenizer).render((SYSTEM, ASK, ONE), (tool,))
    assert example.tokens.tolist().count(tokenizer.convert_tokens_to_ids("<|end|>")) == 3
    assert r"\"<|end|>\"" in example.text


def test_a_template_without_any_place_for_tools_is_still_refused():
    with pytest.raises(ExampleError, match="take a template that writes `tools`"):
        ConversationRenderer(FORMATS["ChatML"].tokenizer()).render((SYSTEM, ASK, ONE), (TOOL,))


# Thinking


THOUGHTS = tuple(Message("assistant", f"<think>REASON {n}</think>ANSWER {n}") for n in (1, 2))


def test_thinking_that_prompts_open():
    """The prompt writes <think>, the model what follows; an answer that does not begin so is never written."""
    tokenizer = FORMATS["OLMo 3 Think"].tokenizer(IM_END)
    renderer = ConversationRenderer(tokenizer)
    turns = (ASK, THOUGHTS[0], AGAIN, THOUGHTS[1])
    example = renderer.render(turns)
    assert trained_text(example) == "REASON 1</think>ANSWER 1<|im_end|>REASON 2</think>ANSWER 2<|im_end|>"
    for number in (1, 3):
        prompt = renderer.render_prompt(turns[:number])
        assert example.tokens[: len(prompt)].tolist() == prompt.tolist()
        assert example.weights[len(prompt) - 1 : len(prompt) + 1].tolist() == [0, 1]
    with pytest.raises(ExampleError, match="message 1 is to begin with '<think>': spell its thought in the content"):
        renderer.render((ASK, ONE))
    with pytest.raises(ExampleError, match="leaves out part of an answer: message 1: reasoning"):
        renderer.render((ASK, THOUGHTS[0]._replace(reasoning="REASON")))


def test_a_thought_that_is_empty_is_left_out_behind_such_prompts():
    renderer = ConversationRenderer(
        FORMATS["OLMo 3 Think"].tokenizer(IM_END), masking=Masking(empty_thinking="leave_out")
    )
    turns = (ASK, Message("assistant", "<think>\n\n</think>ANSWER"), AGAIN, THOUGHTS[1])
    assert trained_text(renderer.render(turns)) == "ANSWER<|im_end|>REASON 2</think>ANSWER 2<|im_end|>"


def test_thinking_that_prompts_open_and_contents_lose():
    """As in later revisions of DeepSeek R1: no answer can be trained, and the preview says why."""
    source = FORMATS["DeepSeek R1"].template.replace(
        "elif add_generation_prompt %}\n    {{- '<｜Assistant｜>' }}",
        "elif add_generation_prompt %}\n    {{- '<｜Assistant｜><think>\\n' }}",
    )
    renderer = ConversationRenderer(FORMATS["DeepSeek R1"].tokenizer(), source)
    assert properties_of("DeepSeek R1", source)["thinking"] == (
        "contents spell it, as prompts end with '<think>\\n'; taken out again"
    )
    with pytest.raises(ExampleError, match="or give a template whose prompts open none"):
        renderer.render((ASK, ONE))
    with pytest.raises(ExampleError, match=r"the prompt for message 1 ends with '<think>\\n', where"):
        renderer.render((ASK, Message("assistant", "<think>\nREASON\n</think>\n\nANSWER")))


def test_a_special_token_that_prompts_open_with_cannot_be_spelt():
    """In a content it is text, and not the token that the prompt has."""
    tokenizer = FORMATS["OLMo 3 Think"].tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    with pytest.raises(ExampleError, match="mixes an answer with what others say"):
        ConversationRenderer(tokenizer).render((ASK, THOUGHTS[0]))


def test_such_prompts_leave_what_others_say_alone():
    """A question that spells what prompts end with stays in the question."""
    renderer = ConversationRenderer(FORMATS["OLMo 3 Think"].tokenizer())
    example = renderer.render((Message("user", "<think>What is <think>?"), THOUGHTS[0]))
    assert trained_text(example) == "REASON 1</think>ANSWER 1<|endoftext|>"
    assert "<|im_start|>user\n<think>What is <think>?<|im_end|>" in example.text


STRIPPING = FORMATS["OLMo 3 Think"].template.replace(
    "(message.content or '')",
    "(message.content.split('</think>')[-1] if message.role == 'assistant' and not loop.last else message.content)",
)


def test_a_revision_that_takes_spelt_thinking_out_of_earlier_answers():
    """Each answer is trained with its thoughts, after earlier ones without."""
    tokenizer = FORMATS["OLMo 3 Think"].tokenizer(IM_END)
    assert properties_of("OLMo 3 Think", STRIPPING)["thinking"].endswith("taken out of earlier answers")
    turns = (ASK, THOUGHTS[0], AGAIN, THOUGHTS[1])
    with pytest.raises(ExampleError, match="another history at inference"):
        ConversationRenderer(tokenizer, STRIPPING).render(turns)
    (examples,) = ConversationRenderer(tokenizer, STRIPPING, EXPAND).render_many([Chat(turns)])
    assert [trained_text(example) for example in examples] == [
        "REASON 1</think>ANSWER 1<|im_end|>",
        "REASON 2</think>ANSWER 2<|im_end|>",
    ]
    assert "<|im_start|>assistant\nANSWER 1<|im_end|>" in examples[1].text


def test_thinking_in_parts():
    """Every answer with its thoughts, and answers without; the text is transformers' with such parts."""
    chat_format = FORMATS["Ministral 3 Reasoning"]
    tokenizer = chat_format.tokenizer()
    call = CASES["tools"].messages[1]._replace(reasoning="REASON 2")
    chat = Chat((ASK, ONE._replace(reasoning="REASON 1"), AGAIN, call, CASES["tools"].messages[2], TWO), (TOOL,))
    example = ConversationRenderer(tokenizer).render(chat.messages, chat.tools)
    assert example.text == theirs(tokenizer, chat, chat_format)
    assert trained_text(example) == (
        "[THINK]REASON 1[/THINK]ASSISTONE</s>"
        '[THINK]REASON 2[/THINK][TOOL_CALLS]f[ARGS]{"city": "ARGUMENT", "n": 2}</s>ASSISTTWO</s>'
    )
    special = [tokenizer.convert_tokens_to_ids(token) for token in ("[THINK]", "[/THINK]")]
    assert [example.tokens.tolist().count(token) for token in special] == [3, 3]  # one pair is the system prompt's


def test_a_list_that_is_printed_is_no_place_for_thinking():
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    with pytest.raises(ExampleError, match="leaves out part of an answer: message 1: reasoning"):
        ConversationRenderer(FORMATS["ChatML"].tokenizer(), template, Masking(end_of_turn="none")).render(
            (ASK, ONE._replace(reasoning="REASON"))
        )


# Ends, system prompts and variables


@pytest.mark.parametrize("case", ["alternating", "system", "tools"])
def test_earlier_answers_that_end_otherwise(case):
    """An eos token of its own ends the last answer alone: an example for each answer, and both ends stop one."""
    chat_format, chat = FORMATS["OLMo 3"], CASES[case]
    tokenizer = chat_format.tokenizer("<|im_start|>")
    renderer = ConversationRenderer(tokenizer, masking=EXPAND)
    (examples,) = renderer.render_many([chat])
    assert len(examples) == 2
    assert "".join(map(trained_text, examples)) == expected_text(chat_format, chat, "<|im_start|>")
    assert renderer.turn_headers == ("<|im_start|>user", "<|im_start|>assistant")
    assert tokenizer.convert_ids_to_tokens(renderer.stop_ids) == ["<|im_start|>", IM_END]


def test_a_revision_without_a_system_prompt_of_its_own():
    default, none = "'You are a helpful assistant.'", "''"
    source = FORMATS["Ministral 3"].template.replace(default, none)
    assert properties_of("Ministral 3", source)["system message"] == OWN
    example = ConversationRenderer(FORMATS["Ministral 3"].tokenizer(), source).render((ASK, ONE))
    assert trained_text(example) == "ASSISTONE</s>"
    assert "helpful" not in example.text


VARIABLES = {
    "thinking": ("{%- set thinking = true %}", "<think>thoughts</think><response>answer</response>"),
    "documents": ("{%- set documents = [{'doc_id': 1, 'text': 'FACT'}] %}", "<|end_of_role|>\nFACT<|end_of_text|>"),
}


@pytest.mark.parametrize("name", VARIABLES)
def test_variables_of_granite_are_fixed_before_its_template(name):
    fixed, shown = VARIABLES[name]
    tokenizer = FORMATS["Granite 3"].tokenizer()
    example = ConversationRenderer(tokenizer, fixed + FORMATS["Granite 3"].template).render((ASK, ONE, AGAIN, TWO))
    assert shown in example.text
    assert trained_text(example) == "ASSISTONE<|end_of_text|>ASSISTTWO<|end_of_text|>"
    plain = ConversationRenderer(tokenizer).render((ASK, ONE, AGAIN, TWO))
    assert shown not in plain.text
