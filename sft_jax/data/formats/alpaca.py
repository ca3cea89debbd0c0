"""Alpaca: {"instruction", "input", "output"}, perhaps with a "system" and a "history" of (user, assistant) pairs.

The user's turn is the instruction, and the input, where there is one, on the next line.
"""

from collections.abc import Set

from sft_jax.data.conversations import Chat, Message
from sft_jax.data.formats.messages import chat_of, with_system_column
from sft_jax.data.formats.values import checked_text, kind, required
from sft_jax.data.reading import Reading, RecordError

FORM = '{"instruction": ..., "input": ..., "output": ...}'


def detect(columns: Set[str]) -> bool:
    """Whether rows with these columns are of this format."""
    return {"instruction", "output"} <= columns


def parse(fields: dict, where: str, reading: Reading) -> Chat:
    """The conversation of a row.

    Raises:
        RecordError: a column is missing or not text, or the history is not a list of pairs.
    """
    question = checked_text(required(fields, "instruction", where, FORM), f'{where}: "instruction"')
    if fields.get("input") not in (None, ""):
        question += "\n" + checked_text(fields["input"], f'{where}: "input"')
    turns = [*_history(fields.get("history"), where), Message("user", question)]
    if fields.get("output") is not None or not reading.prompts_only:
        turns.append(Message("assistant", checked_text(required(fields, "output", where, FORM), f'{where}: "output"')))
    return chat_of(with_system_column(tuple(turns), fields, where), fields, where)


def _history(value: object, where: str) -> list[Message]:
    if value is None:
        return []
    where = f'{where}: "history"'
    if not isinstance(value, list):
        raise RecordError(f"{where}: expected a list of [user, assistant] pairs, got {kind(value)}.")
    turns = []
    for number, pair in enumerate(value):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RecordError(f"{where}[{number}]: expected a [user, assistant] pair, got {kind(pair)}.")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append(Message(role, checked_text(text, f"{where}[{number}]")))
    return turns
