"""Outlines: a conversation with holes in place of what is said, by which the parts of a rendering are found.

Used by templates.py. Each hole is filled with a numbered mark, the template is run on the marks, and its result (a
`Skeleton`) is matched with the rendering of the conversation itself: what stands at the marks was said by a message,
the rest was written by the template. Conversations of one outline share a skeleton.

Holes are contents, reasoning and the strings among the arguments of calls. Two things stay as they are: names, ids and
keys, which a template may look at; and, within a content, the words the template searches contents for (`</think>`), so
that it decides about the marks as about the content.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes

from sft_jax.data.conversations import Message, ToolCall
from sft_jax.data.rendering.rendered import ExampleError

OPEN, CLOSE = "\u169b", "\u169c"  # Ogham feather marks: not white space, no case, escaped neither by JSON nor by repr
_HOLE = OPEN + CLOSE
_MARK = re.compile(f"{OPEN}([0-9]+){CLOSE}")
_SEARCHING_METHODS = ("split", "rsplit", "startswith", "endswith", "find", "rfind", "index", "partition", "replace")
_GENERATION_TAG = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")


class Piece(NamedTuple):
    """What fills one hole: `text`, which stands at `offset` of a field of a message (-1: of the tool definitions)."""

    message: int
    field: str
    offset: int
    text: str


class Part(NamedTuple):
    """Where a piece stands in a rendering: characters [start, end).

    Attributes:
        message: whose it is; -1 for tool definitions.
        field: "content", "reasoning", "arguments" or "tools".
        offset: of `start` in the field.
        verbatim: one character of the field is one character of the text (not escaped).
    """

    message: int
    field: str
    offset: int
    start: int
    end: int
    verbatim: bool


class MessageOutline(NamedTuple):
    """A message with holes; calls and their arguments as JSON."""

    role: str
    content: str
    reasoning: str = ""
    calls: str = ""
    name: str = ""
    tool_call_id: str = ""


class Outline(NamedTuple):
    """A conversation with holes, and what fills them, in order: first those of the tools, then message by message."""

    messages: tuple[MessageOutline, ...]
    tools: str
    pieces: tuple[Piece, ...]


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """A rendering of marks.

    Attributes:
        text: with the marks in it.
        literals: the texts before, between and behind the marks: what the template wrote.
        numbers: of the marks, in the order of the text.
    """

    text: str
    literals: tuple[str, ...]
    numbers: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> "Skeleton":
        """The skeleton of a rendered text with marks."""
        pieces = _MARK.split(text)
        return cls(text, tuple(pieces[::2]), tuple(map(int, pieces[1::2])))

    def fill(self, text: str, pieces: Sequence[Piece]) -> tuple[Part, ...] | None:
        """Where the pieces stand in `text`, if it is the skeleton with the pieces (or forms) put in; else None."""
        if not text.startswith(self.literals[0]):
            return None
        at, parts = len(self.literals[0]), []
        for number, literal in zip(self.numbers, self.literals[1:], strict=True):
            piece = pieces[number]
            fitting = (form for form in _forms(piece.text) if text.startswith(form[0] + literal, at))
            form, skipped, verbatim = next(fitting, (None, 0, False))
            if form is None:
                return None
            end = at + len(form)
            parts.append(Part(piece.message, piece.field, piece.offset + skipped, at, end, verbatim))
            at = end + len(literal)
        return tuple(parts) if at == len(text) else None

    def literal_starts(self, parts: Sequence[Part]) -> list[int]:
        """Where each literal begins in the text that was filled."""
        return [0, *(part.end for part in parts)]


class Outliner:
    """Makes outlines for one template.

    Attributes:
        words: what the template searches contents for, the longest first.
        arguments_as_text: see below.
    """

    def __init__(self, source: str, special: re.Pattern, arguments_as_text: bool = False, opening: str = ""):
        """Finds what the template searches contents for.

        Args:
            source: the template, which must be valid.
            special: finds special tokens that are text in contents; they are never part of an outline.
            arguments_as_text: calls carry their arguments as JSON text and not as an object.
            opening: what prompts end with and answers spell, see `ChatTemplate.opening`; a word like the others.
        """
        words = sorted({*_searched_words(source), *filter(None, [opening])}, key=len, reverse=True)
        self.words = tuple(word for word in words if not special.search(word))
        self._words = re.compile(f"({'|'.join(map(re.escape, self.words))})") if self.words else None
        self._special = special
        self.arguments_as_text = arguments_as_text

    def outline(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), blanks_stay: bool = False
    ) -> Outline:
        """The outline of a conversation.

        Args:
            messages: the turns.
            tools: definitions of tools.
            blanks_stay: what is empty or white space is no hole: a template may ask whether there is any content.

        Raises:
            ExampleError: a name, an id or a key spells a special token or a mark.
        """
        pieces: list[Piece] = []
        tools_outline = self._tools(tools, pieces) if tools else ""
        made = []
        for number, message in enumerate(messages):
            content = self._holes(message.content, Piece(number, "content", 0, ""), pieces, blanks_stay)
            if not (message.reasoning or message.tool_calls or message.name or message.tool_call_id):
                made.append(MessageOutline(message.role, content))
                continue
            reasoning = ""
            if message.reasoning:
                reasoning = self._holes(message.reasoning, Piece(number, "reasoning", 0, ""), pieces, blanks_stay)
            calls = self._calls(number, message.tool_calls, pieces, blanks_stay) if message.tool_calls else ""
            self._check(message.name, message.tool_call_id)
            made.append(MessageOutline(message.role, content, reasoning, calls, message.name, message.tool_call_id))
        return Outline(tuple(made), tools_outline, tuple(pieces))

    def searched_in(self, text: str) -> set[str]:
        """What the template searches contents for, as far as the text has it."""
        return set(self._words.findall(text)) if self._words else set()

    def _holes(self, text: str, piece: Piece, pieces: list[Piece], blanks_stay: bool) -> str:
        """The text with holes; the pieces that fill them are added to `pieces`."""
        split = self._words.split(text) if self._words else [text]
        kept, at = [], 0
        for number, part in enumerate(split):
            is_hole = number % 2 == 0 and (part.strip() if blanks_stay else part or len(split) == 1)
            if is_hole:
                pieces.append(piece._replace(offset=at, text=part))
            kept.append(_HOLE if is_hole else part)
            at += len(part)
        return "".join(kept)

    def _calls(self, message: int, calls: Sequence[ToolCall], pieces: list[Piece], blanks_stay: bool) -> str:
        def hole(text: str) -> str:
            if blanks_stay and not text.strip():
                return text
            pieces.append(Piece(message, "arguments", 0, text))
            return _HOLE

        made = []
        for call in calls:
            self._check(call.name, call.id)
            arguments: Any = arguments_of(call, self.arguments_as_text)
            made.append((call.name, call.id, self._map_strings(arguments, hole)))
        return as_json(made)

    def _tools(self, tools: Sequence[Mapping[str, Any]], pieces: list[Piece]) -> str:
        """Definitions stay as they are, but for strings that spell a special token."""

        def hole(text: str) -> str:
            if not self._special.search(text) and OPEN not in text:
                return text
            pieces.append(Piece(-1, "tools", 0, text))
            return _HOLE

        return as_json([self._map_strings(tool, hole) for tool in tools])

    def _map_strings(self, value: Any, change: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, Mapping):
            self._check(*value)
            return {key: self._map_strings(item, change) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._map_strings(item, change) for item in value]
        return value

    def _check(self, *names: Any) -> None:
        for name in names:
            if not isinstance(name, str):
                raise ExampleError(
                    "the arguments of a call or the definitions of tools are not JSON", f"the key {name!r}"
                )
            if OPEN in name or CLOSE in name or self._special.search(name):
                raise ExampleError(
                    "a name, an id or a key spells a special token",
                    f"{name!r}: a chat template writes it as its own text, where it would count as one; rename it",
                )


def marked(outline: Outline) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Messages and tools with numbered marks in the holes, as a chat template gets them."""
    numbers = itertools.count()
    number = lambda text: re.sub(_HOLE, lambda _: f"{OPEN}{next(numbers)}{CLOSE}", text)
    tools = json.loads(number(outline.tools)) if outline.tools else []
    messages = []
    for message in outline.messages:
        content, reasoning = number(message.content), number(message.reasoning)
        calls = [tuple(call) for call in json.loads(number(message.calls))] if message.calls else []
        messages.append(message_fields(message.role, content, reasoning, calls, message.name, message.tool_call_id))
    return messages, tools


