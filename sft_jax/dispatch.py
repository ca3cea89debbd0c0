"""Reading results of the devices late enough that these do not wait for the host."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

Result = TypeVar("Result")


def one_late(dispatched: Iterable[Result]) -> Iterator[Result]:
    """The same results in the same order, each when the next one has been dispatched.

    JAX returns from a compiled function before the devices have begun with it. Who reads a result at once has nothing
    queued for them while it waits, nor while it prepares the next batch. No more than two are in flight, so that the
    batches that wait on the devices do not add up.

    Args:
        dispatched: what compiled functions return, each called when it is asked for.
    """
    results = iter(dispatched)
    for earlier in results:
        for result in results:
            yield earlier
            earlier = result
        yield earlier
