"""What generation sees and the template leaves out of a conversation: trained as it is generated, token by token."""

import pytest

from sft_jax.data.conversations import Chat, Message
from sft_jax.data.rendering import ConversationRenderer, ExampleError
from sft_jax.data.rendering.masking import Masking
from sft_jax.data.rendering.prompt_endings import closing_tag, is_whole_thought, parting
from tests.command_line import flags_in
from tests.data.rendering.chat_formats import FORMATS
from tests.data.rendering.test_chat_formats import (
    AGAIN,
    ASK,
    CALL,
    CASES,
    EXPAND,
    NOW,
    ONE,
    RESULT,
    TOOL,
    TWO,
    call_of,
    spelt,
    trained_text,
)

REASONED = ONE._replace(reasoning="REASON")
EMPTY = "<|channel>thought\n<channel|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"  # of gpt-oss, behind a thought


def answers_of(example):
    """The messages of an example with trained tokens, and where each begins to be trained."""
    begins = {}
    for at, (message, weight) in enumerate(zip(example.messages.tolist(), example.weights.tolist(), strict=True)):
        if weight and example.roles[message] == "assistant":
            begins.setdefault(message, at)
    return begins


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", FORMATS)
def test_every_answer_is_trained_behind_its_generation_prompt(name, case):
    """Of each format: the tokens before an answer are those that it is generated behind."""
    chat = spelt(FORMATS[name], CASES[case])
    renderer = ConversationRenderer(FORMATS[name].tokenizer(), masking=EXPAND, now=NOW)
    (examples,) = renderer.render_many([chat])
    if isinstance(examples, ExampleError):
        assert case in FORMATS[name].refuses
        return
    answers = [number for number, message in enumerate(chat.messages) if message.role == "assistant"]
    assert sorted(number for example in examples for number in answers_of(example)) == answers
    for example in examples:
        for number, begin in answers_of(example).items():
            if chat.messages[number - 1].role == "assistant":
                continue  # nobody is asked for it
            prompt = renderer.render_prompt(chat.messages[:number], chat.tools)
            assert begin == len(prompt)
            assert example.tokens[:begin].tolist() == prompt.tolist()


@pytest.mark.parametrize("name", ["Gemma 4 31B", "Gemma 4 first"])
def test_an_empty_thought_of_prompts_stands_before_the_last_answer(name):
    """And before no other, as generation shows it; it is read and not learnt."""
    renderer = ConversationRenderer(FORMATS[name].tokenizer(), masking=EXPAND)
    ((single,),) = renderer.render_many([Chat((ASK, ONE))])
    header = f"<bos><|turn>user\nUSERONE<turn|>\n<|turn>model\n{EMPTY}"
    assert single.text == f"{header}ASSISTONE<turn|>\n"
    assert trained_text(single) == "ASSISTONE<turn|>"
    ((first, second),) = renderer.render_many([Chat((ASK, ONE, AGAIN, TWO))])
    assert first.text == single.text
    assert second.text == (
        "<bos><|turn>user\nUSERONE<turn|>\n<|turn>model\nASSISTONE<turn|>\n"
        f"<|turn>user\nUSERTWO<turn|>\n<|turn>model\n{EMPTY}ASSISTTWO<turn|>\n"
    )
    assert renderer.answer_text((ASK, ONE)) == "ASSISTONE"


def test_where_it_takes_no_example_of_its_own():
    tokenizer = FORMATS["Gemma 4 31B"].tokenizer()
    example = ConversationRenderer(tokenizer, masking=Masking(train_on="last")).render((ASK, ONE, AGAIN, TWO))
    assert trained_text(example) == "ASSISTTWO<turn|>"
    assert example.text.count(EMPTY) == 1
    everything = ConversationRenderer(tokenizer, masking=Masking(train_on="all")).render((ASK, ONE, AGAIN, TWO))
    assert everything.text == example.text
    assert everything.weights[1:].all()
    with pytest.raises(ExampleError, match="another history at inference"):
        ConversationRenderer(tokenizer).render((ASK, ONE, AGAIN, TWO))


