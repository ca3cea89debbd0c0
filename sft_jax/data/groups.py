"""Groups: several answers to each of a few prompts, as sequences of a batch whose shape no answer changes.

A group is an example with a branch for each answer. Where it does not fit into a sequence, several of them have the
prompt, each with some of the answers. Which sequence an answer is in follows from the prompts and from the longest
answer there may be: so it is known before anything is sampled whether the answers of every step find room.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int32

from sft_jax.data.batches import Batch, assemble, empty_batch
from sft_jax.data.packing import get_packing
from sft_jax.data.packing.bins import Bounds
from sft_jax.data.tokenized import TokenizedExamples

NORMALIZE = ("tokens", "examples", "constant")
_MOST_BRANCHES = 255  # of an example: their numbers are of eight bits

Tokens = Int32[np.ndarray, "_"]
Piece = tuple[int, range]  # a prompt of the step, and which of its answers
Sequences = tuple[tuple[Piece, ...], ...]  # those that share each sequence


class NoRoomError(ValueError):
    """The answers of a step do not fit into its sequences."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is the same for all steps.

    Attributes:
        group: answers to each prompt.
        longest: tokens of an answer, at most.
        sequences: of a batch.
        sequence_length: tokens S of a sequence.
        sequence_targets: its slots P for targets.
        packing: how pieces of groups share sequences, a name in PACKINGS.
        most_pieces: that share a sequence; 0: any number.
    """

    group: int
    longest: int
    sequences: int
    sequence_length: int
    sequence_targets: int
    packing: str = "best_fit"
    most_pieces: int = 0

    def layout(self, prompts: Sequence[int]) -> Sequences:
        """Which answers are in which sequence, as if all were as long as they may be.

        Prompts of 10 and 20 tokens, groups of 4, answers of 5, sequences of 40 tokens with 20 targets: a sequence for
        each group. With 10 targets two for each, of two answers.

        Args:
            prompts: tokens of each.

        Raises:
            NoRoomError: they need more sequences than there are; says how many.
        """
        return _layout(self, tuple(prompts))


@functools.lru_cache(maxsize=4096)
def _layout(shape: Shape, prompts: tuple[int, ...]) -> Sequences:
    pieces: list[Piece] = []
    for number, length in enumerate(prompts):
        room = min(shape.sequence_length - length, shape.sequence_targets) // shape.longest
        most = min(room, _MOST_BRANCHES, shape.group)
        if most < 1:
            raise NoRoomError(
                f"a prompt of {length} tokens leaves no room for an answer of {shape.longest} in "
                f"{shape.sequence_length}"
            )
        bounds = np.linspace(0, shape.group, -(-shape.group // most) + 1).astype(int)  # of nearly equal size
        pieces += [(number, range(begin, end)) for begin, end in itertools.pairwise(bounds.tolist())]
    targets = np.array([len(answers) * shape.longest for _, answers in pieces], np.int32)
    lengths = targets + np.array([prompts[number] for number, _ in pieces], np.int32)
    pack = get_packing(shape.packing)
    bins = pack(lengths, targets, Bounds(shape.sequence_length, shape.sequence_targets, shape.most_pieces))
    if len(bins) > shape.sequences:
        raise NoRoomError(f"{len(bins)} sequences are needed")
    return tuple(tuple(pieces[member] for member in sorted(members.tolist())) for members in bins)


def fitting_targets(shape: Shape, steps: Sequence[Sequence[int]]) -> int:
    """The fewest slots P for targets with which the answers of all steps find room.

    The head is computed for all slots; a prompt that stands in several sequences costs nothing, as their number is
    fixed.

    Args:
        shape: whose `sequence_targets` is not looked at.
        steps: tokens of the prompts of each step.

    Raises:
        NoRoomError: they find none with any number of slots; says how many sequences are needed.
    """
    most = (shape.sequence_length - 1) // shape.longest
    prompts = max(len(step) for step in steps) if most else 0
    for answers in range(max(1, -(-prompts * shape.group // shape.sequences)), most + 1):
        fitting = dataclasses.replace(shape, sequence_targets=answers * shape.longest)
        if _all_fit(fitting, steps):
            return fitting.sequence_targets
    unbounded = dataclasses.replace(shape, sequence_targets=max(most, 1) * shape.longest, sequences=2**31)
    needed = max(len(unbounded.layout(step)) for step in steps)
    raise NoRoomError(f"{needed} sequences are needed")


def _all_fit(shape: Shape, steps: Sequence[Sequence[int]]) -> bool:
    try:
        for step in steps:
            shape.layout(step)
    except NoRoomError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Sampled:
    """An answer as it is trained.

    Attributes:
        tokens: its ids as they were drawn, the stop token included.
        drawn: their log-probabilities then.
        advantage: of the answer.
    """

    tokens: Tokens
    drawn: Float32[np.ndarray, "_"]
    advantage: float


Group = Sequence[Sampled | None]  # None for an answer that is left out of the loss and of all counts


def group_batch(
    prompts: Sequence[Tokens], groups: Sequence[Group], shape: Shape, normalize: str, own: Sequence[int]
) -> Batch:
    """The arrays of a step, as `assemble` makes them, with two more for each slot.

    Args:
        prompts: ids of each.
        groups: the answers to each.
        shape: of the batch.
        normalize: "tokens": each token weighs 1; "examples": each answer weighs 1; "constant": each token weighs 1 over
            the longest answer there may be.
        own: which sequences of the batch this process gets.

    Returns:
        What `assemble` returns for examples with branches; and float32 [B, P]: `drawn`, the log-probability with which
        each target was drawn, and `advantages`, that of its answer.

    Raises:
        NoRoomError: see `Shape.layout`.
    """
    layout = shape.layout([len(prompt) for prompt in prompts])
    mine = [layout[number] if number < len(layout) else () for number in own]
    kept = [[_kept(groups, piece) for piece in pieces] for pieces in mine]
    examples = [
        (prompts[number], answers)
        for pieces, found in zip(mine, kept, strict=True)
        for (number, _), answers in zip(pieces, found, strict=True)
        if answers
    ]
    flat = [answer for _, answers in examples for answer in answers]
    if not flat:
        batch = empty_batch(len(own), shape.sequence_length, shape.sequence_targets, with_branches=True)
        return batch | {name: np.zeros_like(batch["weights"]) for name in ("drawn", "advantages")}
    ends = np.cumsum([sum(bool(answers) for answers in found) for found in kept])
    batch = assemble(
        _as_examples(examples, shape, normalize),
        [np.arange(begin, end) for begin, end in zip([0, *ends], ends, strict=False)],
        sequence_length=shape.sequence_length,
        sequence_targets=shape.sequence_targets,
    )
    used = batch["branches"] > 0  # in the order of the answers
    for name, values in (
        ("drawn", [answer.drawn for answer in flat]),
        ("advantages", [np.full(len(answer.tokens), answer.advantage, np.float32) for answer in flat]),
    ):
        batch[name] = np.zeros_like(batch["weights"])
        batch[name][used] = np.concatenate(values)
    return batch


def _kept(groups: Sequence[Group], piece: Piece) -> list[Sampled]:
    number, answers = piece
    return [groups[number][answer] for answer in answers if groups[number][answer] is not None]


def _as_examples(examples: Sequence[tuple[Tokens, list[Sampled]]], shape: Shape, normalize: str) -> TokenizedExamples:
    """Prompts with branches: only tokens of answers have a weight."""

    def weight(answer: Sampled) -> np.ndarray:
        count = len(answer.tokens)
        return np.full(count, {"tokens": 1.0, "examples": 1 / count, "constant": 1 / shape.longest}[normalize])

    rows, branches = [], []
    for prompt, answers in examples:
        tokens = np.concatenate([prompt, *(answer.tokens for answer in answers)])
        rows.append((tokens, np.concatenate([np.zeros(len(prompt)), *map(weight, answers)])))
        sizes = [len(prompt), *(len(answer.tokens) for answer in answers)]
        branches.append(np.repeat(np.arange(len(sizes), dtype=np.uint8), sizes))
    return TokenizedExamples.from_examples(rows, [str(number) for number in range(len(rows))], branches=branches)
