"""{"prompt", "completion"}: each a string (a user's and an assistant's turn) or a list of messages.

The two are one conversation; what of it is trained does not depend on where it is cut.
"""

from collections.abc import Set

from sft_jax.data.conversations import Chat, Conversation, Message
from sft_jax.data.formats.messages import chat_of, conversation_of, with_system_column
from sft_jax.data.formats.values import checked_text, kind, required
from sft_jax.data.reading import Reading, RecordError

FORM = '{"prompt": ..., "completion": ...}'


def detect(columns: Set[str]) -> bool:
    """Whether rows with these columns are of this format."""
    return {"prompt", "completion"} <= columns and "label" not in columns


def parse(fields: dict, where: str, reading: Reading) -> Chat:
    """The conversation of a row.

    Raises:
        RecordError: one of the two is missing, or is neither a string nor a list of messages; the answer is marked as
            one that is not wanted; there is a history, which would be lost.
    """
    if str(fields.get("label")).lower() == "false" and "label" not in reading.ignore:
        raise RecordError(
            f'{where}: "label" is false, which marks an answer that is not wanted; it would be imitated. '
            "Say that it means something else by --config.data.reading.ignore=\"('label',)\"."
        )
    refuse_history(fields, where)
    turns = turns_of(required(fields, "prompt", where, FORM), "user", f'{where}: "prompt"', reading)
    if fields.get("completion") is not None or not reading.prompts_only:
        answer = required(fields, "completion", where, FORM)
        turns += turns_of(answer, "assistant", f'{where}: "completion"', reading)
    return chat_of(with_system_column(turns, fields, where), fields, where)


def refuse_history(fields: dict, where: str) -> None:
    """Refuses a history, which would be lost.

    Raises:
        RecordError: there is one.
    """
    if fields.get("history"):
        raise RecordError(
            f'{where}: the column "history" would be lost. As alpaca it is read: '
            '--config.data.reading.columns=\'("instruction=prompt","output=completion")\'.'
        )


def turns_of(value: object, role: str, where: str, reading: Reading) -> Conversation:
    """A string is one turn of `role`, a list is a list of messages.

    Raises:
        RecordError: neither.
    """
    if isinstance(value, str):
        return (Message(role, checked_text(value, where)),)
    if isinstance(value, list):
        return conversation_of(value, where, reading)
    raise RecordError(f"{where}: expected a string or a list of messages, got {kind(value)}.")