def test_behind_the_result_of_a_call_the_turn_goes_on():
    """Gemma 4: the model ends its calls with <|tool_response>, and goes on behind the result without a header."""
    chat_format = FORMATS["Gemma 4 31B"]
    renderer = ConversationRenderer(chat_format.tokenizer(), masking=EXPAND)
    ((call, answer),) = renderer.render_many([Chat((ASK, call_of(chat_format), RESULT, TWO), (TOOL,))])
    assert call.text.endswith(f'{EMPTY}<|tool_call>call:f{{city:<|"|>ARGUMENT<|"|>,n:2}}<tool_call|><|tool_response>')
    assert answer.text.endswith('<|tool_response>response:f{value:<|"|>RESULT<|"|>}<tool_response|>ASSISTTWO<turn|>\n')
    assert EMPTY not in answer.text


@pytest.mark.parametrize(
    ("name", "line", "trained"),
    [
        ("GLM 4.7", "", "</think>ASSISTONE<|user|>"),
        ("GLM 4.7", "{%- set enable_thinking = false %}", "ASSISTONE<|user|>"),
        ("DeepSeek V3.1", "", "ASSISTONE<｜end▁of▁sentence｜>"),
        ("DeepSeek V3.1", "{%- set thinking = true %}", "</think>ASSISTONE<｜end▁of▁sentence｜>"),
        ("GLM 4.5", "{%- set enable_thinking = false %}", "\nASSISTONE<|user|>"),
        ("Qwen 3.5", "{%- set enable_thinking = true %}", "\n</think>\n\nASSISTONE<|im_end|>"),
        ("Qwen 3.6", "{%- set enable_thinking = false %}", "ASSISTONE<|im_end|>"),
        ("Gemma 4 31B", "{%- set enable_thinking = true %}", "ASSISTONE<turn|>"),
    ],
)
def test_thinking_by_a_variable(name, line, trained):
    """Where prompts open a thought, an answer without one closes it; where they close it, it is the prompt's."""
    renderer = ConversationRenderer(FORMATS[name].tokenizer(), line + FORMATS[name].template)
    example = renderer.render((ASK, ONE))
    prompt = renderer.render_prompt((ASK,))
    assert trained_text(example) == trained
    assert example.tokens[: len(prompt)].tolist() == prompt.tolist()


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("GLM 4.7", "REASON</think>ASSISTONE<|user|>"),
        ("GLM 4.5", "\n<think>REASON</think>\nASSISTONE<|user|>"),
        ("Qwen 3.6", "REASON\n</think>\n\nASSISTONE<|im_end|>"),
        ("Qwen 3 Next Thinking", "REASON\n</think>\n\nASSISTONE<|im_end|>"),
        ("gpt-oss", "<|channel|>analysis<|message|>REASON<|end|>" + FINAL + "ASSISTONE<|return|>"),
    ],
)
def test_thoughts(name, trained):
    """Each is trained once, behind the prompt that asks for it; later answers see earlier ones without."""
    renderer = ConversationRenderer(FORMATS[name].tokenizer(), masking=EXPAND)
    (examples,) = renderer.render_many([Chat((ASK, REASONED, AGAIN, REASONED))])
    assert [trained_text(example) for example in examples] == [trained] * 2
    assert [example.text.count("REASON") for example in examples] == [1, 1]


@pytest.mark.parametrize(
    ("name", "line", "advised"),
    [
        ("Qwen 3.5", "", "{%- set enable_thinking = true %}"),
        ("Qwen 3.6", "{%- set enable_thinking = false %}", ""),
        ("GLM 4.7", "{%- set enable_thinking = false %}", ""),
    ],
)
@pytest.mark.parametrize("messages", [(ASK, REASONED), (ASK, REASONED, AGAIN, TWO)], ids=["last", "earlier"])
def test_a_thought_behind_a_prompt_without_one_is_refused(name, line, advised, messages):
    """Nobody would be shown such a prompt and think: the reason names the ending, and a variable that changes it."""
    template = line + FORMATS[name].template
    renderer = ConversationRenderer(FORMATS[name].tokenizer(), template)
    (found,) = renderer.render_many([Chat(messages)])
    assert isinstance(found, ExampleError)
    assert "an answer does not begin with what prompts end with: the prompt for message 1 ends with '" in str(found)
    assert "</think>" in str(found)
    if not advised:
        assert str(found).endswith("change the row, or give another template")
        return
    assert f"put {advised} before the template" in str(found)
    assert flags_in(str(found)) == []
    (examples,) = ConversationRenderer(FORMATS[name].tokenizer(), advised + template, EXPAND).render_many(
        [Chat(messages)]
    )
    assert trained_text(examples[0]).startswith("REASON\n</think>")


