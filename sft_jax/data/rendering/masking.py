"""Masking: which tokens are trained, and how much each weighs.

The choices (`Masking`, from `config.data.masking`) and the step from character spans to the weights of tokens. Where
the turns of a conversation lie is determined in turns.py.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from sft_jax.data.conversations import ROLES, Message
from sft_jax.data.rendering.rendered import ExampleError, Offsets, TokenWeights
from sft_jax.data.rendering.template_text import TemplateText
from sft_jax.data.rendering.turns import Context

CharWeights = Float32[np.ndarray, "characters"]

TRAIN_ON = f"must be last, all, or roles with commas between them ({','.join(ROLES)})"
CHOICES = {
    "end_of_turn": ("turn", "all", "last", "none"),
    "empty_thinking": ("train", "leave_out"),
    "history": ("refuse", "expand"),
    "too_long": ("error", "drop", "truncate_left", "truncate_right", "split"),
}


def names_roles(train_on: str) -> bool:
    """Whether this is a value of `Masking.train_on`."""
    return train_on in ("last", "all") or set(train_on.split(",")) <= set(ROLES)


@dataclasses.dataclass(frozen=True)
class Masking:
    """What is trained.

    Attributes:
        train_on: "assistant": every turn of the assistant; "last": the last of them; "all": every token; or several
            roles by name, with commas between them.
        end_of_turn: whose end-of-turn is trained: "turn": of every trained turn; "all": of every turn; "last": of the
            last trained turn; "none".
        empty_thinking: whether a thought of white space alone, which a template writes before answers without one, is
            trained with the answer: "train"; or "leave_out": it is read and not learnt.
        history: what becomes of a conversation whose earlier turns the template shows otherwise than it did when they
            were the last ones (reasoning removed): "refuse"; or "expand": an example for each context, so that every
            turn is trained once, after what the model sees when it is to write it.
        too_long: what becomes of an example with too many tokens: "error"; "drop"; "truncate_left": the oldest turns
            are left out; "truncate_right": it is cut; "split": text and ids become several examples, so that every
            token is a target once, and conversations are dropped.
    """

    train_on: str = "assistant"
    end_of_turn: str = "turn"
    empty_thinking: str = "train"
    history: str = "refuse"
    too_long: str = "drop"

    def __post_init__(self):
        if not names_roles(self.train_on):
            raise ValueError(f"train_on={self.train_on!r} {TRAIN_ON}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(known)}")

    def roles(self) -> tuple[str, ...]:
        """Whose messages may be trained."""
        if self.train_on == "all":
            return ROLES
        return ("assistant",) if self.train_on == "last" else tuple(self.train_on.split(","))

    def selects(self, messages: Sequence[Message]) -> list[int]:
        """The messages that are trained, by number.

        Raises:
            ExampleError: a weight is none, or a message of a role that is not trained has one.
        """
        roles = self.roles()
        for number, message in enumerate(messages):
            _check_weights(number, message, message.role in roles)
        chosen = [number for number, message in enumerate(messages) if message.role in roles]
        chosen = chosen[-1:] if self.train_on == "last" else chosen
        return [number for number in chosen if _has_weight(messages[number])]

    def char_weights(self, context: Context) -> CharWeights:
        """The weight of each character of the text of a context."""
        rendered, messages, trained = context.rendered, context.messages, context.trained
        weights = np.zeros(len(rendered.text), np.float32)
        everything = self.train_on == "all"
        if everything:
            weights[:] = 1
        ends = [*rendered.starts[1:], len(rendered.text)]
        last = max(trained, default=-1)
        for number, turn in enumerate(context.turns):
            message, is_trained = messages[number], number in trained
            weight = (1.0 if message.weight is None else message.weight) if is_trained else 0.0
            if everything:
                weights[rendered.starts[number] : ends[number]] = weight
            elif is_trained:
                for start, end in turn.spans:
                    weights[start:end] = weight
            if is_trained:
                _set_ranges(weights, rendered, number, message)
            if turn.end_of_turn is not None:
                takes_part = {"turn": is_trained, "all": True, "last": number == last, "none": False}[self.end_of_turn]
                own = weight if is_trained else 1.0
                weights[slice(*turn.end_of_turn)] = own if takes_part else 0
        return weights


def token_weights(offsets: Offsets, chars: CharWeights) -> TokenWeights:
    """The weight of each token: that of its characters if they are all of one weight, else 0.

    The first token is never a target: nothing stands before it to predict it.
    """
    if not len(offsets) or not len(chars):
        return np.zeros(len(offsets), np.float32)
    changes = np.flatnonzero(chars[1:] != chars[:-1])  # the last character before each change
    first = np.minimum(offsets[:, 0], len(chars) - 1)
    last = np.maximum(offsets[:, 1] - 1, first)
    weights = np.where(changes.searchsorted(first) == changes.searchsorted(last), chars[first], np.float32(0))
    weights[:1] = 0
    return weights


def lost_at_edges(text: str, offsets: Offsets, chars: CharWeights, weights: TokenWeights) -> list[str]:
    """Tokens that are not trained although they hold more than white space of what is: they reach over its edge."""
    changes = np.flatnonzero(chars[1:] != chars[:-1])
    holders = np.unique(offsets[:, 1].searchsorted(changes, side="right"))  # the tokens that may lie across them
    holders = holders[(holders > 0) & (holders < len(offsets))]
    return [
        text[start:end]
        for start, end in offsets[holders[weights[holders] == 0]].tolist()
        if any(weight > 0 and not text[start + at].isspace() for at, weight in enumerate(chars[start:end]))
    ]


def _has_weight(message: Message) -> bool:
    return message.weight is None or message.weight > 0 or any(weight > 0 for _, _, weight in message.ranges)


def _check_weights(number: int, message: Message, is_trained: bool) -> None:
    if message.weight is None and not message.ranges:
        return
    given = [weight for _, _, weight in message.ranges]
    if message.weight is not None:
        given.append(message.weight)
    if not all(math.isfinite(weight) and weight >= 0 for weight in given):
        raise ExampleError("a weight is negative or not finite", f"message {number} ({message.role})")
    for start, end, _ in message.ranges:
        if not 0 <= start <= end <= len(message.content):
            raise ExampleError(
                "a range of characters does not lie in its message",
                f"message {number} has {len(message.content)} characters, the range is [{start}, {end})",
            )
    if any(given) and not is_trained:
        raise ExampleError(
            "a message that is not trained has a weight",
            f"message {number} ({message.role}); name the role in --config.data.masking.train_on, or leave weights out "
            "by --config.data.reading.ignore=\"('weight', 'train', 'train_detail')\"",
        )


def _set_ranges(weights: CharWeights, rendered: TemplateText, number: int, message: Message) -> None:
    """Puts the weights of ranges of the content where the content stands in the text."""
    if not message.ranges:
        return
    own = np.full(len(message.content), np.nan, np.float32)  # the weight of each character that has one of its own
    for start, end, weight in message.ranges:
        own[start:end] = weight
    parts = [part for part in rendered.said_by(number) if part.field == "content"]
    for part in parts:
        if not part.verbatim:
            raise ExampleError("the chat template escapes a message that has ranges of characters", f"message {number}")
        _put(weights[part.start : part.end], own[part.offset : part.offset + part.end - part.start])
    for before, behind in itertools.pairwise(parts):
        between, lost = slice(before.end, behind.start), slice(before.offset + before.end - before.start, behind.offset)
        if rendered.text[between].isspace():  # as in the content, or made by the template
            _put(weights[between], _blank_weights(own, lost, behind.start - before.end))


def _put(weights: CharWeights, own: CharWeights) -> None:
    """Puts in those that are given."""
    given = ~np.isnan(own)
    weights[given] = own[given]


def _blank_weights(own: CharWeights, lost: slice, count: int) -> Float32[np.ndarray, "blanks"]:
    """Of white space between two pieces of a content: as in the content, its last character standing for more.

    Where the content has none there, the template made it, and it has the weight of both its neighbours or none.
    """
    if lost.start < lost.stop:
        return np.pad(own[lost][:count], (0, max(count - (lost.stop - lost.start), 0)), mode="edge")
    left, right = own[lost.start - 1], own[lost.stop]
    return np.full(count, left if left == right else np.nan, np.float32)
