"""Every record format: what its rows become."""

import dataclasses
import json
import math

import pytest

from sft_jax.data.conversations import Chat, Labelled, Message, Preference, Segment, Segments, TokenExample, ToolCall
from sft_jax.data.formats import FORMATS, NoFormatError, detect_format
from sft_jax.data.reading import Reading, RecordError

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
HI, HO = Message("user", "Hi"), Message("assistant", "Ho")
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CALLED = Message("assistant", "", tool_calls=(ToolCall("weather", {"city": "Oslo"}, "1"),))


def says(content, **more):
    return {"messages": [USER, {"role": "assistant", "content": content, **more}]}


def said(content, **more):
    return Chat((HI, Message("assistant", content, **more)))


MESSAGES = [
    ({"messages": [USER, ANSWER], "label": 3}, Chat((HI, HO))),
    ({"messages": json.dumps([USER, ANSWER])}, Chat((HI, HO))),
    (
        {"messages": [{"role": role, "content": role} for role in ("user", "system", "user", "user", "developer")]},
        Chat(tuple(Message(role, role) for role in ("user", "system", "user", "user", "developer"))),
    ),
    (says("Ho", weight=0), said("Ho", weight=0.0)),
    (says("Ho", weight=0.25), said("Ho", weight=0.25)),
    (says("Ho", train=True), said("Ho", weight=1.0)),
    (says("Ho", train=False), said("Ho", weight=0.0)),
    (says("Ho", weight=None, refusal=None, annotations=[], tool_calls=[]), said("Ho")),
    (says("Ho", reasoning_content="Hm"), said("Ho", reasoning="Hm")),
    (says("Ho", thinking="Hm"), said("Ho", reasoning="Hm")),
    (says("Ho", reasoning="Hm", reasoning_content="Hm"), said("Ho", reasoning="Hm")),
    (says([{"type": "text", "text": "Ho"}, {"type": "text", "text": "!"}]), said("Ho!")),
    (
        says([{"type": "text", "text": "Well, ", "train": False}, {"text": "Ho"}, {"text": "!", "weight": 0.5}]),
        said("Well, Ho!", ranges=((0, 6, 0.0), (8, 9, 0.5))),
    ),
    (
        says(
            "I'm doing very well, thank you!",
            train_detail=[
                {"begin_offset": 9, "end_offset": 18, "train": True},
                {"begin_offset": 0, "end_offset": 8, "train": False},
                {"begin_offset": 19, "end_offset": 30, "train": False},
            ],
        ),
        said("I'm doing very well, thank you!", ranges=((0, 9, 0.0), (9, 19, 1.0), (19, 31, 0.0))),
    ),
    (says("Ho", function_call={"name": "f", "arguments": "{}"}), said("Ho", tool_calls=(ToolCall("f", {}),))),
]
TOOLS = [
    (tools, calls, content)
    for tools in ([WEATHER], WEATHER, json.dumps([WEATHER]), json.dumps(WEATHER))
    for calls in (
        CALL,
        CALL | {"function": CALL["function"] | {"arguments": '{"city": "Oslo"}'}},
        {"id": "1", "name": "weather", "arguments": {"city": "Oslo"}},
    )
    for content in ("", None)
]
MESSAGES += [
    (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": content, "tool_calls": [call]},
                {"role": "tool", "content": "rain", "name": "weather", "tool_call_id": "1"},
                ANSWER,
            ],
            "tools": tools,
        },
        Chat((HI, CALLED, Message("tool", "rain", name="weather", tool_call_id="1"), HO), (WEATHER,)),
    )
    for tools, call, content in TOOLS
]
MESSAGES += [({"messages": [USER, ANSWER], "tools": none}, Chat((HI, HO))) for none in (None, "", "null", "[]", [])]
MESSAGES += [  # a call that is spelt in the text may be answered too
    ({"messages": [USER, ANSWER, {"role": "tool", "content": "rain"}]}, Chat((HI, HO, Message("tool", "rain"))))
]
PAIRS = [
    ({"prompt": "Hi", "completion": "Ho"}, Chat((HI, HO))),
    (
        {"prompt": [{"role": "system", "content": "S"}, USER], "completion": "Ho"},
        Chat((Message("system", "S"), HI, HO)),
    ),
    ({"prompt": "Hi", "completion": [ANSWER]}, Chat((HI, HO))),
    ({"prompt": "", "completion": "\u2028 \x85"}, Chat((Message("user", ""), Message("assistant", "\u2028 \x85")))),
]
ALPACA = [
    ({"instruction": "Hi", "input": "", "output": "Ho"}, Chat((HI, HO))),
    ({"instruction": "Hi", "output": "Ho", "text": "### Instruction: Hi"}, Chat((HI, HO))),
    (
        {"instruction": "Add", "input": "1 2", "output": "3"},
        Chat((Message("user", "Add\n1 2"), Message("assistant", "3"))),
    ),
    (
        {"instruction": "C", "input": None, "output": "D", "system": "S", "history": [["A", "B"]]},
        Chat(
            tuple(
                Message(*turn)
                for turn in [("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D")]
            )
        ),
    ),
]
SHAREGPT = [
    (
        {
            "conversations": [
                {"from": "system", "value": "S"},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Ho"},
            ]
        },
        Chat((Message("system", "S"), HI, HO)),
    ),
    (
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
                {"from": "observation", "value": "rain"},
                {"from": "gpt", "value": "Ho", "weight": 0},
            ],
            "system": "S",
            "tools": json.dumps([WEATHER]),
        },
        Chat(
            (
                Message("system", "S"),
                HI,
                Message("assistant", "", tool_calls=(ToolCall("weather", {"city": "Oslo"}),)),
                Message("tool", "rain"),
                HO._replace(weight=0.0),
            ),
            (WEATHER,),
        ),
    ),
]
OTHERS = [
    ({"text": "Once"}, Segments((Segment("Once", 1.0),))),
    ({"text": "Once", "url": "x", "id": 3}, Segments((Segment("Once", 1.0),))),
    (
        {"segments": [{"text": "<s>Hi", "train": False}, {"text": "Ho", "label": True}, {"text": "!", "weight": 0.5}]},
        Segments((Segment("<s>Hi", 0.0), Segment("Ho", 1.0), Segment("!", 0.5))),
    ),
    ({"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, TokenExample([5, 6, 7], [0.0, 1.0, 1.0])),
    ({"tokens": [5, 6, 7], "weights": [0, 0.5, 2]}, TokenExample([5, 6, 7], [0.0, 0.5, 2.0])),
    ({"input_ids": [5, 6], "loss_mask": [False, True], "attention_mask": [1, 1]}, TokenExample([5, 6], [0.0, 1.0])),
    ({"input_ids": [5, 6], "labels": [-100, 6], "completion_mask": [0, 1]}, TokenExample([5, 6], [0.0, 1.0])),
    ({"input_ids": [5, 6, 7], "assistant_masks": [0, 1, 0]}, TokenExample([5, 6, 7], [0.0, 1.0, 0.0])),
    (  # TRL: a token is trained where both masks say so
        {"input_ids": [5, 6, 7, 8], "completion_mask": [0, 1, 1, 1], "assistant_masks": [1, 1, 0, 1]},
        TokenExample([5, 6, 7, 8], [0.0, 1.0, 0.0, 1.0]),
    ),
    (
        {"input_ids": [5, 6, 7], "labels": [-100, 6, -100], "loss_mask": [1, 1, 0], "completion_mask": [0, 1, 1]},
        TokenExample([5, 6, 7], [0.0, 1.0, 0.0]),
    ),
]
NO = {"role": "assistant", "content": "No"}
PREFERRED = Preference((HI,), (HO,), (Message("assistant", "No"),))
PREFERENCES = [
    {"prompt": "Hi", "chosen": "Ho", "rejected": "No"},
    {"prompt": [USER], "chosen": [ANSWER], "rejected": [NO]},
    {"chosen": [USER, ANSWER], "rejected": [USER, NO]},
    {"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, NO]},
    {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Ho"},
        "rejected": {"from": "gpt", "value": "No"},
    },
]
ROWS = [("messages", *case) for case in MESSAGES]
ROWS += [("prompt_completion", *case) for case in PAIRS]
ROWS += [("alpaca", *case) for case in ALPACA]
ROWS += [("sharegpt", *case) for case in SHAREGPT]
ROWS += [(name, *case) for name, case in zip(["text"] * 2 + ["segments"] + ["tokens"] * 7, OTHERS, strict=True)]
ROWS += [("preference", fields, PREFERRED) for fields in PREFERENCES]
JUDGED = Labelled((HI._replace(weight=0.0), HO), (), True)
EARLIER = tuple(turn._replace(weight=0.0) for turn in (HI, HO, HI))
ROWS += [
    ("labelled", {"prompt": "Hi", "completion": "Ho", "label": True}, JUDGED),
    ("labelled", {"prompt": "Hi", "completion": "Ho", "label": 1}, JUDGED),
    ("labelled", {"prompt": "Hi", "completion": "Ho", "label": "True"}, JUDGED),
    ("labelled", {"prompt": "Hi", "completion": "Ho", "label": 0.0}, dataclasses.replace(JUDGED, desirable=False)),
    ("labelled", {"prompt": [USER], "completion": [ANSWER], "label": False}, Labelled(JUDGED.messages, (), False)),
    (
        "labelled",
        {"prompt": [USER, ANSWER, USER], "completion": "Ho", "label": "0"},
        Labelled((*EARLIER, HO), (), False),
    ),
]


@pytest.mark.parametrize(("name", "fields", "expected"), ROWS)
def test_rows(name, fields, expected):
    """The format is found, and the row becomes this."""
    columns = {key for key, value in fields.items() if value is not None}
    assert detect_format(columns, "here", Reading()) == name
    assert FORMATS[name].parse(fields, "here", Reading()) == expected


SYSTEMLESS = [case for case in ROWS if case[0] in ("messages", "prompt_completion", "alpaca", "sharegpt", "preference")]
SYSTEMLESS = [case for case in SYSTEMLESS if "system" not in json.dumps(case[1]) and isinstance(case[1], dict)]


@pytest.mark.parametrize(
    ("labels", "mask", "number"),
    [([1, -100, 3, -100], [1, 1, 1, 1], 1), ([-100, 2, 3, 4], [0, 0, 1, 1], 1), ([1, 2, 3, 4], [1, 1, 1, 0], 3)],
)
def test_labels_and_a_mask_that_disagree(labels, mask, number):
    """TRL takes the labels and says nothing of the mask; here nobody guesses which of them is meant."""
    fields = {"input_ids": [1, 2, 3, 4], "labels": labels, "assistant_masks": mask}
    with pytest.raises(RecordError, match=f'"labels" and "assistant_masks" disagree at token {number}. Keep one'):
        FORMATS["tokens"].parse(fields, "here", Reading())


@pytest.mark.parametrize(("name", "fields", "expected"), SYSTEMLESS)
def test_a_column_of_the_system_message(name, fields, expected):
    """In every form of conversation it is the first message; it is never lost."""
    before = (Message("system", "S"),)
    turns = {"prompt": before + expected.prompt} if name == "preference" else {"messages": before + expected.messages}
    parse = FORMATS[name].parse
    assert parse(fields | {"system": "S"}, "here", Reading()) == dataclasses.replace(expected, **turns)
    assert parse(fields | {"system": ""}, "here", Reading()) == expected


def test_a_column_and_a_message_for_the_system():
    row = {"messages": [{"role": "system", "content": "S"}, USER, ANSWER], "system": "S"}
    assert FORMATS["messages"].parse(row, "here", Reading()) == Chat((Message("system", "S"), HI, HO))
    with pytest.raises(RecordError, match='has a column "system" and another system message'):
        FORMATS["messages"].parse(row | {"system": "T"}, "here", Reading())


@pytest.mark.parametrize(
    ("ignore", "message", "expected"),
    [
        ("reasoning_content", ANSWER | {"reasoning_content": "Hm"}, HO),
        ("weight", ANSWER | {"weight": 0.5}, HO),
        ("name", USER | {"name": "Ann"}, HI),
        ("tool_calls", USER | {"tool_calls": [CALL]}, HI),
        ("mood", ANSWER | {"content": [{"text": "Ho", "mood": "good"}]}, HO),
        ("name", {"role": "tool", "content": "rain", "name": "weather"}, Message("tool", "rain", name="weather")),
        (
            "mood",
            {"role": "assistant", "content": "", "tool_calls": [CALL | {"mood": "good"}]},
            CALLED,
        ),
        ("name", {"role": "assistant", "content": "", "tool_calls": [CALL]}, CALLED),
    ],
)
def test_keys_that_are_ignored_are_not_there(ignore, message, expected):
    row = {"messages": [USER, ANSWER, message]}
    found = FORMATS["messages"].parse(row, "here", Reading(ignore=(ignore,)))
    assert found.messages[-1] == expected


def test_answers_marked_as_not_wanted():
    """KTO's rows: a label that says whether the answer is wanted."""
    row = {"prompt": "Hi", "completion": "Ho"}
    parse = FORMATS["prompt_completion"].parse
    with pytest.raises(RecordError, match=r'"label" is false, .* would be imitated'):
        parse(row | {"label": False}, "here", Reading())
    for fields, reading in ((row | {"label": True}, Reading()), (row | {"label": False}, Reading(ignore=("label",)))):
        assert parse(fields, "here", reading) == Chat((HI, HO))


@pytest.mark.parametrize(("margin", "expected"), [(0.5, 0.5), (2, 2.0), (-1.0, -1.0), ("1.5", 1.5), (None, 0.0)])
def test_margins(margin, expected):
    row = {"prompt": "Hi", "chosen": "Ho", "rejected": "No", "margin": margin}
    assert FORMATS["preference"].parse(row, "here", Reading()) == dataclasses.replace(PREFERRED, margin=expected)


@pytest.mark.parametrize("margin", ["much", True, math.inf, math.nan, [1], {"a": 1}])
def test_margins_that_are_none(margin):
    row = {"prompt": "Hi", "chosen": "Ho", "rejected": "No", "margin": margin}
    with pytest.raises(RecordError, match=r'here: "margin": expected a number'):
        FORMATS["preference"].parse(row, "here", Reading())
    assert FORMATS["preference"].parse(row, "here", Reading(ignore=("margin",))) == PREFERRED


@pytest.mark.parametrize("label", ["yes", 2, -1, [True], {"a": 1}, 0.5, None])
def test_labels_that_say_nothing(label):
    row = {"prompt": "Hi", "completion": "Ho", "label": label}
    with pytest.raises(RecordError, match=r'here: "label"'):
        FORMATS["labelled"].parse(row, "here", Reading())
    ignoring = Reading(ignore=("label",))
    assert detect_format(row.keys() - {"label"} | ({"label"} if label else set()), "here", ignoring) == (
        "prompt_completion"
    )
    assert FORMATS["prompt_completion"].parse(row, "here", ignoring) == Chat((HI, HO))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"completion": [USER]},
            '"completion": expected an assistant\'s answer after the prompt, got a message of role',
        ),
        ({"completion": []}, '"completion"'),
        ({"completion": None}, '"completion" is missing'),
        ({"prompt": None}, '"prompt" is missing'),
        ({"history": [["a", "b"]]}, '"history" would be lost'),
    ],
)
def test_answers_with_labels_that_are_none(fields, message):
    row = {"prompt": "Hi", "completion": "Ho", "label": True}
    with pytest.raises(RecordError, match=message):
        FORMATS["labelled"].parse(row | fields, "here", Reading())


