"""Turns: where in a rendered conversation the model writes, proven against what the template shows it at inference.

The step between templates.py (text and parts) and masking.py (weights). The turn of an assistant goes from the end of
the generation prompt, where the model takes over, to the end-of-turn token. Two renderings prove it, byte for byte: the
prompt of the turn must be the beginning of the text, and so must the text up to the end-of-turn where the conversation
ends with that turn. A conversation that ends with an answer has the form of generation, see generated_form.py. Where
the template shows a turn otherwise once others follow (it removes the reasoning), the turn is trained in an example
that ends with it, or the conversation is refused.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence

from sft_jax.data.conversations import Message
from sft_jax.data.rendering.generated_form import GeneratedForm
from sft_jax.data.rendering.outlines import shared_length
from sft_jax.data.rendering.rendered import ExampleError, Span
from sft_jax.data.rendering.special_tokens import TextEncoder
from sft_jax.data.rendering.template_text import CharOwners, TemplateText
from sft_jax.data.rendering.templates import PROBE_TOOL, ChatTemplate, Tools

NO_END_OF_TURN = "the chat template has no end-of-turn token after an answer"
STARTS_WITH_ANSWER = "the conversation starts with the assistant"
_REWRITTEN = "the chat template shows the model another history at inference than in training"
_UNMET = "an answer does not begin with what prompts end with"


@dataclasses.dataclass(frozen=True)
class Turn:
    """What a message says in the text of an example.

    Attributes:
        spans: characters that are trained, end-of-turn included; more than one where the template marks them, none for
            a message that is not trained.
        end_of_turn: the token that ends the turn; None where there is none.
    """

    spans: tuple[Span, ...]
    end_of_turn: Span | None


@dataclasses.dataclass(frozen=True)
class Context:
    """One rendered example to be made: a conversation, and the messages of it that are trained in this example.

    Attributes:
        messages: the conversation.
        rendered: its text.
        turns: of each message.
        trained: numbers of the messages trained here.
    """

    messages: Sequence[Message]
    rendered: TemplateText
    turns: tuple[Turn, ...]
    trained: tuple[int, ...]

    def owners(self) -> CharOwners:
        """The message of each character; what ends a turn belongs to it, also where the next turn begins with it."""
        owners = self.rendered.owners()
        for number, turn in enumerate(self.turns):
            if turn.end_of_turn is not None:
                owners[slice(*turn.end_of_turn)] = number
        return owners


class _RewrittenError(ExampleError):
    """A turn is shown otherwise in this context than at inference; another context may do."""


class TurnFinder:
    """Finds and proves turns for one template and tokenizer."""

    def __init__(self, template: ChatTemplate, encoder: TextEncoder, *, needs_end: bool = True, all_ends: bool = False):
        """Binds template and tokenizer.

        Args:
            template: of the model.
            encoder: of the tokenizer.
            needs_end: an answer without an end-of-turn, or with one that the template does not mark, is an error.
            all_ends: ends of turns that are not trained are wanted too.
        """
        self._template, self._encoder = template, encoder
        self._form = GeneratedForm(template, encoder)
        self._needs_end, self._all_ends = needs_end, all_ends

    def contexts(
        self, messages: Sequence[Message], tools: Tools, trained: Sequence[int], expand: bool
    ) -> list[Context]:
        """The contexts that train each message of `trained` once, each message in the context that inference would
        show.

        Args:
            messages: a conversation.
            tools: what it may call.
            trained: numbers of messages.
            expand: make an example of its own for a turn that the whole conversation shows otherwise than when it was
                the last one.

        Raises:
            ExampleError: a turn cannot be found or proven; or it needs an example of its own and `expand` is not given.
        """
        left, found = set(trained), []
        while left:
            rendered = self._form.rendered(messages, tools)
            self._check_marks(rendered, messages)
            proven = {}
            for number in sorted(left):
                try:
                    proven[number] = self._turn(rendered, messages, tools, number)
                except _RewrittenError as error:
                    if not expand or number == len(messages) - 1:
                        advice = self._advice(messages, tools, trained, number, error)
                        raise ExampleError(error.reason, f"{error.detail}; {advice}") from error
            turns = tuple(
                proven[number] if number in proven else Turn((), self._untrained_end(rendered, messages, number))
                for number in range(len(messages))
            )
            if proven:
                found.append(Context(messages, rendered, turns, tuple(proven)))
            left -= set(proven)
            messages = messages[: max(left, default=0) + 1]
        return _ends_once(found[::-1], set(trained))

    def _advice(
        self, messages: Sequence[Message], tools: Tools, trained: Sequence[int], number: int, error: "_RewrittenError"
    ) -> str:
        """Advice for a turn that is shown otherwise: an example that ends with it, if that works for all of them."""
        if number < len(messages) - 1:
            try:
                self.contexts(messages, tools, trained, expand=True)
            except ExampleError as other:  # they cannot be proven there either
                if other.reason == _UNMET:
                    raise other from error
            else:
                return "--config.data.masking.history=expand makes an example that ends with it"
        if error.reason == NO_END_OF_TURN:
            return "give a template that ends each turn in the same way"
        return "give a template that does not rewrite earlier turns, or mark the answers with {% generation %}"

    def unproven(self, messages: Sequence[Message], tools: Tools, trained: Sequence[int]) -> Context:
        """The conversation as one context in which everything is trained, turns and the text around them alike.

        Raises:
            ExampleError: the template refuses the conversation, or changes what it says.
        """
        rendered = self._form.rendered(messages, tools)
        turns = (Turn((), self._end_of_turn(rendered, messages, number)) for number in range(len(messages)))
        return Context(messages, rendered, tuple(turns), tuple(trained))

    def end_of_answer(self, messages: Sequence[Message], number: int = -1) -> str:
        """The token that ends a turn of a conversation, the last one by default, as text.

        A template may want tools to tell.

        Raises:
            ExampleError: there is none, or the template refuses the conversation.
        """
        try:
            return self._end_of(messages, (), number)
        except ExampleError:
            with contextlib.suppress(ExampleError):
                return self._end_of(messages, (PROBE_TOOL,), number)
            raise

    def answer_text(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """The last turn as the template writes it: from where the model takes over, without its end-of-turn.

        Raises:
            ExampleError: the template refuses the conversation, or changes what it says.
        """
        rendered, last = self._form.rendered(messages, tools), len(messages) - 1
        prompt = self._template.render(messages[:-1], tools, True)
        if rendered.text.startswith(prompt):
            start = len(prompt)
        else:  # the prompt is written otherwise, or ends with what the model need not write
            own = [part.start for part in rendered.said_by(last)]
            marked = [begin for begin, _ in rendered.generation if begin >= rendered.starts[last]]
            start = min([*own, *marked], default=rendered.starts[last])
        end = self._end_of_turn(rendered, messages, last, start)
        return rendered.text[start : len(rendered.text) if end is None else end[0]]

    def _end_of(self, messages: Sequence[Message], tools: Tools, number: int) -> str:
        rendered = self._form.rendered(messages, tools)
        return rendered.text[slice(*self._required_end(rendered, messages, range(len(messages))[number]))]

    @property
    def next_turn_ends(self) -> str:
        """See `GeneratedForm.next_turn_ends`."""
        return self._form.next_turn_ends

    @functools.cached_property
    def _plain_end(self) -> str:
        """What ends an answer without calls; empty where that is not known."""
        try:
            return self.end_of_answer((Message("user", "a"), Message("assistant", "b")))
        except ExampleError:  # a template may want another conversation
            return ""

    def _turn(self, rendered: TemplateText, messages: Sequence[Message], tools: Tools, number: int) -> Turn:
        """The turn of a message that is trained, proven if the model is to write it."""
        if messages[number].role != "assistant":
            return self._said_by_others(rendered, messages, number)
        if self._template.marks_generation:
            turn = self._marked(rendered, messages, number)
        else:
            turn = self._between_prompt_and_end(rendered, messages, tools, number)
        self._prove_end(rendered, messages, tools, number, turn)
        missing = sorted(field for owner, field in rendered.missing if owner == number)
        if missing:
            raise ExampleError(
                "the chat template leaves out part of an answer",
                f"message {number}: {', '.join(missing)} or some of it",
            )
        return turn

    def _said_by_others(self, rendered: TemplateText, messages: Sequence[Message], number: int) -> Turn:
        """From the beginning of the content to the end of the token that ends the turn, where there is one."""
        parts = rendered.said_by(number)
        end_of_turn = self._end_of_turn(rendered, messages, number)
        if not parts:
            return Turn((), end_of_turn)
        end = parts[-1].end if end_of_turn is None else end_of_turn[1]
        return Turn(((parts[0].start, end),), end_of_turn)

    def _marked(self, rendered: TemplateText, messages: Sequence[Message], number: int) -> Turn:
        """The {% generation %} blocks of an answer, from which the end-of-turn may not be left out."""
        first, last = rendered.starts[number], _end_of_message(rendered, number)
        spans = tuple(span for span in rendered.generation if first <= span[0] < last)
        if not spans:
            raise ExampleError("nothing to train on", f"the chat template marks nothing of message {number}")
        if not self._needs_end:
            return Turn(spans, self._end_of_turn(rendered, messages, number))
        stop = self._required_end(rendered, messages, number)
        if not any(start <= stop[0] and stop[1] <= end for start, end in spans):
            raise ExampleError(
                "the {% generation %} block of the chat template leaves out the end-of-turn",
                f"{rendered.text[slice(*stop)]!r} would not be trained and the model would never stop; "
                "move {% endgeneration %} behind it",
            )
        return Turn(spans, stop)

    def _between_prompt_and_end(
        self, rendered: TemplateText, messages: Sequence[Message], tools: Tools, number: int
    ) -> Turn:
        """From the end of the generation prompt to the end of the end-of-turn."""
        if number == 0:
            raise ExampleError(STARTS_WITH_ANSWER, "there is no prompt to answer")
        prompt = self._template.render(messages[:number], tools, True)
        if not rendered.text.startswith(prompt):
            opening = self._template.opening
            if opening and not messages[number].content.startswith(opening):
                raise ExampleError(
                    _UNMET,
                    f"message {number} is to begin with {opening!r}: spell its thought in the content, or give a "
                    "template whose prompts open none",
                )
            if number == len(messages) - 1 and messages[number - 1].role != "assistant":
                self._check_ending(rendered, messages, tools)
            raise _RewrittenError(
                _REWRITTEN,
                f"the prompt for message {number} is not the beginning of the whole conversation",
            )
        if self._needs_end:
            end_of_turn = self._required_end(rendered, messages, number, len(prompt))
        else:
            end_of_turn = self._end_of_turn(rendered, messages, number, len(prompt))
        last = max([len(prompt), *(part.end for part in rendered.parts_of(number))])
        span = (len(prompt), last if end_of_turn is None else end_of_turn[1])
        for part in rendered.parts:
            if (part.message == number) != (span[0] <= part.start and part.end <= span[1]) and part.start < part.end:
                raise ExampleError(
                    "the chat template mixes an answer with what others say",
                    f"{part.field} of message {part.message} and the answer, message {number}",
                )
        return Turn((span,), end_of_turn)

    def _check_ending(self, rendered: TemplateText, messages: Sequence[Message], tools: Tools) -> None:
        """The prompt of the last answer must not part from the conversation in what it ends with alone."""
        at, ending = self._form.ending(rendered, messages, tools)
        if not ending:
            return
        switch = self._template.switch_for(messages, tools)
        advice = f"put {switch} before the template, in a file given as --config.model.chat_template, or change the row"
        raise ExampleError(
            _UNMET,
            f"the prompt for message {len(messages) - 1} ends with {ending!r}, where the template begins the answer "
            f"with {rendered.text[at : at + 20]!r}; {advice if switch else 'change the row, or give another template'}",
        )

    def _prove_end(
        self, rendered: TemplateText, messages: Sequence[Message], tools: Tools, number: int, turn: Turn
    ) -> None:
        """The text up to the end of the turn must be the same where the conversation ends with it."""
        if number == len(messages) - 1:
            return
        alone = self._template.render(messages[: number + 1], tools) + self._form.closing(messages[number])
        end = max(end for _, end in turn.spans)
        if alone.startswith(rendered.text[:end]):
            return
        if turn.end_of_turn is not None and alone.startswith(rendered.text[: turn.end_of_turn[0]]):
            raise _RewrittenError(
                NO_END_OF_TURN,
                f"{rendered.text[slice(*turn.end_of_turn)]!r} follows message {number} because of what comes next; "
                f"where the conversation ends there it is followed by {alone[turn.end_of_turn[0] :]!r}",
            )
        shared = shared_length(alone, rendered.text)
        raise _RewrittenError(
            _REWRITTEN,
            f"message {number} is {_excerpt(rendered.text, shared)} in the whole conversation and "
            f"{_excerpt(alone, shared)} where it is the last one",
        )

    def _check_marks(self, rendered: TemplateText, messages: Sequence[Message]) -> None:
        for part in rendered.parts if rendered.generation else ():
            inside = any(start < part.end and part.start < end for start, end in rendered.generation)
            if inside and (part.message < 0 or messages[part.message].role != "assistant"):
                whose = f"message {part.message} ({messages[part.message].role})" if part.message >= 0 else "tools"
                raise ExampleError(
                    "a {% generation %} block of the chat template covers a message that is not the assistant's", whose
                )

    def _untrained_end(self, rendered: TemplateText, messages: Sequence[Message], number: int) -> Span | None:
        return self._end_of_turn(rendered, messages, number) if self._all_ends else None

    def _required_end(
        self, rendered: TemplateText, messages: Sequence[Message], number: int, begin: int | None = None
    ) -> Span:
        found = self._end_of_turn(rendered, messages, number, begin)
        if found is None:
            start, end = _tail(rendered, number, begin)
            raise ExampleError(
                NO_END_OF_TURN,
                f"{rendered.text[start:end]!r} follows message {number}; without one the model would never stop",
            )
        return found

    def _end_of_turn(
        self, rendered: TemplateText, messages: Sequence[Message], number: int, begin: int | None = None
    ) -> Span | None:
        """The special token that ends a turn.

        For an answer it is the first one behind it; behind calls, of which the template may mark the ends with special
        tokens too, the one that ends other answers, or else the last one. For what others say it is the first one that
        still belongs to it.
        """
        start, end = _tail(rendered, number, begin)
        message = messages[number]
        if message.role != "assistant":
            end = min(end, max(_end_of_message(rendered, number), start))
        special = self._encoder.find_special(rendered.text, start, end)
        if not special or not message.tool_calls:
            return special[0] if special else None
        usual = [span for span in special if rendered.text[slice(*span)] == self._plain_end]
        own = [span for span in special if span[1] <= _end_of_message(rendered, number)]
        return usual[0] if usual else own[-1] if own else special[0]


def _ends_once(contexts: list[Context], trained: set[int]) -> list[Context]:
    """The contexts, with the end of an untrained turn kept only in the first that has it."""
    done, found = set(trained), []
    for context in contexts:
        numbers = range(len(context.turns))
        turns = tuple(
            turn if number in context.trained or number not in done else Turn((), None)
            for number, turn in zip(numbers, context.turns, strict=True)
        )
        done |= set(numbers)
        found.append(dataclasses.replace(context, turns=turns))
    return found


def _tail(rendered: TemplateText, number: int, begin: int | None) -> Span:
    """The text between what a message says (`begin`, where it says nothing) and what the next one says."""
    own = [part.end for part in rendered.said_by(number)]
    start = max(own) if own else rendered.starts[number] if begin is None else begin
    following = [part.start for part in rendered.parts if part.start >= start and part.message != number]
    return start, min(following, default=len(rendered.text))


def _end_of_message(rendered: TemplateText, number: int) -> int:
    return rendered.starts[number + 1] if number + 1 < len(rendered.starts) else len(rendered.text)


def _excerpt(text: str, position: int) -> str:
    """Some characters around a position, quoted."""
    return repr(text[max(position - 20, 0) : position + 20])