def message_fields(
    role: str, content: str | None, reasoning: str, calls: Sequence[tuple[str, str, Any]], name: str, tool_call_id: str
) -> dict[str, Any]:
    """A message as a chat template gets it; `calls` are (name, id, arguments). What is empty is not there at all."""
    fields: dict[str, Any] = {"role": role, "content": content}
    if reasoning:
        fields |= {"reasoning_content": reasoning, "thinking": reasoning}  # the second: templates like that of gpt-oss
    if calls:
        fields["tool_calls"] = [
            {
                "type": "function",
                **({"id": call_id} if call_id else {}),
                "function": {"name": called, "arguments": given},
            }
            for called, call_id, given in calls
        ]
    if name:
        fields["name"] = name
    if tool_call_id:
        fields["tool_call_id"] = tool_call_id
    return fields


def arguments_of(call: ToolCall, as_text: bool) -> Any:
    """The arguments of a call as the template takes them."""
    return as_json(call.arguments) if as_text else call.arguments


def as_json(value: Any) -> str:
    """The value as JSON text.

    Raises:
        ExampleError: it holds what JSON has no form for, such as a date.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ExampleError("the arguments of a call or the definitions of tools are not JSON", str(error)) from error


def words_of(
    text: str, parts: Sequence[Part], pieces: Sequence[Piece], messages: Sequence[Message]
) -> tuple[Part, ...]:
    """Where the words of contents stand that are no holes, if the template left them.

    A word stands between the pieces that it parts in the content, or before the first and behind the last of them.
    """
    found: list[Part] = []
    for number, message in enumerate(messages):
        own = [piece for piece in pieces if piece.message == number and piece.field == "content"]
        if own and sum(len(piece.text) for piece in own) < len(message.content):
            found += _words_between(text, parts, own, number, message.content)
        elif not own and (word := message.content.strip()):
            before = max((part.end for part in parts if part.message < number), default=0)
            at = text.find(word, before, min((p.start for p in parts if p.message > number), default=len(text)))
            if at >= 0:
                found.append(Part(number, "content", message.content.index(word), at, at + len(word), True))
    return tuple(found)


def _words_between(text: str, parts: Sequence[Part], own: Sequence[Piece], number: int, content: str) -> Iterator[Part]:
    """Those of one content, read off the gaps that its pieces leave in it, and the same gaps in the text."""
    shown: list[tuple[int, int, int, int]] = []  # of each piece: its ends in the content, then in the text
    for piece in own:
        end = piece.offset + len(piece.text)
        part = next((p for p in parts if p[:2] == piece[:2] and piece.offset <= p.offset <= end), None)
        if part is not None:
            shown.append((piece.offset, end, part.start, part.end))
    before = max((p.end for p in parts if shown and p.end <= shown[0][2]), default=0)
    behind = min((p.start for p in parts if shown and p.start >= shown[-1][3]), default=len(text))
    edges = [(0, 0, before, before), *shown, (len(content), len(content), behind, behind)] if shown else []
    for (_, begin, _, left), (end, _, right, _) in itertools.pairwise(edges):
        word, is_first = content[begin:end].strip(), end == edges[1][0]
        at = text.rfind(word, left, right) if is_first else text.find(word, left, right)
        if word and at >= 0:
            yield Part(number, "content", content.index(word, begin), at, at + len(word), True)


def shared_length(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _forms(text: str) -> Iterator[tuple[str, int, bool]]:
    """What templates make of a piece: (form, characters left out at its beginning, not escaped)."""
    yield text, 0, True
    for characters in (None, "\n"):
        left, right = text.lstrip(characters), text.rstrip(characters)
        yield text.strip(characters), len(text) - len(left), True
        yield right, 0, True
        yield left, len(text) - len(left), True
    yield text.lstrip("\n").rstrip(), len(text) - len(text.lstrip("\n")), True
    yield text.lstrip().rstrip("\n"), len(text) - len(text.lstrip()), True
    yield json.dumps(text, ensure_ascii=False)[1:-1], 0, False
    yield json.dumps(text)[1:-1], 0, False
    yield repr(text)[1:-1], 0, False


def _searched_words(source: str) -> Iterator[str]:
    """String constants that the template looks for in other strings."""
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    tree = environment.parse(_GENERATION_TAG.sub("", source))
    found: list[nodes.Node] = []
    for comparison in tree.find_all(nodes.Compare):
        if any(operand.op in ("in", "notin") for operand in comparison.ops):
            found.append(comparison.expr)
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in _SEARCHING_METHODS:
            found += call.args
    for node in found:
        if isinstance(node, nodes.Const) and isinstance(node.value, str) and node.value.strip():
            yield node.value