def test_an_answer_without_a_thought_behind_a_result_that_opens_one():
    """A revision of Gemma 4 opens a thought behind results: the one prompt that such an answer cannot follow."""
    source = (
        "{%- set enable_thinking = true %}"
        + FORMATS["Gemma 4"].template
        + (
            "{%- if add_generation_prompt and at.behind == 'results' and thinks -%}{{ '<|channel>thought\\n' }}"
            "{%- endif -%}"
        )
    )
    renderer = ConversationRenderer(FORMATS["Gemma 4"].tokenizer(), source)
    with pytest.raises(ExampleError, match=r"the prompt for message 3 ends with '<\|channel>thought\\n', where"):
        renderer.render((ASK, call_of(FORMATS["Gemma 4"]), RESULT, TWO))
    assert trained_text(renderer.render((ASK, ONE))) == "ASSISTONE<turn|>"


def test_an_end_that_the_next_turn_brings():
    """GLM: <|user|> ends an answer, <|observation|> calls; the last one has it too, and it belongs to the answer."""
    chat_format = FORMATS["GLM 4.5"]
    tokenizer = chat_format.tokenizer()
    renderer = ConversationRenderer(tokenizer)
    example = renderer.render((ASK, ONE, AGAIN, call_of(chat_format)))
    assert trained_text(example).count("<|user|>") == 1
    assert example.text.endswith("</tool_call><|observation|>")
    ends = tokenizer.convert_tokens_to_ids(["<|user|>", "<|observation|>"])
    owners = [
        example.messages[at]
        for at, (token, weight) in enumerate(zip(example.tokens, example.weights, strict=True))
        if token in ends and weight
    ]
    assert owners == [1, 3]
    assert set(ends) < set(renderer.stop_ids)
    assert renderer.turn_headers[0] == "<|user|>"


@pytest.mark.parametrize("end_of_turn", ["none", "last", "all"])
def test_such_ends_follow_the_config(end_of_turn):
    renderer = ConversationRenderer(FORMATS["GLM 4.5"].tokenizer(), masking=Masking(end_of_turn=end_of_turn))
    trained = trained_text(renderer.render((ASK, ONE, AGAIN, TWO)))
    ends = {"none": (0, False), "last": (1, True), "all": (2, True)}[end_of_turn]
    assert (trained.count("<|user|>"), trained.endswith("<|user|>")) == ends


def test_an_answer_that_another_answer_follows_has_no_such_end():
    """Behind it stands <|assistant|>, which never ends one: an example for each, or a reason."""
    renderer = ConversationRenderer(FORMATS["GLM 4.5"].tokenizer())
    with pytest.raises(ExampleError, match=r"'<\|assistant\|>' follows message 1 because of what comes next"):
        renderer.render((ASK, ONE, TWO))
    (examples,) = ConversationRenderer(FORMATS["GLM 4.5"].tokenizer(), masking=EXPAND).render_many(
        [Chat((ASK, ONE, TWO))]
    )
    assert [trained_text(example).endswith("<|user|>") for example in examples] == [True, True]


def test_an_answer_of_gpt_oss_sees_the_thoughts_of_the_calls_before_it():
    """As its prompt shows them; the template itself takes them out once the answer stands there."""
    chat_format = FORMATS["gpt-oss"]
    renderer, call = ConversationRenderer(chat_format.tokenizer(), now=NOW), CALL._replace(reasoning="REASON")
    turns = (ASK, call, RESULT, call, RESULT, REASONED)
    example = renderer.render(turns, (TOOL,))
    thought = "<|channel|>analysis<|message|>REASON<|end|>"
    called = f"{thought}<|start|>assistant" + chat_format.call.format(arguments='{"city": "ARGUMENT", "n": 2}')
    assert trained_text(example) == f"{called}{called}{thought}{FINAL}ASSISTONE<|return|>"
    prompt = renderer.render_prompt(turns[:-1], (TOOL,))
    assert example.tokens[: len(prompt)].tolist() == prompt.tolist()
    assert [example.role(at) for at in (len(prompt) - 1, len(prompt))] == ["assistant"] * 2
    (examples,) = ConversationRenderer(chat_format.tokenizer(), masking=EXPAND, now=NOW).render_many(
        [Chat((*turns, AGAIN, call, RESULT, TWO), (TOOL,))]
    )
    assert [example.text.count("REASON") for example in examples] == [3, 1]


