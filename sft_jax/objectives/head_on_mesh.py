"""The vocabulary head over a mesh: two ways that sum no gradient of the head while chunks of slots go through it.

- The vocabulary is split: a device multiplies the hidden states of all devices with its part of the vocabulary. Then
  hidden states are gathered and their gradients summed, a chunk at a time; the head's gradient is whole where it is.
- The head is gathered: a device multiplies its own hidden states with the whole vocabulary. Then the head is gathered
  once before the chunks, and its gradient, summed by each device over its own chunks, is summed over devices once.

The first moves as many bytes as there are target slots, the second as the vocabulary has words: `head_on_mesh` takes
what moves fewer. Along `replica`, which does not split parameters, gradients are summed behind the chunks either way;
along `tensor` the vocabulary is always split.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Shaped

from sft_jax.models.partitioning import (
    BATCH_AXES,
    PARAM_AXES,
    constrain,
    fit_spec,
    gather_own,
    spec_of,
    sum_over,
    sum_to_own,
    without,
)

Tree = Any
_VOCABULARY = {"head": 1, "embedding": 0}  # its axis in what the head reads
_SPLIT = ("tensor", *PARAM_AXES)
_SLOTS = P(BATCH_AXES, "context")  # where target slots [B, P] and their hidden states lie


@dataclasses.dataclass(frozen=True)
class HeadOnMesh:
    """How the head is read on the mesh in force.

    Attributes:
        splits_vocabulary: each device has a part of the vocabulary; otherwise it gathers all of it.
        matmul_dtype: dtype in which the head is moved.
        gradient_dtype: dtype in which its gradient is summed over devices.
        stored: by path, where the head's weights live.
    """

    splits_vocabulary: bool
    matmul_dtype: str
    gradient_dtype: str
    stored: tuple[tuple[str, P], ...]

    @property
    def apart(self) -> tuple[str, ...]:
        """The axes along which devices go through the chunks each by itself, if the mesh has several along them."""
        sizes = jax.sharding.get_abstract_mesh().shape
        axes = ("replica",) if self.splits_vocabulary else (*BATCH_AXES, "context")
        if math.prod(sizes[axis] for axis in axes) == 1:
            return ()
        left = [axis for axis in sizes if axis not in axes]
        return axes if math.prod(sizes[axis] for axis in left) > 1 else tuple(sizes)

    @property
    def parts(self) -> int:
        """Into how many parts the slots of a sequence are split that go through the chunks together."""
        return jax.sharding.get_abstract_mesh().shape["context"] if self.splits_vocabulary else 1

    def read(self, weights: Tree) -> Tree:
        """The weights as products read them, in the matmul dtype; those of adapters, which are small, as they are."""
        return jax.tree_util.tree_map_with_path(self._read, weights)

    def _read(self, path: tuple, weight: Array) -> Array:
        stored = self._stored(path)
        weight = weight if _axis(path) is None else weight.astype(self.matmul_dtype)
        weight = constrain(weight, *stored) if self.splits_vocabulary else gather_own(weight, stored)
        return self._like_read(path, weight)

    def like_read(self, gradients: Tree) -> Tree:
        """Gradients of such weights, where these lie."""
        return jax.tree_util.tree_map_with_path(self._like_read, gradients)

    def _like_read(self, path: tuple, array: Array) -> Array:
        axes = [None] * array.ndim
        if (axis := _axis(path)) is not None:
            axes[axis] = _SPLIT if self.splits_vocabulary else "tensor"
        return constrain(array, *axes)

    def of_all(self, hidden: Float[Array, "B C D"]) -> Float[Array, "B C D"]:
        """The hidden states that meet this device's part of the vocabulary."""
        return constrain(hidden, "replica", None, None) if self.splits_vocabulary else hidden

    def own(self, of_slots: Shaped[Array, "B C ..."]) -> Shaped[Array, "B C ..."]:
        """What was made of them, where the states came from; of their gradients the sum of the parts."""
        return constrain(of_slots, *_SLOTS, *[None] * (of_slots.ndim - 2)) if self.splits_vocabulary else of_slots

    def logits(self, logits: Float[Array, "B C V"]) -> Float[Array, "B C V"]:
        """Logits, and so their gradients, by the parts of the vocabulary."""
        return constrain(logits, None, None, _SPLIT if self.splits_vocabulary else "tensor")

    def summed(self, gradients: Tree, like: Tree) -> Tree:
        """Gradients of `read` weights, float32, summed over devices and laid out like the weights; in their dtype."""
        sum_of = lambda path, gradient, weight: self._summed(path, gradient).astype(weight.dtype)
        return jax.tree_util.tree_map_with_path(sum_of, gradients, like)

    def _summed(self, path: tuple, gradient: Array) -> Array:
        if not self.splits_vocabulary:
            return sum_to_own(gradient.astype(self.gradient_dtype), self._stored(path))
        if self.apart:
            gradient = sum_over(gradient.astype(self.gradient_dtype), self.apart)
        return _row_major(constrain(gradient, *self._stored(path)))

    def total(self, metrics: Tree) -> Tree:
        """Sums over all devices."""
        return jax.lax.psum(metrics, self.apart) if self.apart else metrics

    def run(self, function: Callable, trained: Tree, frozen: Tree, *of_slots: Tree, gives: str) -> Tree:
        """`function(trained, frozen, *of_slots)` on each device's own part of what it takes, along `apart`.

        It gives `metrics`; with `gradients` also those of `trained` and of the first of `of_slots`; or `slots`: a value
        for each slot.
        """
        if not self.apart:
            return function(trained, frozen, *of_slots)
        specs = lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: self._along(self._stored(path)), tree)
        placed = self._along(_SLOTS)
        out_specs = {"metrics": P(), "gradients": (P(), (specs(trained), placed)), "slots": placed}[gives]
        in_specs = (specs(trained), specs(frozen), *(placed for _ in of_slots))
        alone = jax.shard_map(
            function, in_specs=in_specs, out_specs=out_specs, axis_names=set(self.apart), check_vma=False
        )
        return alone(trained, frozen, *of_slots)

    def _stored(self, path: tuple) -> P:
        return dict(self.stored)[_name(path)]

    def _along(self, spec: P) -> P:
        sizes = jax.sharding.get_abstract_mesh().shape
        return without(spec, [axis for axis in sizes if axis not in self.apart])


