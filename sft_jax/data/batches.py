"""Batches: bins of examples as arrays of static shape, assembled ahead of the training loop.

The end of the data layer: from here on there are only arrays, of B sequences with S tokens and P target slots
each.
"""

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int, Int32, Shaped

from sft_jax.data.packing import get_packing
from sft_jax.data.packing.bins import Bin, Bins, Bounds
from sft_jax.data.plan import PackPlan
from sft_jax.data.tokenized import ExampleBranches, TokenizedExamples
from sft_jax.data.tokenized.columns import Labels

Batch = dict[str, Shaped[np.ndarray, "sequences _ ..."]]
TokenWeights = Float32[np.ndarray, "sequences tokens"]
OwnSequences = Sequence[int] | None

NORMALIZE = ("tokens", "examples")
# Arrays of a batch [B, P], or of a teacher [B, P, …]; the others are [B, S].
PER_SLOT = (
    *("target_slots", "targets", "weights", "slices", "branches", "reference"),
    *("margins", "drawn", "advantages", "teacher_ids", "teacher_log_probabilities"),
)


def assemble(
    examples: TokenizedExamples,
    bins: Sequence[Bin],
    *,
    sequence_length: int,
    sequence_targets: int,
    normalize: str = "tokens",
    slices: Labels | None = None,
) -> Batch:
    """The arrays of one batch.

    Two examples [5, 6, 7] (7 trained) and [8, 9] (9 trained) in one bin of 6 tokens with 4 slots:
        tokens        5 6 7 8 9 0
        positions     0 1 2 0 1 2     restart with each segment; the padding counts on
        segment_ids   1 1 1 2 2 0     0 is padding
        target_slots  1 3 0 0         the hidden state at this position predicts
        targets       7 9 0 0         this token of the same segment
        weights       1 1 0 0         with this weight; 0 is an unused slot
    With sequence_targets == sequence_length slot i is position i: targets are the next tokens, where the weight is not
    0.

    An example with branches, a trunk [5, 6, 7] that goes on as [8, 9] or as [3, 4], all of these trained:
        tokens        5 6 7 8 9 3 4
        positions     0 1 2 3 4 3 4   those of a branch go on from the trunk
        segment_ids   1 1 1 2 2 3 3   trunk and branches are segments
        parents       1 1 1 1 1 1 1   a second segment that a token sees, its own where there is none
        target_slots  2 3 2 5         the last slot of the trunk predicts the first token of each branch
        targets       8 9 3 4
        branches      1 1 2 2         of the sequence, counted on from example to example, by an even number: those of
                                      answers that are preferred stay odd; 0 is an unused slot

    Args:
        examples: the tokenized data.
        bins: B arrays of example indices; an empty one gives a sequence of padding.
        sequence_length: S.
        sequence_targets: P.
        normalize: "tokens" keeps weights; "examples" divides each example's weights by their sum, so that the
            weights of a batch sum up to the number of its examples.
        slices: which slice of the data each example belongs to, where that is to be measured.

    Returns:
        tokens, positions, segment_ids: int32 [B, S]; target_slots, targets: int32 [B, P]; weights: float32 [B, P]; with
        `slices` the number of each target's slice: int32 [B, P]; where examples have branches also parents: int32
        [B, S], and branches: int32 [B, P]; where they have a reference also that, and where their tokens are scored
        their margins: float32 [B, P]; where a teacher's most likely tokens are known, these and log-probabilities of
        them and of the rest: int32 [B, P, k], float32 [B, P, outcomes].

    Raises:
        ValueError: unknown `normalize`, a bin that exceeds a bound, or branches where slot i is position i.
    """
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZE)}, got {normalize!r}.")
    codes = None if slices is None else slices.codes
    with_branches = examples.branches is not None
    if with_branches and sequence_targets == sequence_length:
        raise ValueError(
            f"examples have branches, and {sequence_targets} target slots of {sequence_length} tokens say that slot i "
            "is position i; give another number"
        )
    batch = empty_batch(
        len(bins), sequence_length, sequence_targets, with_slices=codes is not None, with_branches=with_branches
    )
    beside = {"reference": examples.reference is not None, "margins": examples.scored}
    batch |= {name: np.zeros_like(batch["weights"]) for name, there in beside.items() if there}
    batch |= {name: np.zeros((*batch["weights"].shape, *of.shape[1:]), of.dtype) for name, of in _of_teacher(examples)}
    for number, members in enumerate(bins):
        _fill_sequence({name: array[number] for name, array in batch.items()}, examples, members, normalize, codes)
    return batch


