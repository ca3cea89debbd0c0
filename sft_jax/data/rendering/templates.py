"""Chat templates: what a template makes of a conversation, and which characters of the result came from where.

Used by the renderer. A template is a program, so nothing is assumed about it: it is run once with the contents and once
with marks in their place, and the two results must agree byte for byte.
"""

import collections
import contextlib
import datetime
import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from sft_jax.data.conversations import Message, ToolCall
from sft_jax.data.rendering.outlines import (
    CLOSE,
    OPEN,
    MessageOutline,
    Outline,
    Outliner,
    Part,
    Skeleton,
    arguments_of,
    as_json,
    marked,
    message_fields,
    shared_length,
    words_of,
)
from sft_jax.data.rendering.prompt_endings import closing_tag, is_whole_thought, parting
from sft_jax.data.rendering.rendered import ExampleError, Span
from sft_jax.data.rendering.template_engine import GENERATION_END, GENERATION_START, ChatTemplateEnvironment, LoopError
from sft_jax.data.rendering.template_text import TemplateText

Tools = Sequence[Mapping[str, Any]]

# Given to a template that takes no conversation without tools, where it is asked how it writes.
PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "c"}}},
    },
}
_TOOL_FIELDS = ("tools", "functions")  # of a system message, of templates that know no variable `tools`
_SWITCHES = ("enable_thinking", "thinking")  # variables by which templates are told whether to think
_PRINTED_PART = re.compile(r"""\{['"]type['"]""")  # of a list that a template wrote as it is
_GENERATION_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_RAISED = (  # by a program that is given what it does not expect
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """A Jinja chat template with the special tokens it may name, rendered as transformers does.

    How it takes contents, reasoning, calls and tools is found by asking it.

    Attributes:
        source: Jinja.
        marks_generation: it has {% generation %} blocks.
        in_parts: contents must be lists of parts.
        reasoning_in_parts: reasoning is a part of type "thinking" before the content, and no field of its own.
        tools_field: the field of the system message that takes the definitions of tools, as JSON text; empty where
            `tools` is a variable, or nothing takes them.
        opening: what the prompt ends with that the template itself does not write before an answer, such as "<think>":
            answers are to spell it. Empty for most.
        empty_thought: what the prompt ends with and the template does not write before an answer, where it says that
            nothing is thought: see `says_no_thought`. Empty for most.
    """

    def __init__(
        self, source: str, special_tokens: dict, special: re.Pattern, now: datetime.datetime, beginning: str = ""
    ):
        """Compiles the template.

        Args:
            source: Jinja.
            special_tokens: variables of the template.
            special: finds special tokens that are text where contents spell them.
            now: the time that the template is told.
            beginning: what the tokenizer begins every sequence with; put before a text that does not begin with it.

        Raises:
            ValueError: it is not valid Jinja.
        """
        for mark in (OPEN, CLOSE, GENERATION_START, GENERATION_END):
            if mark in source:
                raise ValueError(f"The chat template holds the character U+{ord(mark):04X}, which is needed as a mark.")
        self.source = source
        self.marks_generation = bool(_GENERATION_MARK.search(source))
        self._beginning = beginning
        self._environment = ChatTemplateEnvironment(now)
        try:
            self._template = self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"The chat template is not valid Jinja (line {error.lineno}): {error}") from error
        self._variables = dict(special_tokens) | {"documents": None}
        # What a template writes depends on the outline once contents are marks: one skeleton serves many examples.
        self._skeleton = functools.lru_cache(maxsize=4096)(self._find_skeleton)
        self._starts = functools.lru_cache(maxsize=4096)(self._find_starts)
        self._takes_out = functools.lru_cache(maxsize=16)(self._find_taken_out)
        self._no_content, self.in_parts, self.reasoning_in_parts, self.tools_field = "", False, False, ""
        self._outliner = Outliner(source, special)
        self.in_parts = self._takes_parts_alone()
        self._fit_calls(source, special)
        self.reasoning_in_parts = self._takes_reasoning_in_parts()
        self.tools_field = self._find_tools_field()
        self.opening, self.empty_thought = self._find_ending(special)
        self._outliner = Outliner(source, special, self.arguments_as_text, self.opening)

    @property
    def searched_words(self) -> tuple[str, ...]:
        """What the template searches contents for."""
        return self._outliner.words

    @property
    def arguments_as_text(self) -> bool:
        """Whether calls must carry their arguments as JSON text."""
        return self._outliner.arguments_as_text

    def render(self, messages: Sequence[Message], tools: Tools = (), generation_prompt: bool = False) -> str:
        """The text, as `tokenizer.apply_chat_template(..., tokenize=False)` gives it, and the beginning before it.

        Raises:
            ExampleError: the template refuses the conversation, fails, or loops for too long.
        """
        return self._run([self._fields(message) for message in messages], tools, generation_prompt)

    def says_no_thought(self, ending: str, rest: str) -> bool:
        """Whether a prompt with this ending may stand before an answer: with it, the answer thinks nothing.

        The ending opens a thought that the answer closes at once; or it is a whole one, in tags, or in words that the
        template itself takes out of answers that spell them.

        Args:
            ending: of a prompt, which the template does not write before the answer.
            rest: the answer as the template writes it in its place.
        """
        if closing := closing_tag(ending):
            return rest.lstrip().startswith(closing)
        return is_whole_thought(ending) or self._takes_out(ending)

    def switch_for(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """The line of Jinja that, before the template, lets the last answer begin as its prompt ends; empty if unknown.

        Args:
            messages: end with an answer.
            tools: what it may call.
        """
        fields = [self._fields(message) for message in messages]
        for name, value in itertools.product(_SWITCHES, (True, False)):
            if not re.search(rf"\b{name}\b", self.source):
                continue
            with contextlib.suppress(ExampleError):
                prompt = self._run(fields[:-1], tools, True, **{name: value})
                if self._run(fields, tools, False, **{name: value}).startswith(prompt):
                    return f"{{%- set {name} = {str(value).lower()} %}}"
        return ""

    def render_with_parts(
        self, messages: Sequence[Message], tools: Tools = (), generation_prompt: bool = False
    ) -> TemplateText:
        """The text and where in it the contents stand.

        Raises:
            ExampleError: the template refuses the conversation, changes what a message says (other than to strip or
                escape it), or leaves out a message or the tools.
        """
        fields = [self._fields(message) for message in messages]
        track = self.marks_generation and not generation_prompt
        text = self._run(fields, tools, generation_prompt, track)
        text, generation = _take_marks(text, messages) if track else (text, ())
        outline, skeleton, parts = self._lay_over(text, messages, tools, generation_prompt)
        shown = {(part.message, part.field) for part in parts}
        wanted = {(piece.message, piece.field) for piece in outline.pieces if piece.text.strip()}
        self._check_shown(outline, shown, wanted, generation_prompt)
        literal_starts = skeleton.literal_starts(parts)
        starts = self._starts(outline.messages, outline.tools, generation_prompt)
        places = tuple(literal_starts[literal] + offset for literal, offset in starts)
        # A piece of a content may be left out where another piece of it is shown.
        missing = wanted - shown
        if len(parts) < len(outline.pieces):
            numbers = set(skeleton.numbers)
            left_out = (piece for number, piece in enumerate(outline.pieces) if number not in numbers)
            missing |= {(piece.message, piece.field) for piece in left_out if piece.text.strip()}
        missing |= self._without_words(messages, text, places)
        words = words_of(text, parts, outline.pieces, messages)
        rendered = TemplateText(text, parts, frozenset(missing), places, generation, words)
        for number, message in enumerate(messages):
            if message.tool_calls:
                _check_calls(rendered, number, message)
        return rendered

    def _without_words(self, messages: Sequence[Message], text: str, starts: Sequence[int]) -> set[tuple[int, str]]:
        """Contents of which words that the template searches for are left out, like the tags of empty reasoning."""
        ends = [*starts[1:], len(text)]
        return {
            (number, "content")
            for number, (message, start, end) in enumerate(zip(messages, starts, ends, strict=True))
            for word in self._outliner.searched_in(message.content)
            if text.count(word, start, end) < message.content.count(word)
        }

    def _takes_parts_alone(self) -> bool:
        """Whether contents must be lists of parts, as the templates of some multimodal models have it.

        Such a template loses a content that is a string, or fails.
        """
        turns = tuple(Message(role, "a") for role in ("system", "user", "assistant"))
        for messages, tools in itertools.product((turns, turns[1:]), ((), (PROBE_TOOL,))):
            outline = self._outliner.outline(messages, tools)
            for self.in_parts in (False, True):
                with contextlib.suppress(ExampleError):
                    skeleton = self._skeleton(outline.messages, outline.tools, False)
                    if set(range(len(messages))) <= set(skeleton.numbers):
                        return self.in_parts
                self._skeleton.cache_clear()
        return False

    def _fit_calls(self, source: str, special: re.Pattern) -> None:
        """Finds how the template takes a call: no content as "" or as None, arguments as an object or as JSON text."""
        calling = Message("assistant", "", tool_calls=(ToolCall("f", {"a": "b"}, "abcdefghi"),))
        for tools, no_content, as_text in itertools.product(((), (PROBE_TOOL,)), ("", None), (False, True)):
            self._no_content, self._outliner = no_content, Outliner(source, special, as_text)
            outline = self._outliner.outline((Message("user", "a"), calling), tools, blanks_stay=True)
            try:
                skeleton = self._skeleton(outline.messages, outline.tools, False)
            except ExampleError:
                continue
            finally:
                self._skeleton.cache_clear()
            if 1 in skeleton.numbers:
                return
        self._no_content, self._outliner = "", Outliner(source, special)

    def _takes_reasoning_in_parts(self) -> bool:
        """Whether reasoning is shown as a part of the content, where it is not shown as a field of the message."""
        asked = (Message("user", "a"), Message("assistant", "b", reasoning="c"))
        for tools in ((), (PROBE_TOOL,)):
            outline = self._outliner.outline(asked, tools)
            number = next(n for n, piece in enumerate(outline.pieces) if piece.field == "reasoning")
            for self.reasoning_in_parts in (False, True):
                with contextlib.suppress(ExampleError):
                    skeleton = self._skeleton(outline.messages, outline.tools, False)
                    if number in skeleton.numbers and not _PRINTED_PART.search(skeleton.text):
                        return self.reasoning_in_parts
                self._skeleton.cache_clear()
        return False

    def _find_taken_out(self, ending: str) -> bool:
        """Whether an answer that spells the ending is shown without it."""
        asked = Message("user", "a")
        for tools in ((), (PROBE_TOOL,)):
            with contextlib.suppress(ExampleError):
                plain = self.render((asked, Message("assistant", "b")), tools)
                return plain == self.render((asked, Message("assistant", f"{ending}b")), tools)
        return False

    def _find_tools_field(self) -> str:
        """The field of the system message that shows tools, where the variable does not."""
        turns = tuple(Message(role, "a") for role in ("system", "user", "assistant"))
        try:
            without = self.render(turns)
            if self.render(turns, (PROBE_TOOL,)) != without:
                return ""
        except ExampleError:
            return ""
        for self.tools_field in _TOOL_FIELDS:
            with contextlib.suppress(ExampleError):
                if self.render(turns, (PROBE_TOOL,)) != without:
                    return self.tools_field
        return ""

    def _find_ending(self, special: re.Pattern) -> tuple[str, str]:
        """What prompts write behind the header of an answer and the whole conversation does not: `opening`, or
        `empty_thought`.
        """
        asked = (Message("user", "a"),)
        for tools in ((), (PROBE_TOOL,)):
            with contextlib.suppress(ExampleError):
                prompt = self.render(asked, tools, True)
                whole = self.render((*asked, Message("assistant", "b")), tools)
                at = parting(prompt, whole, [found.span() for found in special.finditer(prompt)], len(whole))
                ending, rest = prompt[at:], whole[at:]
                if not ending.strip():
                    return "", ""
                if self.says_no_thought(ending, rest):
                    return "", ending
                return (ending if rest.startswith("b") else ""), ""
        return "", ""

    def _fields(self, message: Message) -> dict[str, Any]:
        as_text = self._outliner.arguments_as_text
        calls = [(call.name, call.id, arguments_of(call, as_text)) for call in message.tool_calls]
        content = self._no_content if calls and not message.content else message.content
        return message_fields(message.role, content, message.reasoning, calls, message.name, message.tool_call_id)

    def _lay_over(
        self, text: str, messages: Sequence[Message], tools: Tools, generation_prompt: bool
    ) -> tuple[Outline, Skeleton, tuple[Part, ...]]:
        """The outline whose skeleton the text is, once with blank contents as holes and once as they are."""
        for blanks_stay in (False, True):
            outline = self._outliner.outline(messages, tools, blanks_stay)
            try:
                skeleton = self._skeleton(outline.messages, outline.tools, generation_prompt)
            except ExampleError:  # it refuses marks, not the conversation
                continue
            parts = skeleton.fill(text, outline.pieces)
            if parts is not None:
                return outline, skeleton, parts
        raise ExampleError(
            "the chat template changes what a message says",
            "its text is not the template's own text with the contents put in, so it cannot be told which part is the "
            "answer; adapt the template or the row",
        )

    def _check_shown(
        self, outline: Outline, shown: set[tuple[int, str]], wanted: set[tuple[int, str]], generation_prompt: bool
    ) -> None:
        """Reasoning may be left out, where it is of an earlier turn; what is said may not, nor calls, nor tools."""
        missing = sorted((number, field) for number, field in wanted - shown if number >= 0 and field != "reasoning")
        if missing:
            names = (f"message {number} ({outline.messages[number].role}): {field}" for number, field in missing)
            raise ExampleError("the chat template leaves out a message", ", ".join(names))
        if outline.tools:
            with_tools = self._skeleton(outline.messages, outline.tools, generation_prompt)
            if (-1, "tools") in wanted - shown or with_tools == self._skeleton_without_tools(
                outline, generation_prompt
            ):
                advice = "take a template that writes `tools`"
                if self.tools_field:
                    advice = "the template writes them in a system message: give the conversation one"
                raise ExampleError(
                    "the chat template does not show the definitions of tools",
                    f"the model would not know what it may call; {advice}",
                )

    def _skeleton_without_tools(self, outline: Outline, generation_prompt: bool) -> Skeleton | None:
        try:
            return self._skeleton(outline.messages, "", generation_prompt)
        except ExampleError:
            return None

    def _find_skeleton(self, messages: tuple[MessageOutline, ...], tools: str, generation_prompt: bool) -> Skeleton:
        fields, definitions = marked(Outline(messages, tools, ()))
        for message in fields:
            if not message["content"] and "tool_calls" in message:
                message["content"] = self._no_content
        return Skeleton.of(self._run(fields, definitions, generation_prompt))

    def _find_starts(
        self, messages: tuple[MessageOutline, ...], tools: str, generation_prompt: bool
    ) -> tuple[tuple[int, int], ...]:
        """Where each message begins, as (literal of the skeleton, offset in it).

        Behind the last mark of earlier messages, a message begins where the conversation that ends before it parts from
        the whole one, and not behind its own first mark.
        """
        whole = self._skeleton(messages, tools, generation_prompt)
        spans = _mark_spans(whole)
        owners = _hole_owners(messages, tools)
        begins = [self._first_start(whole, messages, spans, owners)]
        for number in range(1, len(messages)):
            before = max((spans[n] for n, owner in enumerate(owners) if owner < number and n in spans), default=(0, 0))
            behind = [spans[n][0] for n, owner in enumerate(owners) if owner >= number and n in spans]
            try:
                shorter = self._skeleton(messages[:number], tools, False).text
            except ExampleError:
                shorter = ""
            mark = whole.text[slice(*before)]
            shared = before[1] + shared_length(
                whole.text[before[1] :], shorter.rpartition(mark)[2] if mark else shorter
            )
            begins.append(max(min([shared, *behind]), before[1], begins[-1]))
        return tuple(_in_literal(whole, begin) for begin in begins)

    def _first_start(
        self, whole: Skeleton, messages: tuple[MessageOutline, ...], spans: dict[int, Span], owners: list[int]
    ) -> int:
        """Where the first message's own header begins: as far as it is that of such a message in third place."""
        own = [spans[n][0] for n, owner in enumerate(owners) if owner == 0 and n in spans]
        before = whole.text[: min(own, default=0)]
        first = messages[0]
        asked = (first, MessageOutline("assistant" if first.role != "assistant" else "user", OPEN + CLOSE), first)
        try:
            probe, two = self._probe(asked), self._probe(asked[:2])
        except ExampleError:
            return len(self._beginning) if before.startswith(self._beginning) else 0
        header = probe.literals[-2] if len(probe.literals) > 1 else ""
        tail = shared_length(header, two.literals[-1])
        return len(before) - shared_length(before[::-1], header[tail:][::-1])

    def _probe(self, messages: tuple[MessageOutline, ...]) -> Skeleton:
        """The skeleton of messages, with a tool where the template takes none without."""
        try:
            return self._skeleton(messages, "", False)
        except ExampleError:
            with contextlib.suppress(ExampleError):
                return self._skeleton(messages, as_json([PROBE_TOOL]), False)
            raise

    def _run(
        self,
        messages: list[dict[str, Any]],
        tools: Sequence[Any],
        generation_prompt: bool,
        track: bool = False,
        **switches: bool,
    ) -> str:
        if not messages:
            raise ExampleError("the conversation is empty")
        definitions = list(tools) or None
        if self.tools_field and definitions:
            if messages[0]["role"] == "system":
                messages = [messages[0] | {self.tools_field: as_json(definitions)}, *messages[1:]]
            definitions = None
        given = {
            "messages": [self._with_parts(message) for message in messages],
            "tools": definitions,
            "add_generation_prompt": generation_prompt,
            "mark_generation": track,
        }
        try:
            text = self._environment.run(self._template, self._variables | given | switches)
        except LoopError as error:
            raise ExampleError("the chat template loops for too long", str(error), stops=True) from error
        except _RAISED as error:
            raise ExampleError("the chat template refuses the conversation", str(error)) from error
        return text if text.startswith(self._beginning) else self._beginning + text

    def _with_parts(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message with its content, or its reasoning and its content, as parts where the template takes these."""
        thinks = self.reasoning_in_parts and "reasoning_content" in message
        if not (self.in_parts or thinks):
            return message
        thought = [{"type": "thinking", "thinking": message["reasoning_content"]}] if thinks else []
        said = [{"type": "text", "text": message["content"]}] if message["content"] else []
        return message | {"content": thought + said}


def _check_calls(rendered: TemplateText, number: int, message: Message) -> None:
    """Every call must stand with its name in what the template itself writes; its strings are looked after as parts."""
    start, *later = [*rendered.starts[number:], len(rendered.text)]
    own = "".join(rendered.text[max(a, start) : min(b, later[0])] for a, b in rendered.template_spans() if b > start)
    for name, count in collections.Counter(call.name for call in message.tool_calls).items():
        if own.count(name) < count:
            raise ExampleError(
                "the chat template leaves out a message",
                f"message {number} ({message.role}): shows {own.count(name)} of {count} calls of {name}",
            )


def _take_marks(text: str, messages: Sequence[Message]) -> tuple[str, tuple[Span, ...]]:
    """The text without the marks of {% generation %} blocks, and where the blocks are."""
    said = "".join(message.content + message.reasoning for message in messages)
    if GENERATION_START in said or GENERATION_END in said:
        raise ExampleError("a message holds the character U+E0D2 or U+E0D3", "it is needed as a mark; remove it")
    clean, spans, open_at = [], [], []
    length = 0
    for piece in re.split(f"([{GENERATION_START}{GENERATION_END}])", text):
        if piece == GENERATION_START:
            open_at.append(length)
        elif piece == GENERATION_END:
            spans.append((open_at.pop(), length))
        else:
            clean.append(piece)
            length += len(piece)
    return "".join(clean), tuple(sorted(spans))


def _hole_owners(messages: Sequence[MessageOutline], tools: str) -> list[int]:
    """The message of each hole, by number; -1 for tools."""
    owners = [-1] * tools.count(OPEN)
    for number, message in enumerate(messages):
        owners += [number] * sum(text.count(OPEN) for text in (message.content, message.reasoning, message.calls))
    return owners


def _mark_spans(skeleton: Skeleton) -> dict[int, Span]:
    """Where the mark of each number first stands in the text of a skeleton."""
    spans: dict[int, Span] = {}
    at = 0
    for literal, number in zip(skeleton.literals, skeleton.numbers, strict=False):
        start = at + len(literal)
        at = start + len(f"{OPEN}{number}{CLOSE}")
        spans.setdefault(number, (start, at))
    return spans


def _in_literal(skeleton: Skeleton, position: int) -> tuple[int, int]:
    """A position between marks as (literal, offset in it)."""
    at = 0
    for number, literal in enumerate(skeleton.literals):
        if position <= at + len(literal):
            return number, max(position - at, 0)
        mark = skeleton.numbers[number] if number < len(skeleton.numbers) else 0
        at += len(literal) + len(f"{OPEN}{mark}{CLOSE}")
    return len(skeleton.literals) - 1, len(skeleton.literals[-1])
