"""Which orders of turns are taken, and who refuses others: the reading, the renderer, or the model's own template."""

import pytest

from sft_jax.data.formats import FORMATS as RECORDS
from sft_jax.data.reading import Reading, RecordError
from sft_jax.data.rendering import ConversationRenderer, ExampleError
from tests.data.rendering.chat_formats import FORMATS

SYSTEM, USER, ANSWER = ({"role": role, "content": role.upper()} for role in ("system", "user", "assistant"))
CALL = {"role": "assistant", "tool_calls": [{"id": "call00001", "function": {"name": "f", "arguments": {"n": 1}}}]}
RESULT = {"role": "tool", "content": "25", "tool_call_id": "call00001"}

ALTERNATE = "onversation roles must alternate"
ORDERS = [  # (torchtune's case, turns, {format: words of its refusal; None: taken})
    ("a question and its answer", [USER, ANSWER], {"ChatML": None, "Llama 2": None, "Gemma 2": None}),
    ("with a system message", [SYSTEM, USER, ANSWER], {"ChatML": None, "Llama 2": None, "Qwen 2.5": None}),
    ("an empty answer", [SYSTEM, USER, ANSWER | {"content": ""}], {"ChatML": None, "Qwen 2.5": None}),
    ("a call and its result", [SYSTEM, USER, CALL, RESULT, ANSWER], {"Llama 3.1": None, "Qwen 2.5": None}),
    # Where torchtune stops at any of these, models differ in what they were trained on: the template decides.
    ("two questions in a row", [USER, USER, ANSWER], {"ChatML": None, "Llama 2": ALTERNATE, "Mistral Nemo": ALTERNATE}),
    ("a late system message", [USER, SYSTEM, ANSWER], {"ChatML": None, "Llama 2": ALTERNATE, "Gemma 2": ALTERNATE}),
    # One message has no answer; nobody asked for the first answer, which no prompt leads to.
    (
        "one message",
        [USER],
        dict.fromkeys(("ChatML", "Gemma 2", "Qwen 2.5"), "nothing to train on: there is no assistant's turn"),
    ),
    ("the assistant begins", [ANSWER, USER], {"ChatML": "starts with the assistant", "Llama 2": ALTERNATE}),
    # The template takes it without the first answer: that is what it refuses.
    (
        "cut out of a longer conversation",
        [ANSWER, USER, ANSWER],
        dict.fromkeys(("ChatML", "Llama 2", "Mistral Nemo"), "starts with the assistant"),
    ),
    ("and otherwise out of order too", [ANSWER, USER, USER, ANSWER], {"Llama 2": ALTERNATE}),
]


@pytest.mark.parametrize(
    ("turns", "name", "words"),
    [
        pytest.param(turns, name, words, id=f"{case}-{name}")
        for case, turns, outcomes in ORDERS
        for name, words in outcomes.items()
    ],
)
def test_order_of_turns(turns, name, words):
    chat = RECORDS["messages"].parse({"messages": turns}, "here", Reading())
    (found,) = ConversationRenderer(FORMATS[name].tokenizer()).render_many([chat])
    if words is None:
        assert not isinstance(found, ExampleError), found
    else:
        assert isinstance(found, ExampleError)
        assert words in str(found)


def test_a_result_belongs_to_a_call():
    """A result without any turn of the assistant before it is an error; a call that is spelt as text may have one."""
    with pytest.raises(RecordError, match="a tool's result without a call before it"):
        RECORDS["messages"].parse({"messages": [USER, {"role": "tool", "content": "25"}, ANSWER]}, "here", Reading())
    spelt = [USER, ANSWER | {"content": "get_weather(city='Istanbul')"}, {"role": "tool", "content": "25"}, ANSWER]
    assert RECORDS["messages"].parse({"messages": spelt}, "here", Reading()).messages[2].content == "25"
