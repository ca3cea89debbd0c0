"""What a task asks of a model, and what it gets: text to write, or given answers to judge.

Tasks make requests of records (`tasks/`), methods change their prompts (`methods.py`), and a model responds to them
(`responding.py`).
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from sft_jax.data.conversations import Conversation, Message
from sft_jax.generation import Sampling


@dataclasses.dataclass(frozen=True)
class Generate:
    """Answers to write.

    Attributes:
        prompt: the conversation to answer.
        max_new_tokens: longest answer.
        tools: definitions of the tools that may be called.
        samples: answers to write.
        sampling: how tokens are chosen.
    """

    prompt: Conversation
    max_new_tokens: int
    tools: tuple[Mapping[str, Any], ...] = ()
    samples: int = 1
    sampling: Sampling = dataclasses.field(default_factory=Sampling)


@dataclasses.dataclass(frozen=True)
class LogLikelihood:
    """Answers to judge: how likely each is, with the end of its turn.

    Attributes:
        prompt: the conversation to answer.
        continuations: answers, as texts, or as messages where they think or call.
        tools: definitions of the tools that may be called.
    """

    prompt: Conversation
    continuations: tuple[str | Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


Request = Generate | LogLikelihood


def text_of(message: Message) -> str:
    """An answer for people: its content, and its calls as JSON. Whatever a template makes of it."""
    calls = [json.dumps({"name": call.name, "arguments": call.arguments}) for call in message.tool_calls]
    return "\n".join([message.content] * bool(message.content or not calls) + calls)


@dataclasses.dataclass(frozen=True)
class Written:
    """One answer that was written.

    Attributes:
        text: the whole of it, with what the template puts around thinking and calls.
        tokens: how many they are, without the one that ended it.
        logprob: of all of them and of the end (nats).
        finish_reason: what ended it (`sft_jax.generation`).
    """

    text: str
    tokens: int
    logprob: float
    finish_reason: str


@dataclasses.dataclass(frozen=True)
class Judged:
    """One given answer that was judged.

    Attributes:
        logprob: of the whole of it, with the end of its turn (nats).
        tokens: how many they are.
        greedy_tail: of its last tokens, how many in a row are the model's first choice.
    """

    logprob: float
    tokens: int
    greedy_tail: int


@dataclasses.dataclass(frozen=True)
class Response:
    """What a model gives for one request.

    Attributes:
        answers: what it wrote, one for each sample; or its judgements, one for each continuation.
        prompt_tokens: of the request.
        seconds: that it took, as a share of what was asked at once.
    """

    answers: tuple[Written, ...] | tuple[Judged, ...]
    prompt_tokens: int
    seconds: float