REFUSED = {
    "two calls at once": (
        (ASK, CALL._replace(tool_calls=CALL.tool_calls * 2), RESULT),
        "leaves out part of an answer: message 1: arguments",
    ),
    "words before a call": ((ASK, CALL._replace(content="SO"), RESULT, TWO), "leaves out a message: message 1"),
    "a later system message": ((ASK, ONE, Message("system", "SYSTEM"), AGAIN, TWO), "leaves out a message: message 2"),
    "channels in a content": (
        (ASK, ONE._replace(content="<|channel|>final<|message|>")),
        "refuses the conversation: A message holds tags of channels",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_gpt_oss_does_not_take(case):
    turns, words = REFUSED[case]
    (found,) = ConversationRenderer(FORMATS["gpt-oss"].tokenizer(), masking=EXPAND).render_many([Chat(turns, (TOOL,))])
    assert isinstance(found, ExampleError)
    assert words in str(found)


def test_an_end_that_stands_behind_thoughts_stops_no_answer():
    """As generation_config.json of gpt-oss: <|return|> and <|call|>; <|end|> ends an answer in a history alone."""
    tokenizer = FORMATS["gpt-oss"].tokenizer()
    renderer = ConversationRenderer(tokenizer)
    assert tokenizer.convert_ids_to_tokens(renderer.stop_ids) == ["<|call|>", "<|return|>"]
    assert renderer.read_answer(renderer.answer_text((ASK, REASONED))) == ("REASON", "ASSISTONE", ())
    called = CALL._replace(reasoning="REASON")
    thought, said, (call,) = renderer.read_answer(renderer.answer_text((ASK, called), (TOOL,)), (TOOL,))
    assert (thought, said, call.name, call.arguments) == ("REASON", "", "f", {"city": "ARGUMENT", "n": 2})


def test_one_call_of_deepseek_v3_has_no_end():
    """Its first template ends calls from the second on: one alone is refused, as the model would never stop."""
    chat = (ASK, call_of(FORMATS["DeepSeek R1"]), RESULT, TWO)
    with pytest.raises(ExampleError, match="no end-of-turn token after an answer"):
        ConversationRenderer(FORMATS["DeepSeek V3"].tokenizer()).render(chat)


def test_marked_answers_stay_as_the_template_marks_them():
    marked = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
        "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think></think>' }}"
        "{% endif %}"
    )
    renderer = ConversationRenderer(FORMATS["ChatML"].tokenizer(), marked)
    assert "<think>" not in renderer.render((ASK, ONE)).text
    assert trained_text(renderer.render((ASK, ONE, AGAIN, TWO))) == "ASSISTONE<|im_end|>ASSISTTWO<|im_end|>"


@pytest.mark.parametrize(
    ("ending", "is_thought"),
    [
        ("<think>\n\n</think>\n\n", True),
        ("[THINK][/THINK]", True),
        ("<think>", False),
        ("<think>\nsure</think>", False),
        ("<think></thought>", False),
        ("Answer: ", False),
        ("</think>", False),
    ],
)
def test_whole_thoughts(ending, is_thought):
    assert is_whole_thought(ending) == is_thought


def test_closing_tags():
    assert [closing_tag(text) for text in ("<think>\n", "[THINK]", "</think>", "<think></think>", "")] == [
        "</think>",
        "[/THINK]",
        "",
        "",
        "",
    ]


def test_a_prompt_parts_before_a_tag_or_a_special_token():
    assert parting("A:<think>", "A:</think>b", (), 11) == 2
    assert parting("A:<|channel>x", "A:<|tool_call>", [(2, 12)], 14) == 2
    assert parting("A:<think>", "A:<thin", (), 2) == 2
    assert parting("A: the end", "A: then", (), 7) == 6


def test_what_prompts_open_and_answers_spell_is_no_empty_thought():
    """OLMo 3 Think opens a thought that no template closes; a prompt in words of its own is not spelt for answers."""
    renderer = ConversationRenderer(FORMATS["OLMo 3 Think"].tokenizer())
    assert (renderer.template_for().opening, renderer.template_for().empty_thought) == ("<think>", "")
    template = FORMATS["ChatML"].template.replace("<|im_start|>assistant\\n", "<|im_start|>assistant\\nAnswer: ")
    with pytest.raises(ExampleError, match="message 1 is to begin with 'Answer: '"):
        ConversationRenderer(FORMATS["ChatML"].tokenizer(), template).render((ASK, Message("assistant", "yes")))
