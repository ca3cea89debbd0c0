"""Tokenized examples: all examples of a data set as a few flat arrays, and the rows that were left out.

The step between rendering (one record -> tokens and weights) and packing (lengths of examples -> bins). From here on an
example is an integer index; its id is only looked up for messages and reports. The arrays lie in memory or are mapped
from files (example_store.py).
"""

import collections
import dataclasses
import functools
import hashlib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8

from sft_jax.data.records import DroppedRow, Record
from sft_jax.data.tokenized.columns import Labels, TextColumn
from sft_jax.data.tokenized.record_keys import RecordKeys
from sft_jax.data.views import NO_TEMPLATE

ExampleTokens = Int32[np.ndarray, "tokens"]
ExampleWeights = Float32[np.ndarray, "tokens"]
ExampleBranches = UInt8[np.ndarray, "tokens"]
Sizes = Int32[np.ndarray, "examples"]
Numbers = Sequence | np.ndarray


@dataclasses.dataclass(frozen=True)
class TokenizedExamples:
    """Examples of different length, one after the other.

    Attributes:
        tokens: all token ids.
        weights: the weight of each token as a target; 0 is not trained. The first token of an example is always 0,
            since nothing stands before it to predict it.
        offsets: example i is `tokens[offsets[i]:offsets[i + 1]]`.
        ids: the name of each example, for people ("train.jsonl:12"). Examples made of one record share its id.
        groups: the slice of the data each example belongs to ("" for none).
        sources: the source each example came from ("" for none).
        branches: of each token, 0 for the trunk of an example and for one without branches, else the number of its
            branch, odd for an answer that is preferred and even for one that is not; the tokens of an example are its
            trunk, then its branches by their numbers, of which some may be missing. None: no example has any.
        margins: of each example, by how much the preferred one of its two answers is better. None: nobody says.
        scored: a supervised token is not predicted: what is read is the state at itself.
        reference: of each supervised token, its log-probability by a reference, where there is one. It is no part of
            the fingerprint, nor of what is on disk.
        teacher: of each supervised token, what a teacher gives it, likewise: `ids` int32 [k] of the tokens that it
            thinks most likely, and `log_probabilities` float32 of them and of the rest.
        stored_lengths: `lengths`, where they are known already.
        stored_supervised: `supervised`, where it is known already.
        stored_fingerprint: `fingerprint()`, where it is known already.
    """

    tokens: Int32[np.ndarray, "total"]
    weights: Float32[np.ndarray, "total"] | UInt8[np.ndarray, "total"]  # uint8 in files of weights 0 and 1
    offsets: Int64[np.ndarray, "rows_and_one"]
    ids: Sequence[str]
    groups: Labels
    sources: Labels
    branches: UInt8[np.ndarray, "total"] | None = None
    margins: Float32[np.ndarray, "examples"] | None = None
    scored: bool = False
    reference: Float32[np.ndarray, "targets"] | None = None
    teacher: np.ndarray | None = None
    stored_lengths: Sizes | None = None
    stored_supervised: Sizes | None = None
    stored_fingerprint: str = ""

    @classmethod
    def from_examples(
        cls,
        examples: Iterable[tuple[Numbers, Numbers]],
        ids: Sequence[str],
        groups: Sequence[str] = (),
        sources: Sequence[str] = (),
        branches: Sequence[np.ndarray | None] = (),
        margins: Numbers = (),
    ) -> "TokenizedExamples":
        """Examples from (tokens, weights) pairs; groups, sources, branches and margins may be left out.

        Raises:
            ValueError: an example is empty, its arrays differ in length, a weight is negative or not finite, or the
                number of ids, groups or sources is not the number of examples.
        """
        pairs = [(np.asarray(t, np.int32), np.asarray(w, np.float32)) for t, w in examples]
        if len(pairs) != len(ids):
            raise ValueError(f"{len(pairs)} examples but {len(ids)} ids: each example needs one id.")
        groups, sources = groups or [""] * len(ids), sources or [""] * len(ids)
        if len(groups) != len(ids) or len(sources) != len(ids):
            raise ValueError(f"{len(pairs)} examples but {len(groups)} groups and {len(sources)} sources.")
        for (tokens, weights), name in zip(pairs, ids, strict=True):
            if tokens.shape != weights.shape or tokens.ndim != 1 or not len(tokens):
                raise ValueError(
                    f"{name}: tokens {tokens.shape} and weights {weights.shape} must be of one length of at least 1."
                )
            if not (np.isfinite(weights).all() and (weights >= 0).all()):
                raise ValueError(f"{name}: weights must be finite and not negative.")
        offsets = np.zeros(len(pairs) + 1, np.int64)
        np.cumsum([len(tokens) for tokens, _ in pairs], out=offsets[1:])
        flat_weights = np.concatenate([w for _, w in pairs] or [np.zeros(0, np.float32)])
        flat_weights[offsets[:-1]] = 0
        flat_tokens = np.concatenate([t for t, _ in pairs] or [np.zeros(0, np.int32)])
        flat_branches = None
        if any(of_example is not None for of_example in branches):
            flat_branches = np.zeros(len(flat_tokens), np.uint8)
            for number, of_example in enumerate(branches):
                if of_example is not None:
                    flat_branches[offsets[number] : offsets[number + 1]] = of_example
        columns = Labels.of(groups), Labels.of(sources), flat_branches
        of_examples = np.asarray(margins, np.float32) if any(margins) else None
        return cls(flat_tokens, flat_weights, offsets, list(ids), *columns, of_examples)

    def __len__(self) -> int:
        return len(self.ids)

    def example(self, index: SupportsIndex) -> tuple[ExampleTokens, ExampleWeights]:
        """Tokens and weights of one example."""
        start = operator.index(index)
        piece = slice(self.offsets[start], self.offsets[start + 1])
        return self.tokens[piece], self.weights[piece].astype(np.float32, copy=False)

    def branches_of(self, index: SupportsIndex) -> ExampleBranches | None:
        """The branch of each token of one example; None for an example without branches."""
        if self.branches is None:
            return None
        start = operator.index(index)
        found = self.branches[self.offsets[start] : self.offsets[start + 1]]
        return found if found[-1] else None

    @functools.cached_property
    def target_offsets(self) -> Int64[np.ndarray, "rows_and_one"]:
        """Where the supervised tokens of each example begin among those of all."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.supervised, dtype=np.int64)])

    @functools.cached_property
    def text_lengths(self) -> Int32[np.ndarray, "texts examples"]:
        """Tokens of each text of an example: of one with branches, the trunk with each; 0 for branches it has not."""
        if self.branches is None:
            return self.lengths[None]
        trunks, longer = self._branch_sizes[0], self._branch_sizes[1:]
        only = np.where(self.branch_counts == 0, trunks, 0)[None]
        return np.concatenate([only, np.where(longer > 0, trunks + longer, 0)]).astype(np.int32)

    @functools.cached_property
    def _branch_sizes(self) -> Int32[np.ndarray, "branches examples"]:
        """Tokens of each branch of each example, of its trunk first."""
        sizes = [
            np.diff(np.searchsorted(np.flatnonzero(self.branches == number), self.offsets))
            for number in range(int(self.branches.max(initial=0)) + 1)
        ]
        return np.array(sizes, np.int32).reshape(-1, len(self))

    def has_branch(self, number: int) -> Bool[np.ndarray, "examples"]:
        """Of each example, whether it has the branch of that number."""
        if self.branches is None or number >= len(self._branch_sizes):
            return np.zeros(len(self), bool)
        return self._branch_sizes[number] > 0

    @functools.cached_property
    def branch_counts(self) -> Sizes:
        """Branches of each example; 0 where it has none."""
        if self.branches is None:
            return np.zeros(len(self), np.int32)
        return np.count_nonzero(self._branch_sizes[1:], axis=0).astype(np.int32)

    def of_first(self, records: Sequence[Record]) -> "TokenizedExamples":
        """The examples of the first records, which come first."""
        names = {record.id for record in records}
        count = next((number for number, name in enumerate(self.ids) if name not in names), len(self))
        if count == len(self):
            return self
        end = int(self.offsets[count])
        return TokenizedExamples(
            self.tokens[:end],
            self.weights[:end],
            self.offsets[: count + 1],
            self.ids[:count],
            Labels(self.groups.codes[:count], self.groups.names),
            Labels(self.sources.codes[:count], self.sources.names),
            None if self.branches is None else self.branches[:end],
            None if self.margins is None else self.margins[:count],
        )

    @functools.cached_property
    def lengths(self) -> Sizes:
        """Tokens of each example."""
        return np.diff(self.offsets).astype(np.int32) if self.stored_lengths is None else self.stored_lengths

    @functools.cached_property
    def supervised(self) -> Sizes:
        """Supervised tokens (weight > 0) of each example."""
        if self.stored_supervised is not None:
            return self.stored_supervised
        return np.diff(np.searchsorted(np.flatnonzero(self.weights), self.offsets)).astype(np.int32)

    def fingerprint(self) -> str:
        """sha256 over tokens, weights, offsets, ids, branches, margins: equal if and only if the training data are."""
        if self.stored_fingerprint:
            return self.stored_fingerprint
        digest = ExampleDigest()
        digest.add(self)
        return digest.fingerprint()


class ExampleDigest:
    """The fingerprint of examples that come piece by piece; how they are cut into pieces does not matter."""

    def __init__(self):
        self._parts = {name: hashlib.sha256() for name in ("tokens", "weights", "lengths", "ids", "id lengths")}
        self._branches, self._tokens, self._has_branches = hashlib.sha256(), 0, False
        self._margins, self._count, self._has_margins = hashlib.sha256(), 0, False

    def add(self, examples: TokenizedExamples) -> None:
        """Goes on with further examples."""
        ids = TextColumn.of(examples.ids)
        arrays = {
            "tokens": (examples.tokens, "<i4"),
            "weights": (examples.weights, "<f4"),
            "lengths": (examples.lengths, "<i8"),
            "ids": (ids.data, "<u1"),
            "id lengths": (np.diff(ids.ends, prepend=0), "<i8"),
        }
        for name, (array, dtype) in arrays.items():
            self._parts[name].update(np.ascontiguousarray(array, dtype).data)
        if examples.branches is not None:
            places = np.flatnonzero(examples.branches)
            pairs = np.stack([places + self._tokens, examples.branches[places]], axis=1)
            self._branches.update(np.ascontiguousarray(pairs, "<i8").data)
            self._has_branches |= len(places) > 0
        if examples.margins is not None:
            places = np.flatnonzero(examples.margins)
            pairs = np.stack([places + self._count, examples.margins[places]], axis=1)
            self._margins.update(np.ascontiguousarray(pairs, "<f8").data)
            self._has_margins |= len(places) > 0
        self._tokens, self._count = self._tokens + len(examples.tokens), self._count + len(examples)

    def fingerprint(self) -> str:
        """Of all examples so far."""
        parts = [*self._parts.values(), *([self._branches] if self._has_branches else [])]
        parts += [self._margins] if self._has_margins else []
        return hashlib.sha256("".join(part.hexdigest() for part in parts).encode()).hexdigest()


class DroppedRows(Sequence[DroppedRow]):
    """The dropped rows of a store, of which each `DroppedRow` is made when it is looked at."""

    def __init__(
        self,
        ids: TextColumn,
        reasons: Labels,
        details: TextColumn,
        tokens: Int32[np.ndarray, "dropped"],
        chosen: np.ndarray | None = None,
    ):
        """Wraps columns; `chosen` are the indices of the dropped rows to show (default: all)."""
        self._columns = ids, reasons, details, tokens
        self._chosen = np.arange(len(ids)) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = int(self._chosen[index])
        ids, reasons, details, tokens = self._columns
        return DroppedRow(ids[number], reasons[number], details[number], int(tokens[number]))

    @property
    def tokens(self) -> Int32[np.ndarray, "dropped"]:
        """`DroppedRow.tokens` of each dropped row."""
        return self._columns[3][self._chosen]

    def by_reason(self) -> "dict[str, DroppedRows]":
        """The dropped rows of each reason."""
        reasons = self._columns[1]
        codes = reasons.codes[self._chosen]
        groups = {name: self._chosen[codes == code] for code, name in enumerate(reasons.names)}
        return {name: DroppedRows(*self._columns, chosen) for name, chosen in groups.items() if len(chosen)}

    def where(self, keep: Callable[[str], bool]) -> "DroppedRows":
        """The dropped rows for whose reason `keep` is true."""
        reasons = self._columns[1]
        kept = np.array([keep(name) for name in reasons.names], bool)
        return DroppedRows(*self._columns, self._chosen[kept[reasons.codes[self._chosen]]])


def dropped_tokens(dropped: Sequence[DroppedRow]) -> Int32[np.ndarray, "dropped"]:
    """`DroppedRow.tokens` of each dropped row."""
    return dropped.tokens if isinstance(dropped, DroppedRows) else np.array([row.tokens for row in dropped], np.int32)


def dropped_where(dropped: Sequence[DroppedRow], keep: Callable[[str], bool]) -> Sequence[DroppedRow]:
    """The dropped rows for whose reason `keep` is true."""
    return dropped.where(keep) if isinstance(dropped, DroppedRows) else [row for row in dropped if keep(row.reason)]


def group_dropped(dropped: Sequence[DroppedRow]) -> dict[str, Sequence[DroppedRow]]:
    """Dropped rows by reason, the most frequent reason first."""
    if isinstance(dropped, DroppedRows):
        groups = dropped.by_reason()
    else:
        groups = collections.defaultdict(list)
        for row in dropped:
            groups[row.reason].append(row)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of records: `records == kept + dropped`, always.

    Attributes:
        records: how many there were.
        kept: of which at least one example is kept.
        dropped: of which none is.
        examples: how many examples the kept records became; more than `kept` where one record gives several.
    """

    records: int = 0
    kept: int = 0
    dropped: int = 0
    examples: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Counts(*(mine + its for mine, its in pairs))

    def check(self, records: int, examples: int) -> None:
        """Checks that nothing was lost on the way.

        Args:
            records: how many were read.
            examples: how many there are now.

        Raises:
            RuntimeError: the numbers do not add up.
        """
        if not (self.records == self.kept + self.dropped == records and self.examples == examples >= self.kept):
            raise RuntimeError(
                f"{records} records were read and {examples} examples made, but accounted for are {self}: some were "
                "lost or made up. This is a defect of the program."
            )


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """The examples of a data set, and what became of its records.

    Attributes:
        examples: what is trained on.
        dropped: the rows that were left out.
        counts: of the records.
        changed: how many examples do not hold all of their record, by reason.
        notes: further notes on them, in the types of JSON.
        keys: hashes of the records, in their order, without those that cleaning had dropped.
        first_examples: of each such record the number of its first example; -1 - n where it has none and is
            `dropped[n]`.
    """

    examples: TokenizedExamples
    dropped: Sequence[DroppedRow]
    counts: Counts
    changed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keys: RecordKeys = dataclasses.field(default_factory=lambda: RecordKeys.of((), NO_TEMPLATE))
    first_examples: Int64[np.ndarray, "records"] = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
