"""Children end as processes of their own would, and what they say comes back."""

import os
import signal
import sys
import time

import pytest

HERE = "tests.test_children"


def doubled(number):
    return 2 * number


def fails(reason):
    print("begun")
    raise ValueError(reason)


def leaves(code):
    sys.exit(code)


def is_killed(number):
    os.kill(os.getpid(), number)


def waits(seconds):
    print("waits", flush=True)
    time.sleep(seconds)


def test_how_they_end(children):
    calls = [("doubled", 2), ("fails", "no"), ("leaves", 3), ("leaves", "a reason"), ("is_killed", signal.SIGKILL)]
    ends = children.run([(f"{HERE}:{name}", argument) for name, argument in calls])
    assert [end.status for end in ends] == [0, 1, 3, 1, -signal.SIGKILL]
    assert [end.result for end in ends] == [4, None, None, None, None]
    assert ends[1].output.startswith("begun\nTraceback")
    assert ends[1].output.endswith("ValueError: no\n")
    assert ends[3].output == "a reason\n"


def test_none_is_left_that_takes_too_long(children):
    """The next ones are as if nothing had been."""
    with pytest.raises(AssertionError, match=r"children have not ended within 2 s: .*waits"):
        children.run([(f"{HERE}:waits", 1000), (f"{HERE}:doubled", 1)], patience=2)
    assert children.run([(f"{HERE}:doubled", 1)])[0].result == 2


def test_a_command(children):
    (end,) = children.run([("tests.children:command", ["sft_jax.train", "--workdir=x"])])
    assert end.status == 1
    assert end.output.startswith("error in the flags: flag --config=None")
