"""Steps that bound how many records a label or a group has; which of them stay follows from ids, not from order."""

import collections
import hashlib
import heapq
from collections.abc import Callable

from sft_jax.data.cleaning.contents import final_answers
from sft_jax.data.cleaning.steps import Act, Context, Drop, Outcome, Step
from sft_jax.data.records import Record

_Key = Callable[[Record], str]
_SHOWN = 60  # characters of a label in a detail


def cap_labels(_: Context, most: int) -> Step:
    """Keeps at most so many records of each label (the final answer, word for word)."""
    return _capped(_label, "label", lambda sizes: most)


def cap_groups(_: Context, most: int) -> Step:
    """Keeps at most so many records of each group."""
    return _capped(lambda record: record.group, "group", lambda sizes: most)


def balance_labels(_: Context, times: float) -> Step:
    """Keeps of each label at most so many times the records of the rarest one."""
    return _capped(_label, "label", lambda sizes: int(times * min(sizes)))


def _label(record: Record) -> str:
    return "\n".join(final_answers(record.example))


def _rank(record: Record) -> int:
    return int.from_bytes(hashlib.blake2b(record.id.encode(), digest_size=8).digest())


def _capped(key: _Key, what: str, most: Callable[[list[int]], int]) -> Step:
    """A step that keeps the records of lowest rank of each key; a record whose key is empty stays."""
    ranks: dict[str, list[int]] = collections.defaultdict(list)

    def look(record: Record) -> None:
        if name := key(record):
            ranks[name].append(_rank(record))

    def begin() -> Act:
        bound = most([len(found) for found in ranks.values()]) if ranks else 0
        highest = {name: heapq.nsmallest(bound, found)[-1] for name, found in ranks.items()}

        def act(record: Record) -> Outcome:
            name = key(record)
            if not name or _rank(record) <= highest[name]:
                return None
            return Drop(f"more rows of this {what} than asked for", name[:_SHOWN])

        return act

    return Step(begin, look)
