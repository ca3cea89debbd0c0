"""Answers that are judged as branches of a rendered example: 1 is preferred, or wanted, and 2 is not.

A pair is one example: what both answers begin with once, then each from where they part. Each is rendered in its whole
conversation; what the two have in common is shared by their token ids, so that no token is another than in a
conversation by itself. An answer that was judged by itself is the only branch of its example.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np

from sft_jax.data.conversations import Chat, Preference
from sft_jax.data.rendering.rendered import ExampleError, RenderedExample

ANSWERS = ("chosen", "rejected")  # the branches 1 and 2


def conversations_of(pair: Preference) -> tuple[Chat, Chat]:
    """The whole conversation of each answer; of the prompt nothing is trained."""
    prompt = tuple(message._replace(weight=0.0, ranges=()) for message in pair.prompt)
    return tuple(Chat(prompt + getattr(pair, answer), pair.tools) for answer in ANSWERS)


@contextlib.contextmanager
def named(answer: str) -> Iterator[None]:
    """Errors say in which answer of a pair they are."""
    try:
        yield
    except ExampleError as error:
        error.detail = f"{answer}: {error.detail}"
        error.args = (f"{error.reason}: {error.detail}",)
        raise


def joined(chosen: RenderedExample, rejected: RenderedExample, prompt_messages: int) -> RenderedExample:
    """Two rendered conversations as one example with two branches.

    The trunk is the longest common beginning of their ids that has no target of either.

    Args:
        chosen: the prompt and the answer that is preferred.
        rejected: the prompt and the other answer.
        prompt_messages: messages of the prompt.

    Raises:
        ExampleError: they have nothing in common, or their trained tokens are equal or not all of weight 1.
    """
    both = (chosen, rejected)
    for name, rendered in zip(ANSWERS, both, strict=True):
        if set(rendered.weights[rendered.weights > 0].tolist()) != {1.0}:
            raise ExampleError("an answer of a pair has weights", f"in {name}: leave them out, or weight the whole row")
    trunk = min(
        shared_beginning(chosen.tokens, rejected.tokens), *(int(np.flatnonzero(one.weights)[0]) for one in both)
    )
    if not trunk:
        raise ExampleError("the conversations of a pair do not begin alike", "their first tokens differ")
    if np.array_equal(chosen.tokens, rejected.tokens) and np.array_equal(chosen.weights, rejected.weights):
        raise ExampleError("the answers of a pair are equal", "as tokens, so nothing is preferred")
    tails = [slice(None), slice(trunk, None)]
    together = lambda name: np.concatenate([getattr(one, name)[tail] for one, tail in zip(both, tails, strict=True)])
    begin, messages = int(rejected.offsets[trunk, 0]), rejected.messages.copy()
    messages[messages >= prompt_messages] += len(chosen.roles) - prompt_messages
    offsets = rejected.offsets[trunk:] + len(chosen.text) - begin
    sizes = trunk, len(chosen.tokens) - trunk, len(rejected.tokens) - trunk
    return RenderedExample(
        together("tokens"),
        together("weights"),
        chosen.text + rejected.text[begin:],
        np.concatenate([chosen.offsets, offsets]),
        np.concatenate([chosen.messages, messages[trunk:]]),
        chosen.roles + rejected.roles[prompt_messages:],
        "; ".join(f"{name}: {one.changed}" for name, one in zip(ANSWERS, both, strict=True) if one.changed),
        np.repeat(np.arange(3, dtype=np.uint8), sizes),
    )


def judged(rendered: RenderedExample, desirable: bool) -> RenderedExample:
    """A rendered conversation as an example with one branch, its answer.

    Raises:
        ExampleError: nothing stands before its answer, or its trained tokens are not all of weight 1.
    """
    if set(rendered.weights[rendered.weights > 0].tolist()) != {1.0}:
        raise ExampleError("an answer that is judged has weights", "leave them out, or weight the whole row")
    trunk = int(np.flatnonzero(rendered.weights)[0])
    if not trunk:
        raise ExampleError("nothing stands before the answer", "its first token is trained")
    branches = np.where(np.arange(len(rendered.tokens)) < trunk, 0, 1 if desirable else 2)
    return dataclasses.replace(rendered, branches=branches.astype(np.uint8))


def check_fits(pair: RenderedExample, max_tokens: int, *, stops: bool) -> None:
    """Checks that a prompt with its answers has room in a sequence: no answer is ever cut.

    Args:
        pair: of `joined` or `judged`.
        max_tokens: the most it may have; 0: any number.
        stops: one that is too long stops the run.

    Raises:
        ExampleError: it has not, or not even its prompt.
    """
    size, prompt = len(pair.tokens), int(np.count_nonzero(pair.branches == 0))
    if not max_tokens or size <= max_tokens:
        return
    answers = len(set(pair.branches.tolist())) - 1
    if prompt + answers > max_tokens:
        reason = (
            f"a prompt that leaves no room for {'two answers' if answers > 1 else 'an answer'} in {max_tokens} tokens"
        )
        raise ExampleError(reason, f"{prompt} of {size} tokens", stops=stops, tokens=size)
    kept_whole = "neither answer of a pair is cut" if answers > 1 else "an answer that is judged is not cut"
    detail = f"{size} tokens, {prompt} of the prompt; {kept_whole}"
    raise ExampleError(f"longer than {max_tokens} tokens", detail, stops=stops, tokens=size)


def shared_beginning(one: np.ndarray, other: np.ndarray) -> int:
    """How many ids both begin with."""
    size = min(len(one), len(other))
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if len(differ) else size
