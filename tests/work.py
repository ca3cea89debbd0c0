"""Work that is counted: a bound on it holds on any machine, however busy, where a bound on seconds does not."""

import contextlib
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def at_most(steps: int) -> Iterator[None]:
    """Fails as soon as the code inside has taken more than this many steps: lines of Python run, functions called.

    Functions written in C count as one step each; what they allocate is for `tracemalloc` to bound. Work of other
    threads is not counted.
    """
    done = 0

    def count(event: str) -> None:
        nonlocal done
        if event in ("line", "c_call"):
            done += 1
            if done > steps:
                raise AssertionError(f"more than {steps} steps of Python")

    def trace(frame: FrameType, event: str, argument: Any):
        count(event)
        return trace

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        count(event)

    before = sys.gettrace(), sys.getprofile()
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
