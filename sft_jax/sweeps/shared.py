"""What runs of one process share: tokenized rows, and the weights of the base, both read once.

Compiled programs are shared too, by the training itself: equal programs of a process are compiled once.
"""

import collections
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from sft_jax.options import ModelOptions, Options
from sft_jax.preparation.run_data import Data
from sft_jax.runs.base import Base, base_of
from sft_jax.training.read_once import ReadOnce

Tree = Any
_KEPT = 2  # data sets, and bases, that are held at a time: a sweep may go back and forth between two
_SHARE = 1 / 4  # of the machine's memory, for weights


class Shared:
    """What runs of one process share."""

    def __init__(self, keep_bytes: int | None = None):
        """Holds nothing yet.

        Args:
            keep_bytes: so much memory of the host may hold weights between runs; by default a quarter of all. Weights
                that need more are read anew for each run.
        """
        self._data = ReadOnce(_KEPT)
        self._bases: collections.deque[Base] = collections.deque(maxlen=_KEPT)
        self._keep_bytes = default_keep_bytes() if keep_bytes is None else keep_bytes

    def data(self, options: Options, device_count: int, console: Console) -> Data:
        """The data of a run, read where none before had the same rows; each has a plan of its own.

        Raises:
            ValueError: see `read_data`.
        """
        return self._data.data(options, device_count, console)

    def base(self, model: ModelOptions) -> Base:
        """The base of a run, whose weights are read for the first run that asks for them.

        Raises:
            ValueError: see `base_of`.
        """
        for base in self._bases:
            if not base.differs_from(model):
                return base
        base = base_of(model)
        weights = _KeptWeights(base.params, self._keep_bytes // _KEPT)
        self._bases.append(dataclasses.replace(base, params=weights))
        return self._bases[-1]


def default_keep_bytes(processes: int = 1) -> int:
    """How much memory of the host may hold weights between runs, in each of so many processes."""
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _SHARE) // processes


class _KeptWeights:
    """`Base.params` that reads once: a copy in the memory of the host is laid on the devices for every run.

    A copy, since the step takes over the arrays that it is given, frozen ones too.
    """

    def __init__(self, read: Callable[..., Tree], keep_bytes: int):
        self._read, self._keep_bytes = read, keep_bytes
        self._asked: tuple | None = None
        self._kept: Tree = None

    def __call__(self, layout: str, dtype: str, mesh: Mesh, quantized: str = "none") -> Tree:
        asked = (layout, dtype, mesh, quantized)
        if asked == self._asked:
            return jax.tree.map(lambda kept: jax.device_put(*kept), self._kept, is_leaf=_is_kept)
        self._asked = self._kept = None
        tree = self._read(layout, dtype, mesh, quantized)
        leaves = jax.tree.leaves(tree)
        if sum(leaf.nbytes for leaf in leaves) <= self._keep_bytes and all(
            leaf.is_fully_addressable for leaf in leaves
        ):
            self._kept = jax.tree.map(lambda leaf: (np.array(leaf), leaf.sharding), tree)
            self._asked = asked
        return tree


def _is_kept(node: Any) -> bool:
    return isinstance(node, tuple) and len(node) == 2 and isinstance(node[0], np.ndarray)
