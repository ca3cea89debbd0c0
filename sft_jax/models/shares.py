"""Reads a stored tensor in shares: each device's host reads some of its rows, and the devices exchange what they need.

A checkpoint stores most kernels as [out, in], and a mesh splits them along `in` first: what a host holds is a strip of
every row, too narrow to be read from a bucket or a disk by itself. So each device takes whole rows, as many as the
others, which lie in one piece of the file, and the mesh brings them into the layout that is wanted. Every byte is read
by one host, whatever is split or repeated. A tensor of all experts of a layer is read expert by expert, and each of
them by every host; any other large one in blocks of rows (`blocks_of`), so that a host has no more of it in memory.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from sft_jax.models.families.tables import TensorRule
from sft_jax.sources import TensorEntry

# Of a large tensor, what a host reads at a time. On its way to the devices it is there several times.
BLOCK_BYTES = 2**24


@dataclasses.dataclass(frozen=True)
class Share:
    """A parameter, or a piece of it, as the devices have read it.

    Attributes:
        array: split along the axis that the stored rows lie along, over all devices of the mesh; padded with zeros
            there, where they cannot be split evenly.
        shape: without the padding.
        axis: along which it is split; None where every device has all of it.
    """

    array: jax.Array
    shape: tuple[int, ...]
    axis: int | None

    def placed(self, wanted: Sharding) -> jax.Array:
        """Where it is wanted, without the padding; inside a jitted function."""
        array = self.array
        if isinstance(wanted, NamedSharding) and self.axis is not None:
            # Step by step: left to itself, XLA goes from one split to another through the whole on every device. It has
            # no other way where parts are uneven.
            even = array.shape == self.shape
            between = _over_rows(wanted, self.axis, array.ndim, spare=False) if even else P()
            array = jax.lax.with_sharding_constraint(array, NamedSharding(wanted.mesh, between))
        array = array[tuple(slice(0, size) for size in self.shape)]
        return jax.lax.with_sharding_constraint(array, wanted)


jax.tree_util.register_dataclass(Share, ["array"], ["shape", "axis"])


class RowReader:
    """Rows of one tensor after the other; those of the latest tensor are kept, of which several parameters may be."""

    def __init__(self, tensors: Mapping[str, TensorEntry]):
        """Reads nothing yet."""
        self._tensors, self._source = tensors, ""
        self._kept: dict[tuple[int, int], np.ndarray] = {}

    def entry(self, source: str) -> TensorEntry:
        """The tensor called `source`."""
        return self._tensors[source]

    def read(self, source: str, start: int, stop: int, alone: bool = False) -> np.ndarray:
        """The rows from `start` to before `stop` of the tensor called `source`; `alone`, no others of it are kept."""
        if source != self._source or (alone and (start, stop) not in self._kept):
            self._source, self._kept = source, {}
        if (start, stop) not in self._kept:
            self._kept[start, stop] = self._tensors[source].read(start, stop)
        return self._kept[start, stop]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a large parameter is read in blocks, each of which has as many rows of every device's part.

    Attributes:
        shape: of the parameter.
        axis: of the parameter, along which the stored rows lie.
        parts: that it is split into along this axis.
        spans: (start, stop) of each block, along this axis of each of the parts.
    """

    shape: tuple[int, ...]
    axis: int
    parts: int
    spans: tuple[tuple[int, int], ...]

    def rows(self, span: tuple[int, int]) -> np.ndarray:
        """Indices of a block along the axis of the whole parameter."""
        of_parts = np.arange(self.parts)[:, None] * (self.shape[self.axis] // self.parts)
        return (of_parts + np.arange(*span)[None]).ravel()


def blocks_of(rule: TensorRule, dtype: np.dtype, wanted: Callable[[tuple[int, ...]], Sharding]) -> Blocks:
    """The blocks in which `read_share` takes a tensor that is not of all experts: one, unless it is large.

    All but the last have rows that can be split evenly over the mesh.

    Args:
        rule: which tensor, and how its elements are ours.
        dtype: of the result.
        wanted: as of `read_share`.
    """
    places = _Places.of(rule)
    sharding, count = wanted(places.shape), len(places.rows)
    parts = devices = 1
    if isinstance(sharding, NamedSharding):
        along = _split(sharding, len(places.shape))[places.axis]
        parts, devices = math.prod(sharding.mesh.shape[name] for name in along), sharding.mesh.size
    each, unit = count // parts, devices // parts
    num_bytes, limit = math.prod(places.shape) * dtype.itemsize, BLOCK_BYTES * jax.process_count()
    if num_bytes <= limit:
        return Blocks(places.shape, places.axis, parts, ((0, each),))
    step = max(unit, each * limit // num_bytes // unit * unit)
    edges = dict.fromkeys((*range(0, each - each % unit, step), each - each % unit, each))
    return Blocks(places.shape, places.axis, parts, tuple(itertools.pairwise(edges)))


def read_share(
    rule: TensorRule,
    rows: RowReader,
    dtype: np.dtype,
    wanted: Callable[[tuple[int, ...]], Sharding],
    chosen: np.ndarray | None = None,
) -> Share:
    """What a rule says of a tensor, read by this process for its own devices alone.

    Args:
        rule: which tensor, and how its elements are ours.
        rows: reads it.
        dtype: of the result.
        wanted: from the shape of the parameter (a piece of it) to the sharding that it will have.
        chosen: indices along the axis that the stored rows lie along (`Blocks.rows`); None is all. No other rows of the
            tensor are kept.
    """
    if rule.part and len(rule.shape) > 2:
        return _read_expert(rule, rows, dtype, wanted)
    places = _Places.of(rule)
    sharding = wanted(places.shape)
    if chosen is not None:
        places = places.at(chosen)
        rows = RowReader({rule.source: rows.entry(rule.source)})
    shape, axis, count = places.shape, places.axis, len(places.rows)
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, _over_rows(sharding, axis, len(shape), spare=True))
        count = -(-count // sharding.mesh.size) * sharding.mesh.size

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[axis].indices(count)
        return places.read(functools.partial(rows.read, rule.source), start, stop, dtype)

    padded = (*shape[:axis], count, *shape[axis + 1 :])
    return Share(jax.make_array_from_callback(padded, sharding, shard), shape, axis)


def _read_expert(
    rule: TensorRule, rows: RowReader, dtype: np.dtype, wanted: Callable[[tuple[int, ...]], Sharding]
) -> Share:
    """One expert of a tensor of all: read by this process, which gives its devices what they shall have."""
    number, _ = rule.part
    shape = rule.view(np.broadcast_to(np.zeros((), dtype), rule.shape)).shape

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        stored = rows.read(rule.source, number, number + 1, alone=True)
        # Every expert is this one, so that the view finds it under its number.
        return rule.view(np.broadcast_to(stored, rule.shape))[index].astype(dtype)

    return Share(jax.make_array_from_callback(shape, wanted(shape), shard), shape, None)


def _over_rows(wanted: NamedSharding, axis: int, dimensions: int, *, spare: bool) -> P:
    """The axes that split what is wanted, all along one of the array: those that stay there come first.

    With `spare`, those of the mesh that are not among them come last, so that all devices have something to read.
    """
    split = _split(wanted, dimensions)
    stay = split.pop(axis)
    order = [*stay, *(name for axes in split for name in axes), *(wanted.mesh.axis_names if spare else ())]
    return P(*(None,) * axis, tuple(dict.fromkeys(order)))


def _split(sharding: NamedSharding, dimensions: int) -> list[tuple[str, ...]]:
    """For each axis of the array those of the mesh that split it."""
    split = [() if axes is None else (axes,) if isinstance(axes, str) else tuple(axes) for axes in sharding.spec]
    return split + [()] * (dimensions - len(split))


@dataclasses.dataclass(frozen=True)
class _Places:
    """Where the elements of a parameter lie in the stored tensor: a vector, or a matrix, or one with an axis of one
    between (a convolution, of each channel alone).

    Attributes:
        shape: of the parameter.
        axis: of the parameter, along which the stored rows lie.
        rows: the number of the stored row of each index along `axis`.
        columns: the number of the stored column of each index along the other axis; None for a vector.
    """

    shape: tuple[int, ...]
    axis: int
    rows: np.ndarray
    columns: np.ndarray | None

    @classmethod
    def of(cls, rule: TensorRule) -> "_Places":
        """Asks the rule's view where the rows go, and where the columns."""
        first, rows = _numbers_seen(rule, 0)
        if len(rule.shape) == 1:
            return cls((len(rows),), 0, rows, None)
        _, columns = _numbers_seen(rule, len(rule.shape) - 1)
        sizes = (len(rows), len(columns))
        return cls(sizes if first else sizes[::-1], 0 if first else 1, rows, columns)

    def at(self, chosen: np.ndarray) -> "_Places":
        """Some indices along `axis` alone."""
        shape = (*self.shape[: self.axis], len(chosen), *self.shape[self.axis + 1 :])
        return dataclasses.replace(self, shape=shape, rows=self.rows[chosen])

    def read(self, read: Callable[[int, int], np.ndarray], start: int, stop: int, dtype: np.dtype) -> np.ndarray:
        """The parameter from `start` to before `stop` along `axis`; zeros beyond its end."""
        rows = self.rows[start:stop]
        part = np.zeros((*self.shape[: self.axis], stop - start, *self.shape[self.axis + 1 :]), dtype)
        along = np.moveaxis(part, self.axis, 0)  # rows first, as they are stored
        for begin, end in _runs(rows):
            run = read(int(rows[begin]), int(rows[end - 1]) + 1)
            along[begin:end] = run if self.columns is None else run.reshape(len(run), -1)[:, _chosen(self.columns)]
        return part


def _numbers_seen(rule: TensorRule, axis: int) -> tuple[bool, np.ndarray]:
    """Whether an axis of the stored tensor comes first in the rule's view, and its indices in the view's order.

    The view is of an array that holds its own indices along `axis`, without memory for the other axis.
    """
    sizes = [1] * len(rule.shape)
    sizes[axis] = rule.shape[axis]
    seen = rule.view(np.broadcast_to(np.arange(rule.shape[axis]).reshape(sizes), rule.shape))
    varies = [stride != 0 for stride in seen.strides]
    return varies[0], seen[tuple(slice(None) if along else 0 for along in varies)].ravel()


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where pieces of rows that follow one another in the file begin and end: [4, 5, 6, 1, 2] is (0, 3), (3, 5)."""
    ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1), len(rows)]
    yield from (pair for pair in itertools.pairwise([0, *ends]) if pair[0] < pair[1])


def _chosen(numbers: np.ndarray) -> slice | np.ndarray:
    """An index that takes these; a slice, which copies nothing, where they follow one another."""
    follow = bool((np.diff(numbers) == 1).all())
    return slice(int(numbers[0]), int(numbers[-1]) + 1) if follow else numbers
