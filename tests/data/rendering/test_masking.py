"""What is trained, by config: roles, ends of turns, weights, ranges of characters, examples that are too long."""

import numpy as np
import pytest

from sft_jax.audit.report import plain_highlight
from sft_jax.data.conversations import Chat, Message, Segment, Segments, TokenExample
from sft_jax.data.reading import TEXT_ENDS
from sft_jax.data.rendering import ConversationRenderer, ExampleError
from sft_jax.data.rendering.masking import Masking
from tests.command_line import flags_in, reading_by
from tests.data.rendering.chat_formats import FORMATS

# The conversation of axolotl's tests of chat templates.
SYSTEM, HELLO, THERE, HOW, WELL = (
    Message("system", "You are an AI."),
    Message("user", "Hello"),
    Message("assistant", "Hi there!"),
    Message("user", "How are you?"),
    Message("assistant", "I'm doing well, thank you!"),
)
TURNS = (SYSTEM, HELLO, THERE, HOW, WELL)
ALL = (
    "<|im_start|>⟦system\nYou are an AI.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    "Hi there!<|im_end|>\n<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
    "I'm doing well, thank you!<|im_end|>\n⟧"
)


def test_an_end_token_that_the_tokenizer_does_not_have(byte_tokenizer):
    renderer = ConversationRenderer(byte_tokenizer("<|end|>", chat_template="{{ messages[0].content }}"))
    (error,) = renderer.render_many([Segments((Segment("text", 1.0),), ends=True)])
    assert error.stops
    assert "the tokenizer has no end-of-sequence token: give --config.data.reading.text_end=none" in str(error)
    (flag,) = flags_in(str(error))
    ends = TEXT_ENDS[reading_by(flag).text_end]
    for text, count in (("text", 4), ("text<|end|>", 5)):
        ((example,),) = renderer.render_many([Segments((Segment(text, 1.0),), ends=ends)])
        assert (example.text, len(example.tokens), example.weights.sum()) == (
            text,
            count,
            count - 1,
        )  # the first is no target


def test_the_end_token_weighs_as_the_last_segment(chatml_tokenizer):
    renderer = ConversationRenderer(chatml_tokenizer)
    for weights in ([0.0, 0.5], [0.5, 0.0]):
        parts = tuple(Segment(text, weight) for text, weight in zip(("ab", "cd"), weights, strict=True))
        ((example,),) = renderer.render_many([Segments(parts, ends=True)])
        assert example.text == "abcd<|im_end|>"
        assert example.weights[-1] == weights[1]
        assert example.messages[-1] == 1


@pytest.fixture
def rendered(chatml_tokenizer):
    """A conversation with its trained parts in ⟦ ⟧."""

    def render(*messages, **masking):
        return plain_highlight(ConversationRenderer(chatml_tokenizer, masking=Masking(**masking)).render(messages))

    return render


def chatml(*turns):
    """ChatML of (role, text) pairs."""
    return "".join(f"<|im_start|>{role}\n{text}\n" for role, text in turns)


END = "<|im_end|>"
CHOICES = [  # (train_on, end_of_turn, the five turns)
    ("assistant", "turn", (f"S{END}", f"H{END}", f"⟦T{END}⟧", f"Q{END}", f"⟦W{END}⟧")),
    ("assistant", "all", (f"S⟦{END}⟧", f"H⟦{END}⟧", f"⟦T{END}⟧", f"Q⟦{END}⟧", f"⟦W{END}⟧")),
    ("assistant", "last", (f"S{END}", f"H{END}", f"⟦T⟧{END}", f"Q{END}", f"⟦W{END}⟧")),
    ("assistant", "none", (f"S{END}", f"H{END}", f"⟦T⟧{END}", f"Q{END}", f"⟦W⟧{END}")),
    ("last", "turn", (f"S{END}", f"H{END}", f"T{END}", f"Q{END}", f"⟦W{END}⟧")),
    ("user", "turn", (f"S{END}", f"⟦H{END}⟧", f"T{END}", f"⟦Q{END}⟧", f"W{END}")),
    ("user,assistant", "last", (f"S{END}", f"⟦H⟧{END}", f"⟦T⟧{END}", f"⟦Q⟧{END}", f"⟦W{END}⟧")),
    ("system", "none", (f"⟦S⟧{END}", f"H{END}", f"T{END}", f"Q{END}", f"W{END}")),
]


@pytest.mark.parametrize(("train_on", "end_of_turn", "expected"), CHOICES)
def test_train_on_and_end_of_turn(rendered, train_on, end_of_turn, expected):
    """The table of axolotl's `train_on_eos`: "turn" is of trained turns, "all" of every turn, "last" exactly one."""
    letters = dict(zip("SHTQW", (message.content for message in TURNS), strict=True))
    texts = ["".join(letters.get(letter, letter) for letter in text.replace(END, "@")) for text in expected]
    roles = (message.role for message in TURNS)
    wanted = chatml(*zip(roles, (text.replace("@", END) for text in texts), strict=True))
    assert rendered(*TURNS, train_on=train_on, end_of_turn=end_of_turn) == wanted


