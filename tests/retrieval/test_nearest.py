"""Solved examples by the words that their last questions share with another one."""

from sft_jax.data.conversations import Message
from sft_jax.retrieval.nearest import Nearest


def solved(*said: str) -> tuple[Message, ...]:
    """What user and assistant say in turn."""
    return tuple(Message(("user", "assistant")[number % 2], text) for number, text in enumerate(said))


EXAMPLES = [
    solved("where is Rome", "Italy"),
    solved("capital of Norway", "Oslo"),
    solved("capital of Italy", "Rome", "and the river of Rome", "Tiber"),  # its last question counts
    solved("zebra", "stripes"),
]


def test_the_nearest_stands_last():
    nearest = Nearest(EXAMPLES)
    assert nearest(solved("the capital of Norway"), 1) == [EXAMPLES[1]]
    assert nearest(solved("and the river"), 2)[-1] == EXAMPLES[2]
    assert nearest(solved("capital of Italy"), 1) == [EXAMPLES[1]]
    assert nearest(solved("x", "y", "where is Rome"), 2)[::-1] == [EXAMPLES[0], EXAMPLES[2]]


def test_of_equally_near_ones_those_that_come_first():
    nearest = Nearest(EXAMPLES)
    assert nearest(solved("unknown"), 3) == EXAMPLES[2::-1]
    assert len(nearest(solved("zebra"), 9)) == 4
    assert nearest(solved("zebra"), 9)[-1] == EXAMPLES[3]
