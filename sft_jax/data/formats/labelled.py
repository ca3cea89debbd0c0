"""{"prompt", "completion", "label"}: an answer that is wanted (true, 1) or not (false, 0), by itself (KTO).

Prompt and completion are strings or lists of messages. All of the completion is judged, and of the prompt nothing.
"""

from collections.abc import Set

from sft_jax.data.conversations import Labelled
from sft_jax.data.formats.messages import chat_of, with_system_column
from sft_jax.data.formats.prompt_completion import refuse_history, turns_of
from sft_jax.data.formats.values import kind, required
from sft_jax.data.reading import FLAGS, Reading, RecordError

FORM = '{"prompt": ..., "completion": ..., "label": true or false}'
COLUMN = "label"

_WORDS = {"true": True, "1": True, "false": False, "0": False}  # in cells of a CSV file


def detect(columns: Set[str]) -> bool:
    """Whether rows with these columns are of this format."""
    return {"prompt", "completion", COLUMN} <= columns


def parse(fields: dict, where: str, reading: Reading) -> Labelled:
    """The conversation of a row, and whether its answer is wanted.

    Raises:
        RecordError: one of the three is missing or is something else, or the completion is no answer.
    """
    refuse_history(fields, where)
    desirable = desirable_of(required(fields, COLUMN, where, FORM), where)
    prompt = turns_of(required(fields, "prompt", where, FORM), "user", f'{where}: "prompt"', reading)
    answer = turns_of(required(fields, "completion", where, FORM), "assistant", f'{where}: "completion"', reading)
    if not answer or answer[0].role != "assistant":
        got = f"a message of role {answer[0].role}" if answer else "nothing"
        raise RecordError(f'{where}: "completion": expected an assistant\'s answer after the prompt, got {got}.')
    prompt = tuple(turn._replace(weight=0.0, ranges=()) for turn in with_system_column(prompt, fields, where))
    chat = chat_of(prompt + answer, fields, where)
    return Labelled(chat.messages, chat.tools, desirable)


def desirable_of(label: object, where: str) -> bool:
    """What a label says.

    Raises:
        RecordError: neither true nor false.
    """
    if isinstance(label, bool):
        return label
    if isinstance(label, int | float) and label in (0, 1):
        return bool(label)
    if isinstance(label, str) and label.lower() in _WORDS:
        return _WORDS[label.lower()]
    got = repr(label) if isinstance(label, str | int | float) else kind(label)
    raise RecordError(
        f'{where}: "{COLUMN}": expected true or false (or 1 or 0), got {got}. Where it does not say whether the answer '
        f"is wanted, leave it out: {FLAGS}ignore=\"('{COLUMN}',)\""
    )
