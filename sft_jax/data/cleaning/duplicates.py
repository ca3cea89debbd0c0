"""Steps that compare records with one another: duplicates and contradictions. They keep 16 bytes of each."""

import collections
import hashlib
from typing import Any

from sft_jax.data.cleaning.contents import edited, prompt_of
from sft_jax.data.cleaning.steps import Act, Context, Drop, Outcome, Step
from sft_jax.data.conversations import Chat, Example, Labelled, TokenExample
from sft_jax.data.records import Record

_DIGEST_BYTES = 16


def digest_of(value: Any) -> bytes:
    """16 bytes for a value of the example's types, equal for equal values."""
    return hashlib.blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()


def _content(example: Example) -> Any:
    """What has to be equal in duplicates: everything but whitespace around texts."""
    if isinstance(example, TokenExample):
        return [int(token) for token in example.tokens], [float(weight) for weight in example.weights]
    return edited(example, str.strip)


def drop_exact_duplicates(_: Context) -> Step:
    """Drops a record that says the same, in every turn, as one before it."""

    def begin() -> Act:
        first: dict[bytes, str] = {}

        def act(record: Record) -> Outcome:
            digest = digest_of(_content(record.example))
            if digest in first:
                return Drop("the same as a row before it", first[digest])
            first[digest] = record.id
            return None

        return act

    return Step(begin)


def drop_contradictions(_: Context, keep: str) -> Step:
    """Drops records whose prompt has several different answers: all of them, or all but the most frequent answer's.

    Answers that were judged one by one, or in pairs, contradict nothing.

    Args:
        _: not used.
        keep: "none", or "majority": records with an answer more frequent than any other stay.
    """
    answers: dict[bytes, collections.Counter[bytes]] = collections.defaultdict(collections.Counter)

    def parts(record: Record) -> tuple[bytes, bytes] | None:
        if not isinstance(record.example, Chat) or isinstance(record.example, Labelled):
            return None
        chat = edited(record.example, str.strip)
        asked = len(prompt_of(chat))
        if asked in (0, len(chat.messages)):
            return None
        return digest_of((chat.messages[:asked], chat.tools)), digest_of(chat.messages[asked:])

    def look(record: Record) -> None:
        if found := parts(record):
            answers[found[0]][found[1]] += 1

    def act(record: Record) -> Outcome:
        found = parts(record)
        if not found or len(answers[found[0]]) < 2:
            return None
        (best, most), (_, second) = answers[found[0]].most_common(2)
        if keep == "majority" and most > second and best == found[1]:
            return None
        return Drop("its prompt has several different answers", f"{len(answers[found[0]])} answers")

    return Step(lambda: act, look)