def head_on_mesh(
    trained: Tree, frozen: Tree, hidden: Float[Array, "B P D"], matmul_dtype: str, gradient_dtype: str
) -> HeadOnMesh | None:
    """How these weights are read by the hidden states of a micro-batch on the mesh in force.

    None where neither sequences nor parameters are split, or not evenly: that is left to the compiler.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.shape[axis] for axis in (*BATCH_AXES, "context")) == 1:
        return None
    if None in fit_spec(_SLOTS, hidden.shape[:2], dict(mesh.shape)):
        return None
    splits = _bytes_of_states(hidden) < _bytes_of_head(trained, frozen, matmul_dtype, gradient_dtype)
    named = [(_name(path), leaf) for tree in (trained, frozen) for path, leaf in jax.tree.leaves_with_path(tree)]
    stored = tuple((name, spec_of(name, leaf.shape, dict(mesh.shape))) for name, leaf in named)
    return HeadOnMesh(splits and _divides(trained) and _divides(frozen), matmul_dtype, gradient_dtype, stored)


def _bytes_of_states(hidden: Array) -> int:
    """What a device receives where the vocabulary is split: hidden states of all, and sums of float32 gradients."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return hidden.size // sizes["replica"] * (hidden.dtype.itemsize + jnp.dtype("float32").itemsize)


def _bytes_of_head(trained: Tree, frozen: Tree, matmul_dtype: str, gradient_dtype: str) -> int:
    """What it receives where the head is gathered: its weights, and the sum of gradients of those that are trained."""
    tensor = jax.sharding.get_abstract_mesh().shape["tensor"]
    read, summed = (jnp.dtype(dtype).itemsize for dtype in (matmul_dtype, gradient_dtype))
    size = lambda tree: sum(leaf.size for _, leaf in _vocabularies(tree))
    return (size(trained) * (read + summed) + size(frozen) * read) // tensor


def _divides(weights: Tree) -> bool:
    """Whether the mesh splits each vocabulary evenly."""
    sizes = jax.sharding.get_abstract_mesh().shape
    count = math.prod(sizes[axis] for axis in _SPLIT)
    return all(leaf.shape[axis] % count == 0 for axis, leaf in _vocabularies(weights))


def _vocabularies(tree: Tree) -> list[tuple[int, Array]]:
    """Heads, and embeddings that are heads, each with its axis of the vocabulary."""
    leaves = {_name(path): (_axis(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)}
    is_read = lambda name: not (name.endswith("embedding") and name.removesuffix("embedding") + "head" in leaves)
    return [(axis, leaf) for name, (axis, leaf) in leaves.items() if axis is not None and is_read(name)]


def _axis(path: tuple) -> int | None:
    """The axis of the vocabulary in a weight that is the head or an embedding; None for anything else."""
    *parents, name = _name(path).split("/")
    return _VOCABULARY.get(name) if parents and parents[-1] == "params" else None


def _row_major(gradient: Array) -> Array:
    """On TPUs, in memory as parameters are; else XLA has the step begin with copies of the head and its moments in the
    order that the gradient's product gives."""
    row_major = lambda x: with_layout_constraint(x, Layout(tuple(range(x.ndim))))
    return jax.lax.platform_dependent(gradient, tpu=row_major, default=lambda x: x)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