def empty_batch(
    count: int,
    sequence_length: int,
    sequence_targets: int,
    *,
    with_slices: bool = False,
    with_branches: bool = False,
) -> Batch:
    """`count` sequences of padding, as `assemble` makes them.

    Args:
        count: of sequences.
        sequence_length: S.
        sequence_targets: P.
        with_slices: whether slices of the data are measured apart.
        with_branches: whether examples have branches.
    """
    slots = np.arange(sequence_targets) if sequence_targets == sequence_length else np.zeros(sequence_targets)
    batch = {
        "tokens": np.zeros((count, sequence_length), np.int32),
        "positions": np.tile(np.arange(sequence_length, dtype=np.int32), (count, 1)),
        "segment_ids": np.zeros((count, sequence_length), np.int32),
        "target_slots": np.tile(slots.astype(np.int32), (count, 1)),
        "targets": np.zeros((count, sequence_targets), np.int32),
        "weights": np.zeros((count, sequence_targets), np.float32),
    }
    more = {"slices": sequence_targets} if with_slices else {}
    more |= {"parents": sequence_length, "branches": sequence_targets} if with_branches else {}
    return batch | {name: np.zeros((count, size), np.int32) for name, size in more.items()}


def _fill_sequence(
    sequence: dict[str, np.ndarray], examples: TokenizedExamples, members: Bin, normalize: str, codes: np.ndarray | None
) -> None:
    """Writes the examples of one bin into one sequence, whose arrays are views of the batch."""
    sequence_length, sequence_targets = len(sequence["tokens"]), len(sequence["targets"])
    every_position = sequence_targets == sequence_length
    begin, used, segments, branches = 0, 0, 0, 0
    for member in members:
        tokens, weights = examples.example(member)
        end = begin + len(tokens)
        targets = 1 + np.flatnonzero(weights[1:])
        at, count = targets - 1, len(targets)  # the state at `at` predicts the token behind it
        if end > sequence_length or (not every_position and used + count > sequence_targets):
            raise ValueError(
                f"Examples {[examples.ids[i] for i in members]} do not fit into {sequence_length} tokens and "
                f"{sequence_targets} targets."
            )
        sequence["tokens"][begin:end] = tokens
        sequence["positions"][begin:] = np.arange(sequence_length - begin)
        sequence["segment_ids"][begin:end] = segments + 1
        slots = begin + at if every_position else slice(used, used + count)
        if "parents" in sequence:
            sequence["parents"][begin:end] = segments + 1
        if (branch := examples.branches_of(member)) is not None:
            at = targets if examples.scored else _predictors(branch, targets)
            sequence["positions"][begin:end] = _positions(branch)
            sequence["segment_ids"][begin:end] += branch
            sequence["branches"][slots] = branches + branch[targets].astype(np.int32)
            more = int(branch[-1]) + int(branch[-1]) % 2  # an answer that is preferred has an odd number in each
            segments, branches = segments + more, branches + more
        sequence["target_slots"][slots] = begin + at
        sequence["targets"][slots] = tokens[targets]
        if codes is not None:
            sequence["slices"][slots] = codes[member]
        if examples.reference is not None:
            sequence["reference"][slots] = examples.reference[slice(*examples.target_offsets[member : member + 2])]
        for name, of_targets in _of_teacher(examples):
            sequence[name][slots] = of_targets[slice(*examples.target_offsets[member : member + 2])]
        if examples.margins is not None and "margins" in sequence:
            sequence["margins"][slots] = examples.margins[member]
        chosen = weights[targets]
        sequence["weights"][slots] = chosen if normalize == "tokens" else chosen / chosen.sum()
        begin, used, segments = end, used + count, segments + 1


def _of_teacher(examples: TokenizedExamples) -> list[tuple[str, np.ndarray]]:
    """What a teacher gives all targets, by its name in batches."""
    known = examples.teacher
    return [] if known is None else [(f"teacher_{name}", known[name]) for name in known.dtype.names]


def _positions(branch: ExampleBranches) -> Int32[np.ndarray, "tokens"]:
    """Positions of the tokens of an example with branches, each of which goes on from the trunk."""
    starts = np.searchsorted(branch, np.arange(int(branch[-1]) + 1))
    within = np.arange(len(branch)) - starts[branch]
    return (within + np.where(branch > 0, starts[1], 0)).astype(np.int32)


def _predictors(branch: ExampleBranches, targets: Int[np.ndarray, "targets"]) -> Int[np.ndarray, "targets"]:
    """The place in the example whose state predicts each target: the token before it in its branch or in the trunk."""
    begins = branch[targets] != branch[targets - 1]
    return np.where(begins, np.count_nonzero(branch == 0) - 1, targets - 1)