TABLES = [  # (prompt template, answer template, columns, question, answer)
    ("Which? {text}", "{label}", {"text": "Hi", "label": "greet"}, "Which? Hi", "greet"),
    ("{{{text}}}", '{{"a": {n}}}', {"text": "Hi", "n": 2}, "{Hi}", '{"a": 2}'),
    ("{a b}", "{slots}", {"a b": "é", "slots": {"city": "Malmö"}}, "é", '{"city": "Malmö"}'),
    ("{text}", "{slots|none}", {"text": "Hi", "slots": None}, "Hi", "none"),
    ("{text}{more|}", "{ok}", {"text": "Hi", "ok": True}, "Hi", "true"),
    ("{tools}", "{functions}", {"tools": "saw", "functions": "cuts", "system": "metric"}, "saw", "cuts"),
]


@pytest.mark.parametrize(("prompt", "answer", "fields", "question", "reply"), TABLES)
def test_tables(prompt, answer, fields, question, reply):
    reading = Reading(prompt_template=prompt, answer_template=answer)
    assert detect_format(fields.keys(), "here", reading) == "table"
    expected = Chat((Message("user", question), Message("assistant", reply)))
    assert FORMATS["table"].parse(fields, "here", reading) == expected


@pytest.mark.parametrize("fields", PREFERENCES)
def test_chosen_answers_to_be_imitated(fields):
    """The prompt and the chosen answer are one conversation."""
    reading = Reading(preference="chosen")
    assert FORMATS["preference"].parse(fields | {"system": "S"}, "here", reading) == Chat(
        (Message("system", "S"), HI, HO)
    )


