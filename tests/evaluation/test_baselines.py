"""Few-shot prompts: where the examples stand, and which are drawn."""

import pytest

from sft_jax.data.conversations import Message
from sft_jax.evaluation.baselines import choose_examples, with_examples

SYSTEM, OTHER_SYSTEM = Message("system", "Extract."), Message("system", "Translate.")
QUESTION = Message("user", "q")
ONE = (Message("user", "q1"), Message("assistant", "a1"))
TWO = (Message("user", "q2"), Message("assistant", "a2"))


@pytest.mark.parametrize(
    ("conversation", "examples", "expected"),
    [
        ((QUESTION,), [], (QUESTION,)),
        ((QUESTION,), [ONE, TWO], (*ONE, *TWO, QUESTION)),
        ((SYSTEM, QUESTION), [ONE], (SYSTEM, *ONE, QUESTION)),
        ((SYSTEM, QUESTION), [(SYSTEM, *ONE)], (SYSTEM, *ONE, QUESTION)),
        ((QUESTION,), [(*ONE, *TWO)], (*ONE, *TWO, QUESTION)),
    ],
)
def test_examples_are_earlier_turns(conversation, examples, expected):
    assert with_examples(conversation, examples) == expected


@pytest.mark.parametrize(
    ("conversation", "example", "message"),
    [
        ((SYSTEM, QUESTION), (OTHER_SYSTEM, *ONE), "example 0 has the system message 'Translate.'"),
        ((QUESTION,), (SYSTEM, *ONE), "not the question's"),
        ((QUESTION,), (QUESTION,), "example 0 is not solved"),
        ((QUESTION,), (), "example 0 is not solved"),
    ],
)
def test_examples_that_do_not_fit(conversation, example, message):
    with pytest.raises(ValueError, match=message):
        with_examples(conversation, [example])


def conversations(count: int) -> list[tuple[Message, ...]]:
    """Conversation i has i + 3 characters of question."""
    return [(Message("user", f"{i:03}" + "x" * i), Message("assistant", "a")) for i in range(count)]


def test_examples_come_from_the_shorter_half_and_depend_on_the_seed_alone():
    train = conversations(40)
    drawn = [choose_examples(train, 2, seed) for seed in range(30)]
    assert drawn == [choose_examples(train, 2, seed) for seed in range(30)]
    assert {example for pair in drawn for example in pair} <= set(train[:20])
    assert len({tuple(pair) for pair in drawn}) > 20
    assert all(first != second for first, second in drawn)


def test_held_out_rows_are_never_drawn():
    train = conversations(10)
    # The same questions, other answers: still held out.
    held_out = [(question, Message("assistant", "other")) for question, _ in train[:3]]
    for seed in range(20):
        assert not set(choose_examples(train, 2, seed, held_out)) & set(train[:3])
    with pytest.raises(ValueError, match="8 examples wanted, but only 7 of 10"):
        choose_examples(train, 8, 0, held_out)
