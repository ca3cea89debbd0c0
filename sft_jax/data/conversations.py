"""Forms of examples: what a record holds before it is rendered, whatever file and format it came from."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

ROLES = ("system", "developer", "user", "assistant", "tool")


class ToolCall(NamedTuple):
    """A call that an assistant makes: name of the function, its arguments as an object, and its id (empty for none)."""

    name: str
    arguments: dict
    id: str = ""


class Message(NamedTuple):
    """One turn.

    Attributes:
        role: who speaks, one of ROLES.
        content: what is said.
        weight: of its tokens as targets, where it is trained; None: 1.
        reasoning: what the assistant thought before it spoke (`reasoning_content`).
        tool_calls: calls the assistant makes.
        name: of the function, in a tool's result.
        tool_call_id: of the call that a tool's result answers.
        ranges: (start, end, weight) of characters [start, end) of the content that have weights of their own.
    """

    role: str
    content: str
    weight: float | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    tool_call_id: str = ""
    ranges: tuple[tuple[int, int, float], ...] = ()


Conversation = tuple[Message, ...]


def without_leading_answers(messages: Sequence[Message]) -> Conversation:
    """The conversation from its first question on, behind its system messages: what an assistant (or a tool) says
    before it answers nothing. A conversation that does not begin so is given back as it is.
    """
    head = 0
    while head < len(messages) and messages[head].role in ("system", "developer"):
        head += 1
    first = head
    while first < len(messages) and messages[first].role in ("assistant", "tool"):
        first += 1
    return (*messages[:head], *messages[first:])


@dataclasses.dataclass(frozen=True)
class Chat:
    """A conversation, and the definitions of the tools it may call (JSON objects, as the chat template gets them)."""

    messages: Conversation
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Labelled(Chat):
    """A conversation whose answer was judged. What was asked, earlier answers included, has weight 0.

    Attributes:
        desirable: whether the answer is wanted.
    """

    desirable: bool = True


class Segment(NamedTuple):
    """A piece of text that no template touches; weight 0 is not trained."""

    text: str
    weight: float


@dataclasses.dataclass(frozen=True)
class Segments:
    """Text without a template: the segments, one after the other. Special tokens spelt in them are special tokens.

    Attributes:
        parts: the segments.
        ends: whether the end-of-sequence token follows, with the weight of the last of them; None: no, but nobody said.
    """

    parts: tuple[Segment, ...]
    ends: bool | None = None


@dataclasses.dataclass(frozen=True)
class TokenExample:
    """An example that is tokenized already: ids, and the weight of each as a target."""

    tokens: Sequence[int]
    weights: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, of which the first is preferred; by how much says the margin, where that is known."""

    prompt: Conversation
    chosen: Conversation
    rejected: Conversation
    tools: tuple[Mapping[str, Any], ...] = ()
    margin: float = 0.0


Example = Chat | Segments | TokenExample | Preference
