"""Examples that are too long: an error, dropped, or shortened by whole turns or from the right; never in silence."""

import pytest

from sft_jax.audit.report import plain_highlight
from sft_jax.data.conversations import Chat, Message, Segment, Segments, TokenExample
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer, ExampleError
from sft_jax.data.rendering.masking import Masking
from sft_jax.data.tokenizing import tokenize_records

SYSTEM, HI, HO = Message("system", "S"), Message("user", "Hi"), Message("assistant", "Ho")
LONG = Chat((SYSTEM, HI, HO, HI, HO._replace(content="Hey"), HI._replace(content="Bye"), HO._replace(content="Ciao")))
# ChatML: <|im_start|>role\ncontent<|im_end|>\n: S 11, a question 10 or 11, an answer 15, 16 and 17 tokens
SIZES = (11, 10, 15, 10, 16, 11, 17)


@pytest.fixture
def shortened(chatml_tokenizer):
    """What becomes of an example under a limit."""

    def render(example, max_tokens, **masking):
        renderer = ConversationRenderer(chatml_tokenizer, masking=Masking(**masking))
        (examples,) = renderer.render_many([example], max_tokens)
        return examples

    return render


def chatml(*turns):
    return "".join(f"<|im_start|>{role}\n{text}\n" for role, text in turns)


def test_dropped_or_an_error(shortened, chatml_tokenizer):
    assert len(shortened(LONG, sum(SIZES))) == 1
    dropped = shortened(LONG, sum(SIZES) - 1)
    assert (dropped.reason, dropped.detail, dropped.stops) == ("longer than 89 tokens", "90 tokens", False)
    stopping = shortened(LONG, 89, too_long="error")
    assert stopping.stops
    renderer = ConversationRenderer(chatml_tokenizer, masking=Masking(too_long="error"))
    with pytest.raises(ValueError, match=r"a:7: longer than 89 tokens: 90 tokens; --config.data.masking.too_long says"):
        tokenize_records([Record("a:7", LONG, {})], renderer, 89)


LEFT = [  # (limit, messages kept, what is said about it)
    (89, (0, 3, 4, 5, 6), "2 of 7 messages, 1 trained turns"),
    (65, (0, 3, 4, 5, 6), "2 of 7 messages, 1 trained turns"),
    (64, (0, 5, 6), "4 of 7 messages, 2 trained turns"),
    (39, (0, 5, 6), "4 of 7 messages, 2 trained turns"),
]


@pytest.mark.parametrize(("limit", "kept", "changed"), LEFT)
def test_the_oldest_turns_are_left_out(shortened, limit, kept, changed):
    """The system message and the last question are kept; the example is that of the shorter conversation."""
    (example,) = shortened(LONG, limit, too_long="truncate_left")
    (expected,) = shortened(Chat(tuple(LONG.messages[number] for number in kept)), 0)
    assert example.tokens.tolist() == expected.tokens.tolist()
    assert example.weights.tolist() == expected.weights.tolist()
    assert example.changed == f"longer than {limit} tokens, the oldest turns are left out: {changed}"
    assert len(example.tokens) <= limit
    # messages keep the numbers they have in the example
    assert sorted(set(example.messages.tolist())) == list(kept)


def test_the_last_question_and_its_answer_are_not_cut(shortened):
    found = shortened(LONG, 38, too_long="truncate_left")
    assert found.reason == "longer than 38 tokens"
    assert "90 tokens; without its oldest turns: nothing to leave out: only the last question" in found.detail


def test_an_example_is_not_left_with_nothing_trained(shortened):
    turns = (HI, HO, HI, HO._replace(weight=0.0))
    found = shortened(Chat(turns), 30, too_long="truncate_left")
    assert "the trained turns are among the oldest" in found.detail


def test_what_is_cut_off_gains_no_end_of_turn(shortened, chatml_tokenizer):
    """The answer stops where the limit is; no end-of-turn is put there."""
    (example,) = shortened(Chat((HI, HO._replace(content="a long answer"))), 28, too_long="truncate_right")
    assert plain_highlight(example) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦a long ⟧"
    assert len(example.tokens) == len(example.weights) == len(example.offsets) == len(example.messages) == 28
    assert example.changed == "longer than 28 tokens, the end is cut off: 8 of 36 tokens"
    found = shortened(Chat((HI, HO)), 21, too_long="truncate_right")
    assert found.detail == "25 tokens, and the first 21 hold nothing that is trained"


