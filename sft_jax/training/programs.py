"""Programs that the runs of one process share: equal ones are traced and compiled once.

`jit` finds what it compiled by the Python function. A function that is made anew in every run would be compiled anew;
so what makes one is kept by all that the program follows from, `shared`, and gives the same function again.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

Tree = Any

KEPT = 32  # programs of a kind; the least recently used go first
_MADE: list[Any] = []  # what `shared` keeps


def shared(make: Callable[..., Callable]) -> Callable[..., Callable]:
    """`make`, which gives the same jitted function for equal arguments.

    Args:
        make: its arguments are hashable, and say all that the program depends on beside the arrays it is called with:
            a function or module that is looked up by name in a registry is an argument too, since another one may come
            to have that name. They hold no arrays: what is kept would keep those.
    """
    kept = functools.lru_cache(maxsize=KEPT)(make)
    _MADE.append(kept)
    return kept


def forget() -> None:
    """Lets go of all shared programs: what is asked for afterwards is compiled anew."""
    for kept in _MADE:
        kept.cache_clear()


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a tree of arrays is, without the arrays; hashable.

    Attributes:
        structure: the tree.
        shapes: of its leaves, in their order.
        leaf_dtypes: likewise.
        leaf_shardings: likewise.
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    leaf_dtypes: tuple[np.dtype, ...]
    leaf_shardings: tuple[Sharding, ...]

    @property
    def shardings(self) -> Tree:
        """Shardings as a tree."""
        return jax.tree.unflatten(self.structure, self.leaf_shardings)

    @property
    def dtypes(self) -> Tree:
        """Dtypes as a tree."""
        return jax.tree.unflatten(self.structure, self.leaf_dtypes)


def signature_of(tree: Tree, shardings: Tree | None = None) -> Signature:
    """What a tree of arrays is, or of shapes that say where they live.

    Args:
        tree: arrays or shapes.
        shardings: a tree of the same structure; by default those that the leaves have.
    """
    leaves, structure = jax.tree.flatten(tree)
    placed = [leaf.sharding for leaf in leaves] if shardings is None else structure.flatten_up_to(shardings)
    shapes, dtypes = tuple(tuple(leaf.shape) for leaf in leaves), tuple(np.dtype(leaf.dtype) for leaf in leaves)
    return Signature(structure, shapes, dtypes, tuple(placed))
