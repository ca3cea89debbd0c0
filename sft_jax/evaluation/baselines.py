"""Prompt baselines: how good the base model is with solved examples in its prompt, without training.

A fine-tuned model is worth its training only if it beats the same model with solved examples in its prompt.
Pure functions on conversations; rendering and generation come after.
"""

from collections.abc import Sequence

import numpy as np

from sft_jax.data.conversations import Conversation, Message, Preference
from sft_jax.data.records import Record


def with_examples(conversation: tuple[Message, ...], examples: Sequence[tuple[Message, ...]]) -> tuple[Message, ...]:
    """The conversation with solved examples as earlier turns, after its own system message.

    An example's system message is left out where it equals the conversation's. Raises ValueError where it differs
    (two instructions in one prompt would be no fair baseline) or an example does not end with an assistant's answer.

        [system, user], [[system, user', assistant']] -> [system, user', assistant', user]
    """
    system, turns = _split_system(conversation)
    earlier: list[Message] = []
    for index, example in enumerate(examples):
        example_system, example_turns = _split_system(example)
        if example_system and example_system != system:
            raise ValueError(
                f"example {index} has the system message {example_system[0].content[:60]!r}, which is not the "
                "question's; choose examples with the same one"
            )
        if not example_turns or example_turns[-1].role != "assistant":
            raise ValueError(f"example {index} is not solved: its last message must be the assistant's")
        earlier.extend(example_turns)
    return (*system, *earlier, *turns)


def choose_examples(
    train: Sequence[tuple[Message, ...]],
    count: int,
    seed: int,
    held_out: Sequence[tuple[Message, ...]] = (),
) -> list[tuple[Message, ...]]:
    """`count` training conversations for `with_examples`, drawn by seed from the shorter half of the training rows.

    From the shorter half (in characters), because every prompt carries them: they cost prompt length for each
    held-out example. Drawn, not picked, so that nobody tunes them by hand. A training row whose question is also
    that of a held-out row is never drawn. Raises ValueError where too few rows are left.
    """
    asked = {questions_of(conversation) for conversation in held_out}
    allowed = [conversation for conversation in train if questions_of(conversation) not in asked]
    # A stable sort: ties keep the order of the rows.
    shortest = sorted(allowed, key=lambda c: sum(len(m.content) for m in c))[: max(count, (len(allowed) + 1) // 2)]
    if len(shortest) < count:
        raise ValueError(
            f"{count} examples wanted, but only {len(shortest)} of {len(train)} training rows are not held out"
        )
    picked = np.random.default_rng(seed).choice(len(shortest), size=count, replace=False)
    return [shortest[index] for index in picked]


def right_conversation(record: Record) -> Conversation:
    """The turns of a record with the right answer at their end; of a pair the chosen one."""
    example = record.example
    return (*example.prompt, *example.chosen) if isinstance(example, Preference) else record.conversation


def questions_of(conversation: tuple[Message, ...]) -> tuple[str, ...]:
    """All that the user says: two conversations with the same ask the same."""
    return tuple(message.content for message in conversation if message.role == "user")


def _split_system(
    conversation: tuple[Message, ...],
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    system_turns = 1 if conversation and conversation[0].role in ("system", "developer") else 0
    return conversation[:system_turns], conversation[system_turns:]
