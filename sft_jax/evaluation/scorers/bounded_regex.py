"""Regular expressions whose work is bounded by the lengths of pattern and text, whatever the two are.

Python's `re` tries the ways in which a pattern may match one after the other. Of repeats within repeats there may be
exponentially many, and an answer can be such that a search does not end. Here nothing is tried twice from the same
place of the program at the same place of the text (the memoized backtracking of RE2's "bit state" matcher, Cox 2010),
so that a search takes at most instructions x (characters + 1) steps. Ways are tried in the order of `re`, and what is
found first is its match.

`re` parses the pattern, and says of single characters and places whether they fit, by its internal modules.
"""

import itertools
import re
from collections.abc import Iterator
from re import _compiler, _parser
from re import _constants as sre
from typing import Any

MOST_STEPS = 1_000_000  # of a text: about a second
_MOST_INSTRUCTIONS = 10_000

_CHARACTER, _PLACE, _SPLIT, _JUMP, _SAVE, _MATCH = range(6)
_ONE_CHARACTER = (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY)
_TYPE_FLAGS = re.ASCII | re.LOCALE | re.UNICODE


class ExceededError(Exception):
    """A text took more steps than are allowed."""


def check_repeats_once(pattern: str) -> None:
    """Checks that `re` itself takes no more steps for a pattern than the square of a text's length.

    Raises:
        ValueError: it is no regular expression, or repeats more than once, or more than one character, a number of
            times that is open.
    """
    try:
        repeats = list(_repeats(_parser.parse(pattern)))
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    if sum(least != most for least, most, _ in repeats) > 1 or any(
        len(items) > 1 or items[0][0] not in _ONE_CHARACTER for *_, items in repeats
    ):
        raise ValueError(f"{pattern!r} is not taken: where `re` matches, it may repeat once, a single character")


def _repeats(items: Any) -> Iterator[tuple[int, int, Any]]:
    """(least, most, what is repeated) of all repeats in a parsed pattern."""
    for kind, argument in items:
        if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            yield argument
        parts = argument if isinstance(argument, tuple) else (argument,)
        for part in itertools.chain.from_iterable(part if isinstance(part, list) else (part,) for part in parts):
            if isinstance(part, _parser.SubPattern):
                yield from _repeats(part)