def test_everything_is_trained(rendered):
    """All but the first token, before which nothing stands."""
    assert rendered(*TURNS, train_on="all") == ALL


STRATEGIES = [  # (torchtune's name, train_on): which of 4 turns that begin with a question are trained
    ("train_on_all", "user,assistant", [1, 1, 1, 1]),
    ("train_on_assistant", "assistant", [0, 1, 0, 1]),
    ("train_on_last", "last", [0, 0, 0, 1]),
]


@pytest.mark.parametrize(("_", "train_on", "expected"), STRATEGIES, ids=[case[0] for case in STRATEGIES])
def test_whole_turns_are_trained_or_not(chatml_tokenizer, _, train_on, expected):
    """torchtune's masking strategies; a system message before them is never trained."""
    renderer = ConversationRenderer(chatml_tokenizer, masking=Masking(train_on=train_on))
    for turns, trained in ((TURNS[1:], expected), (TURNS, [0, *expected]), (TURNS[:3], [0, *expected[2:]])):
        example = renderer.render(turns)
        assert [int(example.weights[example.messages == number].any()) for number in range(len(turns))] == trained


@pytest.mark.parametrize(  # "" among them: axolotl's empty roles_to_train trains nothing and says nothing
    "wrong", [{"train_on": ""}, {"train_on": "gpt"}, {"end_of_turn": "eos"}, {"history": ""}, {"too_long": "cut"}]
)
def test_what_no_masking_is(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value!r} must be "):
        Masking(**wrong)


def test_roles_that_do_not_occur_train_nothing(chatml_tokenizer):
    renderer = ConversationRenderer(chatml_tokenizer, masking=Masking(train_on="tool"))
    with pytest.raises(ExampleError, match="nothing to train on: there is no tool's turn"):
        renderer.render(TURNS)


def weights_of(renderer, example):
    """(text, weight) runs."""
    runs = []
    for (start, end), weight in zip(example.offsets.tolist(), example.weights.tolist(), strict=True):
        if runs and runs[-1][1] == weight:
            runs[-1][0] += example.text[start:end]
        else:
            runs.append([example.text[start:end], weight])
    return [(text, weight) for text, weight in runs if weight]


def test_weights_of_messages(chatml_tokenizer):
    renderer = ConversationRenderer(chatml_tokenizer)
    turns = (HELLO, THERE._replace(weight=0.5), HOW, WELL._replace(weight=2.0), HOW, THERE._replace(weight=0.0))
    example = renderer.render(turns)
    assert weights_of(renderer, example) == [
        ("Hi there!<|im_end|>", 0.5),
        ("I'm doing well, thank you!<|im_end|>", 2.0),
    ]
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ExampleError, match="a weight is negative or not finite: message 1"):
            renderer.render((HELLO, THERE._replace(weight=weight)))
    with pytest.raises(ExampleError, match="every such turn has the weight 0"):
        renderer.render((HELLO, THERE._replace(weight=0.0)))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        # axolotl's table: characters 0-8 off, 9-18 on, 19-30 off, ends inclusive there and exclusive here
        (
            Message("assistant", "I'm doing very well, thank you!", ranges=((0, 9, 0), (9, 19, 1), (19, 31, 0))),
            "I'm doing⟦ very well⟧, thank you!⟦<|im_end|>⟧",
        ),
        # a message of weight 0 with a range: the range alone, not the end-of-turn
        (Message("assistant", "ab cd", weight=0, ranges=((3, 5, 1),)), "ab ⟦cd⟧<|im_end|>"),
        # "the" is one token: a boundary in it leaves it out
        (Message("assistant", "the the", ranges=((1, 5, 0),)), "the ⟦<|im_end|>⟧".replace(" ", " the")),
        (Message("assistant", "a the b", ranges=((3, 7, 0),)), "⟦a ⟧the b⟦<|im_end|>⟧"),
    ],
)
def test_ranges_of_characters(rendered, message, expected):
    assert rendered(HELLO, message) == chatml(("user", "Hello<|im_end|>"), ("assistant", expected))


def test_ranges_that_do_not_fit(chatml_tokenizer):
    renderer = ConversationRenderer(chatml_tokenizer)
    with pytest.raises(ExampleError, match=r"does not lie in its message: message 1 has 9 characters, .* \[3, 10\)"):
        renderer.render((HELLO, THERE._replace(ranges=((3, 10, 1.0),))))


