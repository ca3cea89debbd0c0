"""Answers in parts: the thinking, the content and the calls in an answer as the chat template writes it.

Used by thinking.py, and by evaluation to read references and generated answers by the same rules. Nothing here depends
on the model: the marks around thinking and calls are read off what the template makes of probe conversations.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sft_jax.data.conversations import Message, ToolCall
from sft_jax.data.rendering.prompt_endings import closing_tag

_THOUGHT, _SAID = "THOUGHT", "SAID"
_CALLS = (ToolCall("first_probe", {"p": "ONE"}, "abcdefghi"), ToolCall("second_probe", {"p": "TWO"}, "abcdefghj"))
_DECODER = json.JSONDecoder()
_CALLED, _ARGUMENT, _CLOSING = re.compile(r"\s*([\w.-]+)\("), re.compile(r"[\s,]*(\w+)\s*=\s*"), re.compile(r"\s*\)")
_ANY_ID = "\ue0d4"  # a character of nobody's

Write = Callable[[Message], str | None]  # an answer as the template writes it, without its end; None where it refuses


class Answer(NamedTuple):
    """An answer in parts; what is not there is empty. Calls are without ids."""

    thinking: str = ""
    content: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclasses.dataclass(frozen=True)
class CallFormat:
    """How a template writes calls: the texts before the first, between two, and behind the last one.

    Attributes:
        before: see above; of white space alone where nothing marks a call.
        between: None where the template takes one call only.
        after: see above.
        keys: of name and arguments, where a call is one JSON object.
        behind_name: where it is none, what stands between the name and the arguments, which are JSON; `_ANY_ID` in it
            is the id of the call, and "(" begins arguments one by one: f(city="Oslo", n=2).
    """

    before: str
    between: str | None
    after: str
    keys: tuple[str, str] | None
    behind_name: str

    def read(self, text: str) -> tuple[str, tuple[ToolCall, ...]] | None:
        """What stands before the calls in a text, and the calls; None where it is not written so to its end."""
        begin = _pattern(self.before).search(text)
        if begin is None or (not self.before.strip() and text[: begin.start()].strip()):
            return None
        calls, at = [], begin.end()
        while (found := self._call_at(text, at)) is not None:
            call, at = found
            calls.append(call)
            again = None if self.between is None else _pattern(self.between).match(text, at)
            if again is None or self._call_at(text, again.end()) is None:
                end = _pattern(self.after).match(text, at)
                whole = end is not None and not text[end.end() :].strip()
                return (text[: begin.start()], tuple(calls)) if whole else None
            at = again.end()
        return None

    def _call_at(self, text: str, at: int) -> tuple[ToolCall, int] | None:
        """The call that begins at a position, and where it ends."""
        name = ""
        if self.behind_name == "(":
            return _named_call_at(text, at)
        if self.keys is None:
            behind = _pattern(self.behind_name).search(text, at)
            if behind is None or "\n" in text[at : behind.start()].strip():
                return None
            name, at = text[at : behind.start()].strip(), behind.end()
        found = _object_at(text, at)
        if found is None:
            return None
        fields, end = found
        if self.keys is None:
            return (ToolCall(name, fields), end) if name else None
        name, arguments = fields.get(self.keys[0]), _arguments(fields.get(self.keys[1]))
        return (ToolCall(name, arguments), end) if isinstance(name, str) and arguments is not None else None


@dataclasses.dataclass(frozen=True)
class AnswerFormat:
    """How a template writes answers.

    Attributes:
        thinking: the mark before what is thought, empty where the prompt ends with it, and those that may stand behind
            it: before a content, before calls. None where the template shows no thinking.
        plain: what it puts before a content without thinking.
        calls: None where it writes none, or none that can be read back.
    """

    thinking: tuple[str, tuple[str, ...]] | None = None
    plain: str = ""
    calls: CallFormat | None = None

    def literals(self) -> list[str]:
        """All the texts that it puts around what is thought, said and called."""
        calls = self.calls
        around = [] if calls is None else [calls.before, calls.between or "", calls.after, calls.behind_name]
        begin, ends = self.thinking or ("", ())
        return [begin, *ends, self.plain, *around]

    def read(self, text: str, has_tools: bool = True, read_calls: bool = True) -> Answer:
        """The parts of an answer.

        Args:
            text: without its end-of-turn.
            has_tools: there is something to call; without, only what the template marks is a call.
            read_calls: False leaves calls in the content, as they are written.
        """
        thinking, rest = self.without_thinking(text)
        calls = self.calls
        if calls is not None and read_calls and (has_tools or calls.before.strip()):
            found = calls.read(rest)
            if found is not None:
                return Answer(thinking, found[0].strip(), found[1])
        return Answer(thinking, rest.strip())

    def without_thinking(self, text: str) -> tuple[str, str]:
        """What is thought, and the rest; thinking that was cut off is all there is."""
        rest = text.lstrip()
        if self.thinking is not None:
            begin, ends = self.thinking
            thought = rest.removeprefix(begin)
            found = [(thought.index(end), -len(end)) for end in ends if end in thought]
            if rest.startswith(begin) and (found or begin):
                at, size = min(found, default=(len(thought), 0))  # the first, and of those the longest
                return thought[:at].strip(), thought[at - size :]
        return "", rest.removeprefix(self.plain.strip())


def answer_format(write: Write, words: Sequence[str] = (), opening: str = "") -> AnswerFormat:
    """The format that a template follows.

    Args:
        write: what it makes of an answer to a question.
        words: what it looks for in contents.
        opening: what its prompts end with and answers spell, see `ChatTemplate.opening`.
    """
    plain = write(Message("assistant", _SAID))
    if plain is None or _SAID not in plain:
        return AnswerFormat()
    found = AnswerFormat(_thinking_marks(write, words) or _marks_of(opening), plain[: plain.index(_SAID)])
    found = dataclasses.replace(found, calls=_call_format(write, found))
    return dataclasses.replace(found, thinking=_with_end_before_calls(write, found))


def _thinking_marks(write: Write, words: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    """The marks of thinking, as it is shown; or the word behind which a template takes the content to begin."""
    text = write(Message("assistant", _SAID, reasoning=_THOUGHT)) or ""
    before, shown, rest = text.partition(_THOUGHT)
    between, _, _ = rest.partition(_SAID)
    if shown and _SAID in rest and between.strip():
        return before.strip(), (between.strip(),)
    for word in words:
        text = write(Message("assistant", f"{_THOUGHT}{word}{_SAID}")) or ""
        if _SAID in text and _THOUGHT not in text:
            return "", (word,)
    return None


def _marks_of(opening: str) -> tuple[str, tuple[str, ...]] | None:
    """The marks of thinking that the prompt opens with a tag: <think> is closed by </think>."""
    closing = closing_tag(opening)
    return ("", (closing,)) if closing else None


def _with_end_before_calls(write: Write, found: AnswerFormat) -> tuple[str, tuple[str, ...]] | None:
    """The marks of thinking, with what stands between it and a call, where that is another mark."""
    if found.thinking is None or found.calls is None or not found.calls.before.strip():
        return found.thinking
    text = write(Message("assistant", "", reasoning=_THOUGHT, tool_calls=_CALLS[:1])) or ""
    behind = text.partition(_THOUGHT)[2]
    call = _pattern(found.calls.before).search(behind)
    begin, ends = found.thinking
    end = "" if call is None else behind[: call.start()].strip()
    return (begin, ends) if not end or end in ends else (begin, (*ends, end))


def _call_format(write: Write, found: AnswerFormat) -> CallFormat | None:
    """Read off one call and two; None where it cannot read them back."""
    one = write(Message("assistant", "", tool_calls=_CALLS[:1]))
    rest = found.without_thinking(one or "")[1]
    place = _locate(rest, _CALLS[0])
    if place is None:
        return None
    start, end, keys, behind_name = place
    made = CallFormat(rest[:start], None, rest[end:], keys, behind_name)
    two = write(Message("assistant", "", tool_calls=_CALLS))
    if two is not None:
        both = found.without_thinking(two)[1]
        first = _locate(both, _CALLS[0])
        second = None if first is None else _locate(both[first[1] :], _CALLS[1])
        if second is None:
            return None
        made = dataclasses.replace(made, between=both[first[1] : first[1] + second[0]])
        if (read := made.read(both)) is None or not same_calls(read[1], _CALLS):
            return None
    return made if (read := made.read(rest)) is not None and same_calls(read[1], _CALLS[:1]) else None


def _locate(text: str, call: ToolCall) -> tuple[int, int, tuple[str, str] | None, str] | None:
    """Where a call stands, the keys of its object, and what stands behind its name if it is no object."""
    for match in re.finditer(r"\{", text):
        found = _object_at(text, match.start())
        if found is None:
            continue
        fields, end = found
        names = [key for key, value in fields.items() if value == call.name]
        arguments = [key for key, value in fields.items() if _arguments(value) == call.arguments]
        if names and arguments:
            return match.start(), end, (names[0], arguments[0]), ""
        name = text.rfind(call.name, 0, match.start())
        behind_name = text[name + len(call.name) : match.start()]
        if fields == call.arguments and name >= 0 and behind_name.strip():
            return name, end, None, behind_name.replace(call.id, _ANY_ID)
    at = text.find(call.name)
    named = None if at < 0 else _named_call_at(text, at)
    return None if named is None or named[0].arguments != call.arguments else (at, named[1], None, "(")


def _named_call_at(text: str, at: int) -> tuple[ToolCall, int] | None:
    """The call that begins at a position, its arguments as name=JSON in parentheses, and where it ends."""
    head = _CALLED.match(text, at)
    if head is None:
        return None
    arguments: dict[str, Any] = {}
    at = head.end()
    while (name := _ARGUMENT.match(text, at)) is not None:
        try:
            arguments[name[1]], at = _DECODER.raw_decode(text, name.end())
        except (ValueError, RecursionError):
            return None
    end = _CLOSING.match(text, at)
    return None if end is None else (ToolCall(head[1], arguments), end.end())


def _object_at(text: str, at: int) -> tuple[dict, int] | None:
    """The JSON object that begins at a position, behind white space, and where it ends."""
    at += len(text[at:]) - len(text[at:].lstrip())
    try:
        found, end = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None
    return (found, end) if isinstance(found, dict) else None


def _arguments(value: object) -> dict | None:
    """Arguments as an object, also from the JSON text of one."""
    if isinstance(value, str):
        found = _object_at(value, 0)
        return None if found is None or value[found[1] :].strip() else found[0]
    return value if isinstance(value, dict) else None


@functools.cache
def _pattern(literal: str) -> re.Pattern:
    """Finds a text in which white space may be other than in the literal, or none, and an id may be any."""
    pattern = r"\s*".join(re.escape(word) for word in re.split(r"\s+", literal))
    return re.compile(pattern.replace(_ANY_ID, r"\w+"))


def same_calls(one: Sequence[ToolCall], other: Sequence[ToolCall]) -> bool:
    """Whether they are the same calls in the same order; the order of keys and the form of numbers do not count."""
    return len(one) == len(other) and all(
        a.name == b.name and same_json(a.arguments, b.arguments) for a, b in zip(one, other, strict=True)
    )


def same_json(one: Any, other: Any) -> bool:
    """Whether two values are the same to JSON: 1 is 1.0, true is not 1."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_json(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_json, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other
