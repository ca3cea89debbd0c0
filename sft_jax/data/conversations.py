"""Conversations: the one form every example takes before it is rendered, whatever file it came from."""

from typing import NamedTuple

ROLES = ("system", "developer", "user", "assistant", "tool")


class Message(NamedTuple):
    """One turn: who speaks (`role`, one of ROLES) and what is said."""

    role: str
    content: str


Conversation = tuple[Message, ...]
