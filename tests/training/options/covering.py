"""Covering arrays: few combinations of options in which every pair of values occurs that may.

The greedy method of AETG (Cohen et al. 1997, https://doi.org/10.1109/32.605761): of several rows made at random, each
filled up with what covers most, the best is taken, until nothing is left to cover. Combinations may be forbidden: a row
that holds one of them is never made, so the other pairs of such a row are covered elsewhere.
"""

import itertools
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

Row = dict[str, Hashable]
Pair = tuple[tuple[str, Hashable], tuple[str, Hashable]]

CANDIDATES = 40  # rows made for each that is taken


def covering_rows(
    options: Mapping[str, Sequence[Hashable]],
    forbidden: Sequence[Mapping[str, Hashable]] = (),
    costly: Sequence[str] = (),
) -> list[Row]:
    """Rows that give every option a value, hold no forbidden combination, and together hold every other pair.

    Args:
        options: name -> values.
        forbidden: combinations of the values of two or more options.
        costly: options that have their first value wherever no pair needs another.

    Raises:
        ValueError: a pair is in no row that may be, though it is not forbidden itself.
    """
    builder, rows = _Builder(options, forbidden), []
    while builder.is_missing_some():
        best = max((builder.candidate() for _ in range(CANDIDATES)), key=builder.gain_of)
        builder.take(best)
        rows.append(builder.as_row(best))
    for name in costly:
        rows = _cheapened(rows, name, options[name][0], forbidden)
    return rows


def _cheapened(rows: list[Row], name: str, first: Hashable, forbidden: Sequence[Mapping[str, Hashable]]) -> list[Row]:
    """The rows, of which those that need no other value of an option have its first one."""
    made, count = [], Counter(pair for row in rows for pair in pairs_in(row))
    for row in rows:
        plain = row | {name: first}
        lost = set(pairs_in(row)) - set(pairs_in(plain))
        if all(count[pair] > 1 for pair in lost) and not any(c.items() <= plain.items() for c in forbidden):
            count.subtract(lost)
            row = plain
        made.append(row)
    return made


def pairs_of(options: Mapping[str, Sequence[Hashable]]) -> Iterator[Pair]:
    """Every pair of values of two options; the options in the order of their names."""
    for (one, values), (other, others) in itertools.combinations(sorted(options.items()), 2):
        yield from itertools.product([(one, value) for value in values], [(other, value) for value in others])


def pairs_in(row: Mapping[str, Hashable]) -> Iterable[Pair]:
    """The pairs that a row holds, in the form of `pairs_of`."""
    return itertools.combinations(sorted(row.items(), key=lambda item: item[0]), 2)


class _Builder:
    """Makes rows, and knows which pairs none of those taken has.

    An option with a value is an item, which has a number; a set of items is an integer with their bits.
    """

    def __init__(self, options: Mapping[str, Sequence[Hashable]], forbidden: Sequence[Mapping[str, Hashable]]):
        self._items = [(name, value) for name in sorted(options) for value in options[name]]
        numbers = {item: number for number, item in enumerate(self._items)}
        self._of_option = {name: [numbers[name, value] for value in options[name]] for name in sorted(options)}
        self._forbidden: list[list[int]] = [[] for _ in self._items]  # by item: combinations with it
        for combination in forbidden:
            members = [numbers[item] for item in combination.items()]
            for member in members:
                self._forbidden[member].append(_set_of(members))
        self._values = {name: _set_of(members) for name, members in self._of_option.items()}
        self._constrained = [name for name in self._of_option if any(self._forbidden[n] for n in self._of_option[name])]
        self._free = [name for name in self._of_option if name not in self._constrained]
        self._random = random.Random(1)  # of a few seeds the one with the fewest rows
        self._missing = [0] * len(self._items)  # by item: others that no row has together with it
        for pair in pairs_of(options):
            one, other = numbers[pair[0]], numbers[pair[1]]
            if self._may_join(one, 1 << one | 1 << other):
                self._missing[one] |= 1 << other
                self._missing[other] |= 1 << one

    def is_missing_some(self) -> bool:
        return any(self._missing)

    def candidate(self) -> list[int]:
        """The items of a row that has one pair, at least, which no other has."""
        most = max(others.bit_count() for others in self._missing)
        one = self._random.choice([n for n, others in enumerate(self._missing) if others.bit_count() == most])
        other = self._random.choice([n for n in range(len(self._items)) if self._missing[one] >> n & 1])
        given = {self._items[one][0], self._items[other][0]}
        # What is constrained comes first, while there is most choice.
        names = [*self._shuffled(self._constrained), *self._shuffled(self._free)]
        members = 1 << one | 1 << other
        allowed = self._narrowed(one, members, self._narrowed(other, members, (1 << len(self._items)) - 1))
        made = self._filled([one, other], members, allowed, [name for name in names if name not in given])
        if made is None:
            pair = dict(self._items[number] for number in sorted((one, other)))
            raise ValueError(f"no row may hold {pair}: what is forbidden excludes it, so it must be forbidden itself")
        return made

    def gain_of(self, row: list[int]) -> int:
        """How many missing pairs it has, each counted twice."""
        members = _set_of(row)
        return sum((self._missing[number] & members).bit_count() for number in row)

    def take(self, row: list[int]) -> None:
        members = _set_of(row)
        for number in row:
            self._missing[number] &= ~members

    def as_row(self, row: list[int]) -> Row:
        return dict(self._items[number] for number in sorted(row))

    def _shuffled(self, members: list) -> list:
        return self._random.sample(members, len(members))

    def _may_join(self, number: int, members: int) -> bool:
        """Whether items, with this one among them, hold no forbidden combination with it."""
        return not any(combination & members == combination for combination in self._forbidden[number])

    def _narrowed(self, number: int, members: int, allowed: int) -> int:
        """Of the items that were allowed, those that may still join now that this one is among the members."""
        for combination in self._forbidden[number]:
            left = combination & ~members
            if left.bit_count() == 1:
                allowed &= ~left
        return allowed

    def _filled(self, row: list[int], members: int, allowed: int, names: list[str]) -> list[int] | None:
        """The row with a value of each option, or None: values are taken back as soon as an option has none left."""
        if not names:
            return row
        name, *later = names
        values = [number for number in self._shuffled(self._of_option[name]) if allowed >> number & 1]
        for number in sorted(values, key=lambda value: (self._missing[value] & members).bit_count(), reverse=True):
            longer = members | 1 << number
            still = self._narrowed(number, longer, allowed)
            if still != allowed and not all(self._values[other] & still for other in later):
                continue
            if (made := self._filled([*row, number], longer, still, later)) is not None:
                return made
        return None


def _set_of(numbers: Iterable[int]) -> int:
    return sum(1 << number for number in numbers)