def test_what_an_imitated_pair_keeps():
    """Its tools are its own; that the answers are equal does not matter; what is wrong with a pair is wrong still."""
    parse, reading = FORMATS["preference"].parse, Reading(preference="chosen")
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    row = {"prompt": [USER], "chosen": [called], "rejected": [NO], "tools": [WEATHER]}
    assert parse(row, "here", reading) == Chat((HI, CALLED), (WEATHER,))
    equal = {"prompt": "Hi", "chosen": "Ho", "rejected": "Ho"}
    assert parse(equal, "here", reading) == Chat((HI, HO))
    with pytest.raises(RecordError, match="there is no prompt"):
        parse({"chosen": "Ho", "rejected": "No"}, "here", reading)


@pytest.mark.parametrize(("end", "ends"), [("", None), ("none", False), ("eos", True)])
def test_ends_of_texts(end, ends):
    for fields in ({"text": "a"}, {"segments": [{"text": "a", "train": True}]}):
        assert FORMATS[next(iter(fields))].parse(fields, "here", Reading(text_end=end)).ends is ends


UNDETECTED = [  # (columns, words of the error)
    ({"messages", "prompt", "completion"}, "fit messages and prompt_completion.*=messages or .*=prompt_completion"),
    ({"messages", "prompt", "chosen", "rejected"}, "fit messages and preference"),
    ({"instruction", "output", "messages"}, "fit messages and alpaca"),
    ({"text", "category"}, "no format fits the columns: 'category', 'text'"),
    ({"prompt"}, "no format fits the columns: 'prompt'. They are those of prompt_completion without its answer"),
    (set(), "no format fits the columns: none"),
]


@pytest.mark.parametrize(("columns", "words"), UNDETECTED)
def test_what_fits_no_format_or_several_is_refused(columns, words):
    with pytest.raises(RecordError, match=words):
        detect_format(columns, "train.jsonl:1", Reading())
    for name in FORMATS:
        assert detect_format(columns, "train.jsonl:1", Reading(format=name)) == name


NULLS = [  # (columns with a value, columns that are null, what the error says)
    ({"input", "output"}, {"instruction"}, '\'instruction\' is null. Expected {"instruction": ..., "input"'),
    ({"output"}, {"instruction", "input"}, "'instruction' is null. Expected"),
    (set(), {"prompt", "completion"}, "'completion' and 'prompt' are null. Expected"),
    ({"id"}, {"messages"}, "'messages' is null. Expected"),
    ({"text", "label"}, {"id"}, "no format fits the columns: 'label', 'text'"),
]


@pytest.mark.parametrize(("columns", "null", "words"), NULLS)
def test_a_column_that_is_null_is_what_is_wrong(columns, null, words):
    with pytest.raises(NoFormatError, match=words):
        detect_format(columns, "train.jsonl:1", Reading(), null)