@pytest.mark.parametrize("asked", [{"weight": 1.0}, {"weight": 0.5}, {"ranges": ((0, 1, 1.0),)}])
def test_a_message_that_is_not_trained_may_not_ask_for_it(chatml_tokenizer, asked):
    conversation = (HELLO._replace(**asked), THERE)
    with pytest.raises(ExampleError, match=r"not trained has a weight: message 0 \(user\); name the role in --config"):
        ConversationRenderer(chatml_tokenizer).render(conversation)
    for train_on in ("user", "user,assistant", "all"):
        assert ConversationRenderer(chatml_tokenizer, masking=Masking(train_on=train_on)).render(conversation)
    nothing = (HELLO._replace(weight=0.0, ranges=((0, 1, 0.0),)), THERE)
    assert ConversationRenderer(chatml_tokenizer).render(nothing)


def test_ranges_of_a_content_that_is_stripped(byte_tokenizer):
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    renderer = ConversationRenderer(byte_tokenizer("<|im_start|>", "<|im_end|>"), template)
    example = renderer.render((HELLO, Message("assistant", "  ab cd ", weight=0, ranges=((0, 4, 1),))))
    assert plain_highlight(example).endswith("\n⟦ab⟧ cd<|im_end|>\n")


THOUGHT = (
    "<think>\nhm\n</think>\n\nYo"  # the template of Qwen 3 looks for </think>, takes the content apart and joins it
)


@pytest.mark.parametrize(
    ("content", "weight", "ranges", "expected"),
    [
        (THOUGHT, None, ((0, 19, 0),), "<think>\nhm\n</think>⟦\n\nYo<|im_end|>⟧"),
        (THOUGHT, None, ((0, 22, 0),), "<think>\nhm\n</think>\n\nY⟦o<|im_end|>⟧"),
        (THOUGHT, 0, ((0, 19, 1),), "⟦<think>\nhm\n</think>⟧\n\nYo<|im_end|>"),
        (THOUGHT, None, ((11, 19, 0),), "⟦<think>\nhm\n⟧</think>⟦\n\nYo<|im_end|>⟧"),
        # white space that the template makes has the weight of both its neighbours, or the message's
        ("<think>hm</think>Yo", None, ((0, 17, 0),), "<think>\nhm\n</think>⟦\n\nYo<|im_end|>⟧"),
        ("<think>hm</think>Yo", None, ((0, 19, 0),), "<think>\nhm\n</think>\n\nYo⟦<|im_end|>⟧"),
    ],
)
def test_ranges_of_a_content_that_the_template_takes_apart(content, weight, ranges, expected):
    renderer = ConversationRenderer(FORMATS["Qwen 3"].tokenizer())
    example = renderer.render((HELLO, Message("assistant", content, weight=weight, ranges=ranges)))
    assert plain_highlight(example) == chatml(("user", "Hello<|im_end|>"), ("assistant", expected))


@pytest.mark.parametrize("content", ["<tool_response>x</tool_response>", "a </think> b", "</think>b", "</think>"])
def test_what_others_say_is_trained_whole(content):
    """Also the words in it for which the template looks."""
    renderer = ConversationRenderer(FORMATS["Qwen 3"].tokenizer(), masking=Masking(train_on="user"))
    example = renderer.render((Message("user", content), THERE))
    assert plain_highlight(example).startswith(f"<|im_start|>user\n⟦{content}<|im_end|>⟧\n")


def test_ends_of_turns_are_trained_once_in_examples_of_one_conversation():
    """Reasoning makes an example for each turn; the ends of the others are not trained again in each of them."""
    masking = Masking(end_of_turn="all", history="expand")
    renderer = ConversationRenderer(FORMATS["Qwen 3"].tokenizer(), masking=masking)
    answers = [Message("assistant", f"a{number}", reasoning="r") for number in (1, 2, 3)]
    turns = [turn for number, answer in enumerate(answers, 1) for turn in (Message("user", f"q{number}"), answer)]
    (examples,) = renderer.render_many([Chat(tuple(turns))])
    text = "".join(map(plain_highlight, examples))
    assert [text.count(f"q{number}⟦<|im_end|>⟧") for number in (1, 2, 3)] == [1, 1, 1]
    assert [text.count(f"a{number}<|im_end|>⟧") for number in (1, 2, 3)] == [1, 1, 1]


