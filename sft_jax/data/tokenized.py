"""Tokenized rows: all examples of a data set as three flat arrays, and the rows that had to be left out.

Stands between rendering (conversation -> tokens and weights) and packing (rows -> bins). From here on a row is an
integer index; its id is only looked up for people.
"""

import collections
import dataclasses
import hashlib
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float32, Int32, Int64

from sft_jax.data.records import DroppedRow, Record
from sft_jax.data.rendering import ConversationRenderer, RowError

RowTokens = Int32[np.ndarray, "row"]
RowWeights = Float32[np.ndarray, "row"]
Sizes = Int64[np.ndarray, "rows"]
Numbers = Sequence | np.ndarray

_ROWS_PER_CALL = 256  # records handed to the tokenizer at once: enough to amortise the call, small for progress


@dataclasses.dataclass(frozen=True)
class TokenizedRows:
    """Rows of different length, one after the other.

    Attributes:
        tokens: all token ids.
        weights: the weight of each token as a target; 0 is not trained. The first token of a row is always 0, since
            nothing stands before it to predict it.
        offsets: row i is `tokens[offsets[i]:offsets[i + 1]]`.
        ids: the name of each row, for people ("train.jsonl:12").
    """

    tokens: Int32[np.ndarray, "total"]
    weights: Float32[np.ndarray, "total"]
    offsets: Int64[np.ndarray, "rows_and_one"]
    ids: list[str]

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[Numbers, Numbers]], ids: Sequence[str]) -> "TokenizedRows":
        """Rows from (tokens, weights) pairs.

        Raises:
            ValueError: a row is empty, its arrays differ in length, a weight is negative or not finite, or the
                number of ids is not the number of rows.
        """
        pairs = [(np.asarray(t, np.int32), np.asarray(w, np.float32)) for t, w in rows]
        if len(pairs) != len(ids):
            raise ValueError(f"{len(pairs)} rows but {len(ids)} ids: each row needs one id.")
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
        return cls(flat_tokens, flat_weights, offsets, list(ids))

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: SupportsIndex) -> tuple[RowTokens, RowWeights]:
        """Tokens and weights of one row (views)."""
        start = operator.index(index)
        piece = slice(self.offsets[start], self.offsets[start + 1])
        return self.tokens[piece], self.weights[piece]

    @property
    def lengths(self) -> Sizes:
        """Tokens of each row."""
        return np.diff(self.offsets)

    @property
    def supervised(self) -> Sizes:
        """Supervised tokens (weight > 0) of each row."""
        running = np.zeros(len(self.weights) + 1, np.int64)
        np.cumsum(self.weights > 0, out=running[1:])
        return np.diff(running[self.offsets])

    def fingerprint(self) -> str:
        """sha256 over tokens, weights, offsets and ids: equal if and only if the training data are the same."""
        digest = hashlib.sha256()
        for array in (self.tokens, self.weights, self.offsets):
            little_endian = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            digest.update(f"{little_endian.dtype.str}{little_endian.shape};".encode())
            digest.update(little_endian.tobytes())
        for name in self.ids:
            encoded = name.encode()
            digest.update(f"{len(encoded)}:".encode() + encoded)
        return digest.hexdigest()


def group_dropped(dropped: Sequence[DroppedRow]) -> dict[str, list[DroppedRow]]:
    """Dropped rows by reason, the most frequent reason first."""
    groups = collections.defaultdict(list)
    for row in dropped:
        groups[row.reason].append(row)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


class NoRowsError(ValueError):
    """Every row was dropped, so there is nothing to train on. The message lists the reasons."""


def tokenize_records(
    records: Sequence[Record],
    renderer: ConversationRenderer,
    max_tokens_per_row: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[TokenizedRows, list[DroppedRow]]:
    """Tokens and weights of all records; what cannot be used is dropped and named.

    Args:
        records: from `read_records`.
        renderer: the chat template and tokenizer of the model.
        max_tokens_per_row: the longest a row may be; the renderer's masking says what becomes of longer ones.
        progress: called with (records done, records in all) now and then.

    Returns:
        The kept rows in the order of the records, and the dropped rows; together exactly as many as `records`.

    Raises:
        NoRowsError: all rows were dropped.
        ValueError: a row is too long, and the masking makes that an error.
    """
    kept, ids, dropped = [], [], []
    for start in range(0, len(records), _ROWS_PER_CALL):
        chunk = records[start : start + _ROWS_PER_CALL]
        for record, found in zip(
            chunk, renderer.render_many([r.example for r in chunk], max_tokens_per_row), strict=True
        ):
            if isinstance(found, RowError):
                if found.stops:
                    raise ValueError(f"{record.id}: {found}")
                dropped.append(DroppedRow(record.id, found.reason, found.detail))
                continue
            for row in found:
                kept.append((row.tokens, row.weights))
                ids.append(record.id)
        if progress is not None:
            progress(start + len(chunk), len(records))
    if not kept:
        raise NoRowsError(_nothing_left(len(records), dropped))
    return TokenizedRows.from_rows(kept, ids), dropped


def _nothing_left(count: int, dropped: Sequence[DroppedRow]) -> str:
    if not count:
        return "There are no records to train on."
    lines = [f"All {count} rows were dropped, nothing is left to train on:"]
    for reason, rows in group_dropped(dropped).items():
        first = f"{rows[0].id}, {rows[0].detail}" if rows[0].detail else rows[0].id
        lines.append(f"  {len(rows)} x {reason} (first: {first})")
    return "\n".join(lines)
