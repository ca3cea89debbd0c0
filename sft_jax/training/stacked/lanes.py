"""The states of several runs as one: what is a run's own gets a leading axis of trials, what is frozen stays as it is.

Adapters of different ranks are made as wide as the widest: the columns beyond a run's own rank are 0. A column of A
that is 0 makes a row of B that has no gradient, and the other way round, so that both stay exactly 0, and so do their
moments. The rank by which an update is scaled is then one of the run's hyperparameters (`variables.rank_name`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from sft_jax.models import adapters
from sft_jax.models.variables import canonical_path, merge, rank_name
from sft_jax.sharding import abstract_like, shardings_of
from sft_jax.training.programs import Signature, shared, signature_of
from sft_jax.training.state import TrainState

Tree = Any


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What all runs read and none changes.

    Attributes:
        params: the frozen weights.
        base: as in `TrainState`.
    """

    params: Tree
    base: Tree

    @property
    def arrays(self) -> Tree:
        """Both, as a tree."""
        return {"params": self.params, "base": self.base}


def frozen_of(state: TrainState) -> Frozen:
    """What of a state is the same for all runs that begin with this base."""
    return Frozen({kind: tree for kind, tree in state.frozen.items() if kind != adapters.COLLECTION}, state.base)


def own_part(state: TrainState) -> TrainState:
    """What of a state is the run's own."""
    constants = {kind: tree for kind, tree in state.frozen.items() if kind == adapters.COLLECTION}
    return state.replace(frozen=constants, base={})


def whole(own: TrainState, frozen: Tree) -> TrainState:
    """The inverse of `own_part`; `frozen` is what `Frozen.arrays` gives."""
    return own.replace(frozen={**frozen["params"], **own.frozen}, base=frozen["base"])


class Lanes:
    """The layout of several runs' states in one.

    Attributes:
        widest: the part of a run's state that is its own, at the largest ranks: shapes and dtypes.
        count: of the runs.
    """

    def __init__(self, states: Sequence[TrainState], mesh: Mesh):
        """Looks at the states of the runs, one each; their values do not matter."""
        owns = [own_part(state) for state in states]
        self._mesh, self.count = mesh, len(states)
        self._own = [signature_of(own, shardings_of(own, mesh)) for own in owns]
        ranks = [_ranks(state) for state in states]
        largest = {name: max(of[name] for of in ranks) for name in ranks[0]}
        names = [name for name in largest if any(of[name] != largest[name] for of in ranks)]
        self._hyper = [state.hyper for state in states]
        self._ranks = [{rank_name(name): np.float32(of[name]) for name in names} for of in ranks]
        shape = lambda *leaves: tuple(max(sizes) for sizes in zip(*(leaf.shape for leaf in leaves), strict=True))
        shapes = jax.tree.map(lambda *leaves: jax.ShapeDtypeStruct(shape(*leaves), leaves[0].dtype), *owns)
        scalar = jax.ShapeDtypeStruct((), jnp.float32)
        self.widest = shapes.replace(hyper=shapes.hyper | {rank_name(name): scalar for name in names})

    @property
    def shardings(self) -> TrainState:
        """Of the state of all runs: that of a single one, and no device holds a part of the axis of trials."""
        of_one = shardings_of(self.widest, self._mesh)
        return jax.tree.map(lambda sharding: NamedSharding(self._mesh, P(None, *sharding.spec)), of_one)

    @property
    def abstract(self) -> TrainState:
        """Shapes, dtypes and shardings of the state of all runs."""
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((self.count, *leaf.shape), leaf.dtype), self.widest)
        return abstract_like(shapes, self.shardings)

    @property
    def signature(self) -> Signature:
        """The same, hashable."""
        return signature_of(self.abstract)

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        """The states of the runs as one."""
        owns = [
            own_part(state).replace(hyper=state.hyper | ranks) for state, ranks in zip(states, self._ranks, strict=True)
        ]
        return _stacker(self.signature)(owns)

    def take(self, lanes: TrainState, number: int, frozen: Frozen) -> TrainState:
        """The state of one run, as it would be without the others."""
        taken = _taker(self.signature, self._own[number])(lanes.replace(hyper={}), number)
        return whole(taken.replace(hyper=self._hyper[number]), frozen.arrays)


def _ranks(state: TrainState) -> dict[str, int]:
    """The rank of every adapter, by the canonical path of its weight."""
    beside = merge(state.trained, state.frozen).get(adapters.COLLECTION, {})
    flat = flatten_dict(beside, sep="/")
    return {canonical_path(path[:-2]): leaf.shape[-1] for path, leaf in flat.items() if path.endswith("/a")}


def _templates(signature: Signature, shapes: Sequence[tuple[int, ...]]) -> TrainState:
    """A state of shapes."""
    leaves = [jax.ShapeDtypeStruct(*of) for of in zip(shapes, signature.leaf_dtypes, strict=True)]
    return jax.tree.unflatten(signature.structure, leaves)


@shared
def _stacker(lanes: Signature) -> Callable[[list[TrainState]], TrainState]:
    shapes = _templates(lanes, [shape[1:] for shape in lanes.shapes])

    def widened(leaf: Array, like: jax.ShapeDtypeStruct) -> Array:
        return jnp.zeros(like.shape, leaf.dtype).at[tuple(slice(0, size) for size in leaf.shape)].set(leaf)

    def stacked(owns: list[TrainState]) -> TrainState:
        return jax.tree.map(lambda like, *leaves: jnp.stack([widened(leaf, like) for leaf in leaves]), shapes, *owns)

    return jax.jit(stacked, out_shardings=lanes.shardings)


@shared
def _taker(lanes: Signature, own: Signature) -> Callable[[TrainState, Array], TrainState]:
    """From the state of all, without hyperparameters, and the number of a run to that of the run."""
    del lanes
    shapes = _templates(own, own.shapes).replace(hyper={})
    shardings = own.shardings.replace(hyper={})

    def taken(lanes: TrainState, number: Array) -> TrainState:
        one = lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False)
        return jax.tree.map(lambda leaf, like: one(leaf)[tuple(slice(0, size) for size in like.shape)], lanes, shapes)

    return jax.jit(taken, out_shardings=shardings)
