"""Answers to other prompts, beside those of each example: what they show of a policy is how far it is from its
reference (KTO).

Whose answer that is follows from the data alone, so that a step sees the same ones wherever it runs, and their
log-probabilities by a reference are numbers of the data set like all others.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from sft_jax.data.records import DroppedRow
from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.data.tokenized.columns import Labels

_SIDES = (1, 2)  # the branches of answers: wanted, not wanted
BEHIND = 2  # the branch of an answer to another prompt is that of the answer whose place it takes, and this

Places = Int64[np.ndarray, "examples 3"]


class NoOtherPromptError(ValueError):
    """All answers are to one prompt."""


@dataclasses.dataclass(frozen=True)
class _Answers:
    """Where the branches 1 and 2 of each example lie among all tokens; of one that is not there, nowhere.

    Attributes:
        begins: where a branch begins.
        first: its first target.
        ends: behind its last target.
    """

    begins: Places
    first: Places
    ends: Places

    @classmethod
    def of(cls, examples: TokenizedExamples) -> "_Answers":
        targets = np.flatnonzero(examples.weights)
        first, last = _first_and_last(examples, targets)
        begins, _ = _first_and_last(examples, np.arange(len(examples.tokens)))
        return cls(begins, first, last + 1)

    def sides(self, number: int) -> list[int]:
        """The branches that an example has."""
        return [side for side in _SIDES if self.first[number, side] >= 0]

    def taken(self, number: int, side: int) -> tuple[int, int]:
        """Where the answer of an example lies that takes the place of one of that side: of the same, or its only."""
        side = side if self.first[number, side] >= 0 else 3 - side
        return int(self.first[number, side]), int(self.ends[number, side])

    def lead(self, number: int, side: int) -> tuple[int, int]:
        """Where the tokens of a branch lie that come before its first target."""
        return int(self.begins[number, side]), int(self.first[number, side])


def _first_and_last(examples: TokenizedExamples, places: np.ndarray) -> tuple[Places, Places]:
    """The first and the last of some tokens in each branch of each example; -1 and -2 where there is none."""
    of_example = np.searchsorted(examples.offsets, places, side="right") - 1
    key = of_example * 3 + examples.branches[places]  # ascending, as tokens stand in this order
    keys, begins, counts = np.unique(key, return_index=True, return_counts=True)
    first, last = np.full(3 * len(examples), -1, np.int64), np.full(3 * len(examples), -2, np.int64)
    first[keys], last[keys] = places[begins], places[begins + counts - 1]
    return first.reshape(-1, 3), last.reshape(-1, 3)


def with_mismatched(
    examples: TokenizedExamples, sequence_length: int
) -> tuple[TokenizedExamples, list[tuple[int, DroppedRow]]]:
    """Each example with an answer to another prompt behind each of its own: branch 3 behind 1, and 4 behind 2.

    They are those of the next example of the data, round to the first, whose prompt is another one and whose answers
    fit into a sequence: the preferred answer in the place of the preferred one where there are two.

    Worked example: trunk [5, 6] with answer [7, 8], which is wanted, and trunk [9] with [3], which is not: the first
    becomes [5, 6 | 7, 8 | 3] with branches 0 0 1 1 3, the second [9 | 3 | 7, 8] with 0 2 4 4.

    Args:
        examples: each has branch 1, or 2, or both.
        sequence_length: the most tokens that an example may have.

    Returns:
        The examples, and those that are left out because no other answer fits beside theirs, with their numbers.

    Raises:
        NoOtherPromptError: there is one prompt alone.
    """
    answers = _Answers.of(examples)
    partners = _partners(examples, answers, sequence_length)
    kept = [number for number, partner in enumerate(partners) if partner >= 0]
    dropped = [
        (number, _dropped(examples, number, sequence_length)) for number, partner in enumerate(partners) if partner < 0
    ]
    pieces = [_pieces(examples, answers, number, int(partners[number])) for number in kept]
    joined = lambda part, dtype: np.concatenate([piece[part] for piece in pieces] or [np.zeros(0)]).astype(dtype)
    offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens, _, _ in pieces], dtype=np.int64)])
    chosen = lambda labels: Labels(labels.codes[kept], labels.names)
    ids = [examples.ids[number] for number in kept]
    arrays = joined(0, np.int32), joined(1, np.float32), offsets.astype(np.int64), ids
    made = TokenizedExamples(*arrays, chosen(examples.groups), chosen(examples.sources), joined(2, np.uint8))
    return made, dropped


def _partners(examples: TokenizedExamples, answers: _Answers, sequence_length: int) -> Int64[np.ndarray, "examples"]:
    """Of each example the one whose answers it gets; -1 where none fits."""
    prompts = _prompt_numbers(examples)
    if len(set(prompts)) < 2:
        raise NoOtherPromptError(
            f"{examples.ids[0]}: all answers are to one prompt, and there has to be another one whose answers can take "
            "their place"
        )
    count, partners = len(examples), np.full(len(examples), -1, np.int64)
    sizes = np.where(answers.first >= 0, answers.ends - answers.first, np.iinfo(np.int32).max)[:, 1:]
    shortest = int(sizes.min())
    for number in range(count):
        sides = answers.sides(number)
        leads = sum(end - begin for begin, end in (answers.lead(number, side) for side in sides))
        room = sequence_length - int(examples.lengths[number]) - leads
        if room < len(sides) * shortest:
            continue
        for other in itertools.chain(range(number + 1, count), range(number)):
            taken = [answers.taken(other, side) for side in sides]
            if prompts[other] != prompts[number] and sum(end - begin for begin, end in taken) <= room:
                partners[number] = other
                break
    return partners


def _prompt_numbers(examples: TokenizedExamples) -> Sequence[int]:
    """A number for each example, equal where their trunks are."""
    known: dict[bytes, int] = {}
    numbers = []
    for index in range(len(examples)):
        tokens, _ = examples.example(index)
        trunk = tokens[examples.branches_of(index) == 0].tobytes()
        numbers.append(known.setdefault(trunk, len(known)))
    return numbers


def _pieces(
    examples: TokenizedExamples, answers: _Answers, number: int, partner: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, weights and branches of an example with the answers of another one."""
    tokens, weights = examples.example(number)
    parts, branch = [(tokens, weights, examples.branches_of(number))], examples.branches_of(number)
    for side in answers.sides(number):
        (begin, first), (start, end) = answers.lead(number, side), answers.taken(partner, side)
        weight = weights[(branch == side) & (weights > 0)][0]
        added = np.concatenate([examples.tokens[begin:first], examples.tokens[start:end]])
        of_added = np.concatenate([np.zeros(first - begin), np.where(examples.weights[start:end] > 0, weight, 0)])
        parts.append((added, of_added, np.full(len(added), side + BEHIND)))
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def _dropped(examples: TokenizedExamples, number: int, sequence_length: int) -> DroppedRow:
    size = int(examples.lengths[number])
    return DroppedRow(
        examples.ids[number],
        f"longer than {sequence_length} tokens with an answer to another prompt",
        f"{size} tokens without it; every answer is measured beside that of another prompt",
        size,
    )