class BoundedPattern:
    """A regular expression, of which one group is wanted."""

    def __init__(self, pattern: str, group: int = 0):
        """Translates the pattern.

        Args:
            pattern: as `re` takes it, without back references, atomic groups and possessive repeats; what a repeat
                repeats must not match nothing, and a lookaround must not repeat.
            group: number of the group that is wanted; 0: the whole match.

        Raises:
            ValueError: it is no regular expression, or has what is not allowed.
        """
        try:
            parsed = _parser.parse(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        self._pattern, self._group, self._groups = pattern, group, parsed.state
        self._program: list[tuple[int, Any, Any]] = []
        self._sequence(parsed, parsed.state.flags)
        self._emit(_MATCH)

    def search(self, text: str) -> bool:
        """Whether it matches somewhere; errors as of `found`."""
        return next(self.found(text), None) is not None

    def found(self, text: str) -> Iterator[str]:
        """What the group holds in each match, in the order of `re.finditer`; empty where it took no part.

        Raises:
            ExceededError: of `MOST_STEPS`.
        """
        start, steps, may_be_empty = 0, [MOST_STEPS], True
        while start <= len(text):
            match = self._next(text, start, may_be_empty, steps)
            if match is None:
                return
            begin, end, group = match
            yield text[begin:end] if not self._group else text[slice(*group)] if group[1] is not None else ""
            start, may_be_empty = end, end > begin

    def _next(
        self, text: str, start: int, may_be_empty: bool, steps: list[int]
    ) -> tuple[int, int, tuple[int | None, int | None]] | None:
        """Begin and end of the next match and of its group; counts `steps` down."""
        seen: set[tuple[int, int]] = set()
        for begin in range(start, len(text) + 1):
            tried: list[tuple[int, int, tuple]] = [(0, begin, (None, None))]
            while tried:
                number, at, group = tried.pop()
                if (number, at) in seen:
                    continue
                seen.add((number, at))
                steps[0] -= 1
                if steps[0] < 0:
                    raise ExceededError(f"{self._pattern!r} took more than {MOST_STEPS:,} steps")
                kind, one, other = self._program[number]
                if kind == _MATCH:
                    if may_be_empty or at > start:
                        return begin, at, group
                elif kind == _SPLIT:
                    tried += [(other, at, group), (one, at, group)]  # the last is tried first
                elif kind == _JUMP:
                    tried.append((one, at, group))
                elif kind == _SAVE:
                    tried.append((number + 1, at, (group[0], at) if one else (at, None)))
                elif one(text, at):
                    tried.append((number + 1, at + (kind == _CHARACTER), group))
        return None

    def _emit(self, kind: int, one: Any = None, other: Any = None) -> int:
        """Adds an instruction; returns its number."""
        if len(self._program) >= _MOST_INSTRUCTIONS:
            raise self._refused(f"its repeats make more than {_MOST_INSTRUCTIONS:,} instructions; repeat less often")
        self._program.append((kind, one, other))
        return len(self._program) - 1

    def _set(self, number: int, one: int, other: int | None = None) -> None:
        """Says where an instruction leads to."""
        self._program[number] = (self._program[number][0], one, other)

    def _sequence(self, items: Any, flags: int) -> None:
        for kind, argument in items:
            if kind in _ONE_CHARACTER:
                self._emit(_CHARACTER, self._fits((kind, argument), flags))
            elif kind is sre.AT:
                self._emit(_PLACE, self._fits((kind, argument), flags))
            elif kind in (sre.ASSERT, sre.ASSERT_NOT):
                self._check_lookaround(argument[1])
                self._emit(_PLACE, self._fits((kind, argument), flags))
            elif kind is sre.BRANCH:
                self._branch(argument[1], flags)
            elif kind is sre.SUBPATTERN:
                self._subpattern(*argument, flags)
            elif kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
                self._repeat(*argument, flags, is_lazy=kind is sre.MIN_REPEAT)
            else:
                raise self._refused("back references, atomic groups and possessive repeats are not matched here")

    def _fits(self, node: tuple, flags: int) -> Any:
        """Whether one node matches at a place of a text, as `re` sees it."""
        state = _parser.State()
        state.flags, state.groupwidths = flags, self._groups.groupwidths
        return _compiler.compile(_parser.SubPattern(state, [node]), flags).match

    def _subpattern(self, group: int | None, added: int, removed: int, items: Any, flags: int) -> None:
        if added & _TYPE_FLAGS:
            flags &= ~_TYPE_FLAGS
        is_wanted = group is not None and group == self._group
        if is_wanted:
            self._emit(_SAVE, 0)
        self._sequence(items, (flags | added) & ~removed)
        if is_wanted:
            self._emit(_SAVE, 1)

    def _branch(self, alternatives: Any, flags: int) -> None:
        ends = []
        for number, items in enumerate(alternatives):
            is_last = number == len(alternatives) - 1
            split = None if is_last else self._emit(_SPLIT)
            self._sequence(items, flags)
            if not is_last:
                ends.append(self._emit(_JUMP))
                self._set(split, split + 1, len(self._program))
        for end in ends:
            self._set(end, len(self._program))

    def _repeat(self, least: int, most: int, items: Any, flags: int, *, is_lazy: bool) -> None:
        if most > max(least, 1) and items.getwidth()[0] == 0:
            raise self._refused("what it repeats may be nothing; write it so that it is never empty")

        def ways(split: int) -> None:
            into, past = split + 1, len(self._program)
            self._set(split, *((past, into) if is_lazy else (into, past)))

        for _ in range(least):
            self._sequence(items, flags)
        if most is sre.MAXREPEAT:
            split = self._emit(_SPLIT)
            self._sequence(items, flags)
            self._emit(_JUMP, split)
            ways(split)
            return
        splits = []
        for _ in range(most - least):
            splits.append(self._emit(_SPLIT))
            self._sequence(items, flags)
        for split in splits:
            ways(split)

    def _check_lookaround(self, items: Any) -> None:
        for kind, argument in items:
            if kind in _ONE_CHARACTER or kind is sre.AT:
                continue
            if kind is sre.BRANCH:
                for alternative in argument[1]:
                    self._check_lookaround(alternative)
            elif kind is sre.SUBPATTERN and (argument[0] is None or argument[0] != self._group):
                self._check_lookaround(argument[3])
            else:
                raise self._refused("a lookaround must not repeat, nor hold the group that is taken")

    def _refused(self, reason: str) -> ValueError:
        return ValueError(f"{self._pattern!r} is not taken: {reason}")
