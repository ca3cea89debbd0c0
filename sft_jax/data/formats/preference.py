"""Preference pairs: {"prompt", "chosen", "rejected"}, as strings, as messages, or in ShareGPT's form.

As messages the prompt may be left out where both answers are whole conversations: it is their common
beginning. In ShareGPT's form "conversations" is the prompt, and each answer is one turn. A number "margin",
which may be left out, says by how much the chosen answer is better.
"""

import math
from collections.abc import Set

from sft_jax.data.conversations import Chat, Conversation, Preference
from sft_jax.data.formats import sharegpt
from sft_jax.data.formats.messages import chat_of, with_system_column
from sft_jax.data.formats.prompt_completion import turns_of
from sft_jax.data.formats.values import kind, required
from sft_jax.data.reading import CHOSEN, FLAGS, PAIRS, NoFormatError, Reading, RecordError

FORM = '{"prompt": ..., "chosen": ..., "rejected": ...}'
_MARGIN = "margin"


def detect(columns: Set[str]) -> bool:
    """Whether rows with these columns are of this format."""
    return {"chosen", "rejected"} <= columns


def parse(fields: dict, where: str, reading: Reading) -> Preference | Chat:
    """The prompt of a row and its two answers; or, by `reading.preference`, the prompt and the chosen one.

    Raises:
        NoFormatError: no prompt.
        RecordError: an answer that is missing, or two that are equal.
    """
    if fields.get("conversations") is not None:
        prompt, chosen, rejected = _sharegpt(fields, where, reading)
    else:
        prompt, chosen, rejected = _messages(fields, where, reading)
    prompt = with_system_column(prompt, fields, where) if prompt else prompt
    if not prompt:
        raise NoFormatError(
            f"{where}: there is no prompt. Expected {FORM}, or answers that begin with the same messages."
        )
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer or answer[0].role != "assistant":
            got = f"a message of role {answer[0].role}" if answer else "nothing"
            raise RecordError(f'{where}: "{name}": expected an assistant\'s answer after the prompt, got {got}.')
    if chosen == rejected and reading.preference == PAIRS:
        raise RecordError(f'{where}: "chosen" and "rejected" are equal, so nothing is preferred. Remove the row.')
    tools = chat_of(prompt + chosen, fields, where).tools
    chat_of(prompt + rejected, fields, where)
    if reading.preference == CHOSEN:
        return Chat(prompt + chosen, tools)
    return Preference(prompt, chosen, rejected, tools, _margin(fields, where, reading))


def _margin(fields: dict, where: str, reading: Reading) -> float:
    """By how much the chosen answer is better; 0 where nobody says.

    Raises:
        RecordError: it is no finite number.
    """
    value = None if _MARGIN in reading.ignore else fields.get(_MARGIN)
    try:
        number = 0.0 if value is None else math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        got = repr(value) if isinstance(value, str | int | float) else kind(value)
        raise RecordError(
            f'{where}: "{_MARGIN}": expected a number, by how much the chosen answer is better, got {got}. Where it '
            f"says something else, leave it out: {FLAGS}ignore=\"('{_MARGIN}',)\""
        )
    return number


def _sharegpt(fields: dict, where: str, reading: Reading) -> tuple[Conversation, ...]:
    prompt = sharegpt.turns_of(fields["conversations"], f'{where}: "conversations"', reading)
    answers = (
        (sharegpt.turn_of(required(fields, name, where, FORM), f'{where}: "{name}"', reading),)
        for name in ("chosen", "rejected")
    )
    return prompt, *answers


def _messages(fields: dict, where: str, reading: Reading) -> tuple[Conversation, ...]:
    chosen, rejected = (
        turns_of(required(fields, name, where, FORM), "assistant", f'{where}: "{name}"', reading)
        for name in ("chosen", "rejected")
    )
    shared = _shared(chosen, rejected)
    if fields.get("prompt") is None:
        return chosen[:shared], chosen[shared:], rejected[shared:]
    prompt = turns_of(fields["prompt"], "user", f'{where}: "prompt"', reading)
    if shared:  # whole conversations beside their prompt
        if prompt not in (chosen[:shared], chosen[: len(prompt)]):
            raise RecordError(
                f'{where}: "chosen" and "rejected" begin alike, but not with "prompt". Remove one of them.'
            )
        return prompt, chosen[len(prompt) :], rejected[len(prompt) :]
    return prompt, chosen, rejected


def _shared(chosen: Conversation, rejected: Conversation) -> int:
    """Messages that both begin with, up to the last that an answer may follow."""
    count = 0
    for one, two in zip(chosen, rejected, strict=False):
        if one != two:
            break
        count += 1
    while count and chosen[count - 1].role == "assistant":
        count -= 1
    return count
