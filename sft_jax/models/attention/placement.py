"""Attention on the devices of a mesh, each on what it holds: a fused kernel cannot be split by the compiler.

A device has its sequences, its heads, and its part of the queries of a sequence. The keys and values of all parts are
gathered (Llama 3, Dubey et al. 2024, section 3.3.2): with few key heads that is little beside what the queries do.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from sft_jax.models.attention.parents import query_segments
from sft_jax.models.context import natural
from sft_jax.models.partitioning import BATCH_AXES, fit_spec
from sft_jax.models.visibility import Visibility

CONTEXT, TENSOR = "context", "tensor"


class Placement(NamedTuple):
    """How attention is split over the mesh in force.

    Attributes:
        spec: of queries [B, S, H, N], and of keys and values before they are gathered; None outside of a mesh.
        repeats: as how many each key head is counted, so that every device has the key heads of its query heads.
    """

    spec: P | None
    repeats: int

    @property
    def of_heads(self) -> P:
        """How an array with one entry a query head is split."""
        return P(self.spec[2]) if self.spec else P()

    @property
    def parts(self) -> int:
        """In how many parts the queries of a sequence are split."""
        return jax.sharding.get_abstract_mesh().shape[CONTEXT] if self.spec and self.spec[1] else 1


def placement(query: Float[Array, "B S H N"], key: Float[Array, "B S K N"]) -> Placement:
    """How attention is split. Axes that do not divide their dimension are left out, as by `constrain`.

    Where `tensor` splits the query heads and has more devices than there are key heads, key heads are repeated.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return Placement(None, 1)
    spec = fit_spec(P(BATCH_AXES, CONTEXT, TENSOR, None), query.shape, dict(mesh.shape))
    kv_heads = key.shape[2]
    return Placement(spec, math.lcm(kv_heads, mesh.shape[TENSOR]) // kv_heads if spec[2] else 1)


def on_each_device(
    local: Callable[..., Array],
    placed: Placement,
    query: Float[Array, "B S H N"],
    key: Float[Array, "B S K N"],
    value: Float[Array, "B S K M"],
    visibility: Visibility,
    more: Any,
    more_specs: Any,
) -> Float[Array, "B S H M"]:
    """Calls `local` with what each device holds.

    Args:
        local: of queries [b, s, h, N], keys [b, S, k, N] and values [b, S, k, M] from first to last, the
            `QuerySegments`, the segments of the keys, and what a device has of `more`.
        placed: how it is split.
        query: those of the model, as `visibility` orders them.
        key: likewise.
        value: likewise.
        visibility: in order, of one sequence that sees itself.
        more: other arrays that `local` needs.
        more_specs: how those are split.
    """
    if placed.repeats > 1:
        key, value = (jnp.repeat(x, placed.repeats, axis=2) for x in (key, value))

    def on_device(query, key, value, segments, more):
        keys = (key, value, segments.own)
        if placed.parts > 1:
            keys = tuple(jax.lax.all_gather(x, CONTEXT, axis=1, tiled=True) for x in keys)
        if visibility.dealt > 1:
            keys = tuple(natural(x, visibility.dealt) for x in keys)
        return local(query, *keys[:2], segments, keys[2], more)

    arrays = (query, key, value, query_segments(visibility), more)
    if placed.spec is None:
        return on_device(*arrays)
    specs = (placed.spec,) * 3 + (P(*placed.spec[:2]), more_specs)
    return jax.shard_map(on_device, in_specs=specs, out_specs=placed.spec, check_vma=False)(*arrays)
