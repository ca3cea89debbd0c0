"""Texts of examples: what a record's example becomes before it is encoded, with the weight and message of each
character.

The step between the forms of examples (conversations.py) and the renderer, which encodes the texts. A conversation may
give several texts, see turns.py; if it is too long, it is made into texts again without its oldest turns.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int32

from sft_jax.data.conversations import Chat, Message, Segments, without_leading_answers
from sft_jax.data.rendering.answers import AnswerFormat, answer_format
from sft_jax.data.rendering.masking import Masking
from sft_jax.data.rendering.rendered import ExampleError, Span
from sft_jax.data.rendering.special_tokens import TextEncoder
from sft_jax.data.rendering.templates import PROBE_TOOL, ChatTemplate, Tools
from sft_jax.data.rendering.thinking import thinking_words, without_empty_thinking
from sft_jax.data.rendering.turns import STARTS_WITH_ANSWER, TurnFinder


@dataclasses.dataclass(frozen=True)
class ExampleText:
    """The text of a rendered example, before it is encoded.

    Attributes:
        text: all of it.
        template_spans: characters [start, end) in which special tokens count.
        chars: weight of each character.
        owners: the message of each character; -1 for none.
        roles: of all messages of the example.
        numbers: the messages of the example that are in the text; empty if it is no conversation.
        trained: those of them that are trained in it.
        changed: what was left out of the example.
    """

    text: str
    template_spans: list[Span]
    chars: Float32[np.ndarray, "characters"]
    owners: Int32[np.ndarray, "characters"]
    roles: tuple[str, ...]
    numbers: tuple[int, ...] = ()
    trained: tuple[int, ...] = ()
    changed: str = ""

    def contents(self) -> Iterator[str]:
        """The texts that the template did not write."""
        at = 0
        for start, end in [*self.template_spans, (len(self.text), len(self.text))]:
            if at < start:
                yield self.text[at:start]
            at = end


class ExampleTexts:
    """Makes the texts of examples with one template, tokenizer and masking.

    Attributes:
        template: of the conversations.
    """

    def __init__(self, template: ChatTemplate, encoder: TextEncoder, masking: Masking, end_of_text: str = ""):
        """Binds what makes the texts; `end_of_text` is the tokenizer's end-of-sequence token, if it has one."""
        self.template, self._encoder, self._masking, self._end_of_text = template, encoder, masking, end_of_text
        self._turns = TurnFinder(
            template,
            encoder,
            needs_end=masking.end_of_turn != "none",
            all_ends=masking.end_of_turn == "all",
        )

    def end_of_answer(self, messages: Sequence[Message], number: int = -1) -> str:
        """The token that ends a turn, the last one by default, as text; raises ExampleError where there is none."""
        return self._turns.end_of_answer(messages, number)

    @property
    def next_turn_ends(self) -> str:
        """See `TurnFinder.next_turn_ends`."""
        return self._turns.next_turn_ends

    def answer_text(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """See `TurnFinder.answer_text`."""
        return self._turns.answer_text(messages, tools)

    @functools.cached_property
    def answer_format(self) -> AnswerFormat:
        """How the template writes answers."""

        def write(answer: Message) -> str | None:
            for tools in ((), (PROBE_TOOL,)):
                with contextlib.suppress(ExampleError):  # it takes no such conversation
                    return self.answer_text((Message("user", "a"), answer), tools)
            return None

        return answer_format(write, self.template.searched_words, self.template.opening)

    def texts_of(self, example: Chat | Segments) -> list[ExampleText]:
        """The texts of an example; several where one conversation is rendered in several contexts.

        Raises:
            ExampleError: it cannot be trained on.
        """
        if isinstance(example, Segments):
            return [self._segments(example)]
        trained = self._masking.selects(example.messages)
        if not trained:
            raise ExampleError("nothing to train on", _nothing(example.messages, self._masking))
        try:
            return self._chat(example, range(len(example.messages)), trained)
        except ExampleError as error:
            if error.reason != STARTS_WITH_ANSWER and self._is_because_of_leading_answers(example):
                raise ExampleError(STARTS_WITH_ANSWER, str(error)) from error
            raise

    def _is_because_of_leading_answers(self, chat: Chat) -> bool:
        """Whether a refused conversation can be rendered without what the assistant says before any question."""
        kept = without_leading_answers(chat.messages)
        if kept == chat.messages:
            return False
        with contextlib.suppress(ExampleError):
            return bool(self.texts_of(dataclasses.replace(chat, messages=kept)))
        return False

    def without_oldest(self, chat: Chat, text: ExampleText, units: int) -> list[ExampleText]:
        """The text without its oldest turns; the first system messages and the last question are kept.

        Args:
            chat: the example.
            text: one of its texts.
            units: how many questions to leave out, each with all that follows it.

        Raises:
            ExampleError: there are not so many, or what is left cannot be trained on.
        """
        kept = _kept(chat, text.numbers, units)
        trained = [number for number in text.trained if number in kept]
        if not trained:
            raise ExampleError("nothing to train on", "the trained turns are among the oldest, which are left out")
        changed = f"{len(text.numbers) - len(kept)} of {len(text.numbers)} messages"
        lost = len(text.trained) - len(trained)
        return self._chat(chat, kept, trained, changed + (f", {lost} trained turns" if lost else ""))

    def _chat(self, chat: Chat, numbers: Sequence[int], trained: Sequence[int], changed: str = "") -> list[ExampleText]:
        messages = [chat.messages[number] for number in numbers]
        here = [place for place, number in enumerate(numbers) if number in trained]
        if self._masking.train_on == "all":
            contexts = [self._turns.unproven(messages, chat.tools, here)]
        else:
            contexts = self._turns.contexts(messages, chat.tools, here, self._masking.history == "expand")
            if self._masking.empty_thinking == "leave_out":
                words = thinking_words(self.answer_format)
                contexts = [without_empty_thinking(context, words) for context in contexts]
        roles = tuple(message.role for message in chat.messages)
        # Places in the text become numbers of messages in the example; the place -1 is none.
        names = np.array([*numbers, -1], np.int32) if len(numbers) < len(chat.messages) else None
        return [
            ExampleText(
                context.rendered.text,
                context.rendered.template_spans(),
                self._masking.char_weights(context),
                context.owners() if names is None else names[context.owners()],
                roles,
                tuple(numbers[: len(context.messages)]),
                tuple(numbers[place] for place in context.trained),
                changed,
            )
            for context in contexts
        ]

    def _segments(self, example: Segments) -> ExampleText:
        """The segments one after the other, in which special tokens count."""
        text = "".join(segment.text for segment in example.parts)
        end = self._end_behind(text) if example.ends else ""
        beginning = "" if text.startswith(self._encoder.beginning) else self._encoder.beginning
        sizes = [len(beginning), *(len(segment.text) for segment in example.parts)]
        sizes[-1] += len(end)  # it belongs to the last segment
        weights = np.array([0, *(segment.weight for segment in example.parts)], np.float32)
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ExampleError("a weight is negative or not finite", f"of the segments: {weights[1:].tolist()}")
        owners = np.arange(-1, len(example.parts), dtype=np.int32)
        text = beginning + text + end
        roles = ("",) * len(example.parts)
        return ExampleText(text, [(0, len(text))], np.repeat(weights, sizes), np.repeat(owners, sizes), roles)

    def _end_behind(self, text: str) -> str:
        """The end-of-sequence token, unless the text ends with it already, white space apart."""
        if not self._encoder.find_special(self._end_of_text):
            raise ExampleError(
                "the tokenizer has no end-of-sequence token",
                "give --config.data.reading.text_end=none, and spell the token that ends a text in the rows",
                stops=True,
            )
        return "" if text.rstrip().endswith(self._end_of_text) else self._end_of_text


def _kept(chat: Chat, numbers: Sequence[int], units: int) -> list[int]:
    """The messages that are left without the oldest units: a unit is a question with all that follows it."""
    head = 0
    while head < len(numbers) and chat.messages[numbers[head]].role in ("system", "developer"):
        head += 1
    starts = [place for place in range(head, len(numbers)) if chat.messages[numbers[place]].role == "user"]
    starts = [place for place in starts if place > head]  # what comes before the first of them is the oldest unit
    if units > len(starts):
        raise ExampleError("nothing to leave out", "only the last question and its answer are left")
    return [*numbers[:head], *numbers[starts[units - 1] :]]


def _nothing(messages: Sequence[Message], masking: Masking) -> str:
    """Why there is nothing to train on."""
    roles = masking.roles()
    if not any(message.role in roles for message in messages):
        return f"there is no {' or '.join(roles)}'s turn"
    return "every such turn has the weight 0"
