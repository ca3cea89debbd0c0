"""Turns of the assistant that are split into two messages: trained on the end of the first, the model stops there."""

import itertools

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.findings import Observation, counted, observed
from sft_jax.data.conversations import Chat, Conversation, Message, Preference


def split_turns(data: CheckedData) -> list[Observation]:
    """Rows in which a call stands in a message of its own right behind another one of the assistant.

    Behind another call, the model learns to stop after one; behind text, not to call. Not where the end of the first
    message is not trained.
    """
    if data.end_of_turn in ("none", "last") or data.trains_last or not data.trains_answers:
        return []
    hits = []
    for record in data.records:
        pairs = itertools.pairwise(_turns(record.example))
        if pair := next((pair for pair in pairs if _is_split(*pair)), None):
            hits.append((record.id, *pair))
    calls = sum(1 for _, first, _ in hits if first.tool_calls)
    return observed(
        f"{counted(len(hits), 'row has', 'rows have')} a call in a turn of its own right behind another turn of the "
        f"assistant, {calls:,} of them behind another call",
        hits,
        len(data.records),
        lambda hit: (hit[0], f"{_shown(hit[1])} | {_shown(hit[2])}"),
        "The model learns to end its turn between the two. Make them one turn: the calls in one list of tool_calls (in "
        "ShareGPT's form one JSON list as the value of a function_call), what is said before them as its content.",
    )


def _turns(example: object) -> Conversation:
    if isinstance(example, Chat):
        return example.messages
    return example.prompt + example.chosen if isinstance(example, Preference) else ()


def _is_split(first: Message, second: Message) -> bool:
    both = first.role == second.role == "assistant"
    return both and bool(second.tool_calls) and first.weight != 0


def _shown(message: Message) -> str:
    return ", ".join([message.content, *(f"{call.name}({call.arguments})" for call in message.tool_calls)]).strip(", ")
