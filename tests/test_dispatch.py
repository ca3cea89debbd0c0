"""Results are read one late: what order things happen in, without a clock."""

from sft_jax.dispatch import one_late


def told(count):
    """What happens, in order, when `count` results are read one late."""
    happened = []

    def dispatched():
        for number in range(count):
            happened.append(f"dispatch {number}")
            yield number

    for result in one_late(dispatched()):
        happened.append(f"read {result}")
    return happened


def test_a_result_is_read_when_the_next_is_dispatched_and_no_more_than_two_are_in_flight():
    assert told(4) == [
        "dispatch 0",
        "dispatch 1",
        "read 0",
        "dispatch 2",
        "read 1",
        "dispatch 3",
        "read 2",
        "read 3",
    ]


def test_few_results():
    assert told(0) == []
    assert told(1) == ["dispatch 0", "read 0"]