def test_segments(byte_tokenizer, chatml):
    """axolotl's raw form: special tokens spelt in segments are special tokens, labels on trained segments alone."""
    tokenizer = byte_tokenizer("<s>", "<eot>", chat_template="{{ messages[0].content }}")
    renderer = ConversationRenderer(tokenizer)
    parts = (("<s>hello ", 0), ("hi there.<eot>", 1), ("goodbye ", 0), ("farewell<eot>", 0.5))
    ((example,),) = renderer.render_many([Segments(tuple(Segment(text, float(weight)) for text, weight in parts))])
    assert (
        example.tokens.tolist() == tokenizer("".join(text for text, _ in parts), add_special_tokens=False)["input_ids"]
    )
    assert weights_of(renderer, example) == [("hi there.<eot>", 1.0), ("farewell<eot>", 0.5)]
    assert sorted(set(example.messages.tolist())) == [0, 1, 2, 3]
    end = tokenizer.convert_tokens_to_ids("<eot>")
    assert [
        int(token) for token, weight in zip(example.tokens, example.weights, strict=True) if token == end and weight
    ]


def test_a_token_across_segments_is_not_trained(byte_tokenizer):
    renderer = ConversationRenderer(byte_tokenizer(chat_template="{{ messages[0].content }}"))
    ((example,),) = renderer.render_many([Segments((Segment("xt", 0.0), Segment("hey", 1.0)))])
    assert plain_highlight(example) == "xthe⟦y⟧"
    assert example.changed == "tokens over an edge of what is trained are not trained: 1, the first 'the'"


@pytest.mark.parametrize("parts", [(("xt ", 0), ("hey", 1)), (("x", 0), ("they", 1)), (("xth", 1), ("e", 1))])
def test_no_token_is_lost_where_none_lies_across(byte_tokenizer, parts):
    renderer = ConversationRenderer(byte_tokenizer(chat_template="{{ messages[0].content }}"))
    ((example,),) = renderer.render_many([Segments(tuple(Segment(text, float(weight)) for text, weight in parts))])
    assert example.changed == ""


def test_plain_text_is_trained_whole(byte_tokenizer):
    renderer = ConversationRenderer(byte_tokenizer(chat_template="{{ messages[0].content }}"))
    ((example,),) = renderer.render_many([Segments((Segment("some text", 1.0),))])
    assert example.weights.tolist() == [0] + [1] * 8


def test_litgpt_ids(byte_tokenizer):
    """litgpt's first test of its data: a prompt of 12 bytes that is not trained, "Bar" and the end that are."""
    tokenizer = byte_tokenizer("<eos>", chat_template="{{ messages[0].content }}")
    renderer = ConversationRenderer(tokenizer)
    ((example,),) = renderer.render_many([Segments((Segment("In: Foo Out:", 0.0), Segment("Bar<eos>", 1.0)))])
    names = [tokenizer.decode([token]) for token in example.tokens.tolist()]
    ids = [1 if name == "<eos>" else ord(name) for name in names]
    assert ids == [73, 110, 58, 32, 70, 111, 111, 32, 79, 117, 116, 58, 66, 97, 114, 1]
    assert example.weights.tolist() == [0] * 12 + [1] * 4


def test_examples_of_ids(chatml_tokenizer):
    """As given; TRL's label building: masks [0, 0, 1, 1] on four tokens train the last two."""
    renderer = ConversationRenderer(chatml_tokenizer)
    ((example,),) = renderer.render_many([TokenExample([1, 2, 3, 4], [0, 0, 1, 1])])
    assert (example.tokens.tolist(), example.weights.tolist(), example.text) == ([1, 2, 3, 4], [0, 0, 1, 1], "")
    wrong = [
        (TokenExample([1, 2], [1]), "not of one length: 2 ids, 1 weights"),
        (TokenExample([], []), "not of one length"),
        (TokenExample([1, 260], [1, 1]), "not one of the tokenizer's: 1 to 260, the tokenizer has 260"),
        (TokenExample([1, -1], [1, 1]), "not one of the tokenizer's: -1 to 1"),
        (TokenExample([1, 2], [1, -1]), "negative"),
        (TokenExample([1, 2], [1, 0]), "nothing to train on"),
    ]
    for found, (_, message) in zip(renderer.render_many([example for example, _ in wrong]), wrong, strict=True):
        assert isinstance(found, ExampleError)
        assert message in str(found)


def test_one_bad_example_leaves_the_others(chatml_tokenizer):
    examples = ConversationRenderer(chatml_tokenizer).render_many([Chat((HELLO, THERE)), Chat((HELLO,)), Chat(TURNS)])
    assert [isinstance(example, ExampleError) for example in examples] == [False, True, False]


def test_every_token_has_its_message_and_role(chatml_tokenizer):
    example = ConversationRenderer(chatml_tokenizer).render(TURNS)
    for number, message in enumerate(TURNS):
        text = "".join(
            example.text[slice(*example.offsets[token])] for token in np.flatnonzero(example.messages == number)
        )
        assert text == f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n"
    assert [example.role(token) for token in (0, len(example.tokens) - 1)] == ["system", "assistant"]