def test_trls_examples_cut_at_three(shortened):
    """Tokens beyond the limit are gone; an example that trains nothing before it is dropped, the other kept."""
    first = shortened(TokenExample([1, 2, 3, 4, 5], [0, 0, 0, 1, 1]), 3, too_long="truncate_right")
    (second,) = shortened(TokenExample([6, 7, 8], [0, 1, 1]), 3, too_long="truncate_right")
    assert isinstance(first, ExampleError)
    assert second.tokens.tolist() == [6, 7, 8]


def test_text_has_no_turns(shortened):
    text = Segments((Segment("abcdef", 1.0),))
    found = shortened(text, 4, too_long="truncate_left")
    assert found.detail == "6 tokens, and no turns that could be left out"
    (example,) = shortened(text, 4, too_long="truncate_right")
    assert (example.text, example.weights.tolist()) == ("abcd", [0, 1, 1, 1])


def test_changed_examples_are_counted(chatml_tokenizer):
    renderer = ConversationRenderer(chatml_tokenizer, masking=Masking(too_long="truncate_left"))
    records = [Record("a:1", LONG, {}), Record("a:2", Chat((HI, HO)), {})]
    examples, dropped = tokenize_records(records, renderer, 65)
    assert (examples.ids, dropped) == (["a:1", "a:2"], [])


TEXT = Segments((Segment("ab", 1.0), Segment("cdéf", 0.0), Segment("ghijklmn", 1.0)))  # 15 tokens, é is two


@pytest.mark.parametrize("example", [TEXT, TokenExample(list(range(5, 20)), [1.0] * 2 + [0.0] * 5 + [1.0] * 8)])
@pytest.mark.parametrize("limit", [2, 3, 4, 7, 8, 14])
def test_split_makes_every_token_a_target_once(shortened, example, limit):
    (whole,) = shortened(example, 0)
    pieces = shortened(example, limit, too_long="split")
    assert all(2 <= len(piece.tokens) <= limit and piece.weights[0] == 0 and piece.weights.any() for piece in pieces)
    # Where targets stand after what they were trained after, once each: the same pairs as in the whole example.
    pairs = [
        (piece.tokens[at - 1], piece.tokens[at], piece.weights[at])
        for piece in pieces
        for at in range(1, len(piece.tokens))
        if piece.weights[at]
    ]
    tokens, weights = whole.tokens, whole.weights
    assert pairs == [(tokens[at - 1], tokens[at], weights[at]) for at in range(1, len(tokens)) if weights[at]]
    for piece in pieces:
        assert piece.changed.startswith(f"longer than {limit} tokens, split: piece ")
        assert piece.offsets[0, 0] == 0
        assert not piece.text or piece.offsets[-1, 1] == len(piece.text)


def test_pieces_show_their_own_text(shortened):
    pieces = shortened(TEXT, 8, too_long="split")
    assert [plain_highlight(piece) for piece in pieces] == ["a⟦b⟧cdéf⟦g⟧", "g⟦hijklmn⟧"]


def test_an_example_that_fits_is_not_split_and_a_conversation_never(shortened):
    (example,) = shortened(TEXT, 15, too_long="split")
    assert not example.changed
    refused = shortened(LONG, 89, too_long="split")
    assert (refused.detail, refused.tokens) == ("90 tokens; a conversation is not split", 90)


def test_what_is_too_long_says_how_long_its_longest_example_is(chatml_tokenizer):
    """Of an example of several examples, room for the first that is too long would not do."""
    rewriting = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + ('' if m.role == 'user' and not loop.last and "
        "not loop.index == loop.length - 1 else 'think ') + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    renderer = ConversationRenderer(chatml_tokenizer, rewriting, Masking(history="expand"))
    chat = Chat((HI, HO, HI, HO))
    (examples,) = renderer.render_many([chat], 0)
    lengths = [len(example.tokens) for example in examples]
    assert len(lengths) == 2
    assert lengths[0] < lengths[1]
    (refused,) = renderer.render_many([chat], lengths[0] - 1)
    assert refused.tokens == lengths[1]