def train_batches(
    examples: TokenizedExamples,
    plan: PackPlan,
    start_step: int = 0,
    end_step: int | None = None,
    *,
    own: OwnSequences = None,
    normalize: str = "tokens",
    threads: int = 2,
    batches_ahead: int = 4,
) -> Iterator[Batch]:
    """This process's sequences of the global batches start_step, start_step + 1, ..., assembled ahead in threads.

    What is yielded depends on the plan, the step and `own`: a run resumed at any step sees what it would have seen.

    Args:
        examples: the tokenized data the plan was made of.
        plan: the order.
        start_step: first global batch.
        end_step: stop before this one; None never stops.
        own: which sequences of each global batch, ascending; None: all of them.
        normalize: see `assemble`.
        threads: threads that assemble batches; 0 assembles in the caller's thread.
        batches_ahead: batches kept ready.

    Raises:
        ValueError: see `assemble`.
    """
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZE)}, got {normalize!r}.")

    def load(step: int) -> Batch:
        return assemble(
            examples,
            _own(plan.batch_bins(step), own),
            sequence_length=plan.sequence_length,
            sequence_targets=plan.sequence_targets,
            normalize=normalize,
            slices=slices_if_several(examples.sources),
        )

    steps = itertools.count(start_step) if end_step is None else range(start_step, end_step)
    return _ahead(load, steps, threads, batches_ahead) if threads else map(load, steps)


def _ahead(load: Callable[[int], Batch], steps: Iterable[int], threads: int, batches_ahead: int) -> Iterator[Batch]:
    """The batches of the steps, in order; up to `batches_ahead` of them are begun early."""
    begun: collections.deque[concurrent.futures.Future[Batch]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for step in steps:
            begun.append(pool.submit(load, step))
            if len(begun) > batches_ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def held_out_bins(
    examples: TokenizedExamples,
    sequence_length: int,
    sequence_targets: int,
    packing: str = "best_fit",
    max_examples_per_sequence: int = 0,
) -> Bins:
    """Bins of the held-out examples: each example once, no shuffling, the same whatever the batch size.

    Raises:
        ValueError: an example alone exceeds a bound.
    """
    return get_packing(packing)(
        examples.lengths, examples.supervised, Bounds(sequence_length, sequence_targets, max_examples_per_sequence)
    )


def held_out_batches(
    examples: TokenizedExamples,
    sequence_length: int,
    sequence_targets: int,
    batch_sequences: int,
    *,
    packing: str = "best_fit",
    max_examples_per_sequence: int = 0,
    normalize: str = "tokens",
    own: OwnSequences = None,
) -> Iterator[Batch]:
    """Every held-out example exactly once, in batches of `batch_sequences` sequences, of which this process gets `own`.

    The bins do not depend on `batch_sequences`; the last batch is filled up with sequences of padding (weights 0), so
    that there is one shape.

    Raises:
        ValueError: an example alone exceeds a bound; see also `assemble`.
    """
    bins = held_out_bins(examples, sequence_length, sequence_targets, packing, max_examples_per_sequence)
    for start in range(0, len(bins), batch_sequences):
        batch = [*bins[start : start + batch_sequences]]
        batch += [np.zeros(0, np.int32)] * (batch_sequences - len(batch))
        yield assemble(
            examples,
            _own(batch, own),
            sequence_length=sequence_length,
            sequence_targets=sequence_targets,
            normalize=normalize,
            slices=slices_if_several(examples.groups),
        )


def _own(bins: list[Bin], own: OwnSequences) -> list[Bin]:
    return bins if own is None else [bins[number] for number in own]


def slices_if_several(labels: Labels) -> Labels | None:
    """The labels, if they tell examples apart."""
    return labels if len(labels.names) > 1 else None


def trained_tokens(batch: Batch) -> TokenWeights:
    """The weight of each token of the batch as a target, laid out like `tokens`: for people and tests."""
    laid_out = np.zeros(batch["tokens"].shape, np.float32)
    sequences, slots = np.nonzero(batch["weights"])
    scored = "margins" in batch  # a target is then where its slot is, and not behind it
    places = batch["target_slots"][sequences, slots] + (not scored)
    if "branches" in batch and not scored:
        for number, (sequence, slot) in enumerate(zip(sequences, slots, strict=True)):
            if branch := batch["branches"][sequence, slot]:
                segments, parents = batch["segment_ids"][sequence], batch["parents"][sequence]
                # A segment's number is that of its branch, and one for each trunk up to its own.
                trunks = np.unique(parents[parents > 0])
                numbers = np.where(segments != parents, segments - np.searchsorted(trunks, parents) - 1, 0)
                places[number] = max(places[number], np.argmax(numbers == branch))  # not behind the trunk's last slot
    laid_out[sequences, places] = batch["weights"][sequences, slots]
    return laid_out
