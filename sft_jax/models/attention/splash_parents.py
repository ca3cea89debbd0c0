"""The splash kernel for sequences in which segments have parents: read twice, under one softmax.

The kernel compares one segment of a query with that of a key. So a first reading is of a query's own segment, a second
one of its parent, and what they read is put together by the sums of their weights (FlashAttention's way of joining
blocks, Dao et al. 2022, algorithm 1). The backward pass of each is that of the kernel, given what was read in all and
the sum of all weights: with these a score's gradient needs nothing of the other reading.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jaxtyping import Array, Float, Int

from sft_jax.models.attention.kept import KEPT
from sft_jax.models.attention.parents import QuerySegments

Kernel = splash_attention_kernel.SplashAttentionKernel
_NONE = -1  # no key is of this segment
_LANES = 128  # slots are padded to a multiple


class Readings(NamedTuple):
    """The kernels of both readings, which give the logarithm of the sum of weights too.

    Attributes:
        own: for keys of a query's own segment.
        parents: for those of its parent; it reads all blocks before a query, whatever the window.
    """

    own: Kernel
    parents: Kernel


@jax.custom_vjp
def read_with_parents(
    readings: Readings,
    query: Float[Array, "H s N"],
    key: Float[Array, "K S N"],
    value: Float[Array, "K S M"],
    segments: QuerySegments,
    key_segments: Int[Array, "S"],
    sinks: Float[Array, "H"] | None,
) -> Float[Array, "H s M"]:
    """What the queries of one sequence read.

    Args:
        readings: the two kernels.
        query: scaled, in the matmul dtype.
        key: in the matmul dtype.
        value: likewise.
        segments: of the queries [s], with parents.
        key_segments: of the keys.
        sinks: float32; None is none.
    """
    return _forward(readings, query, key, value, segments, key_segments, sinks)[0]


def _forward(readings, query, key, value, segments, key_segments, sinks):
    parts, after = [], key
    for (kernel, ids), of_reading in zip(_asked(readings, segments, key_segments), (sinks, None), strict=True):
        read, (sums,) = kernel(query, after, value, ids, of_reading)
        # The kernel gives each sum 128 times. One of them is taken before the next reading: else all would be kept,
        # and copied into another layout.
        sums, after = jax.lax.optimization_barrier((sums.reshape(len(sums), -1, _LANES), key))
        parts.append((read, sums.reshape(len(sums), -1)))
    log_sums = jnp.logaddexp(*(sums for _, sums in parts))
    out = sum(jnp.exp(sums - log_sums)[..., None] * read.astype(jnp.float32) for read, sums in parts)
    out, log_sums = (checkpoint_name(x, KEPT) for x in (out.astype(query.dtype), log_sums))
    return out, (readings, query, key, value, segments, key_segments, sinks, out, log_sums)


def _backward(residuals, cotangent):
    readings, query, key, value, segments, key_segments, sinks, out, log_sums = residuals
    found = [
        _gradients(kernel, (query, key, value, ids, None, out, log_sums), cotangent)
        for kernel, ids in _asked(readings, segments, key_segments)
    ]
    total = lambda *parts: sum(x.astype(jnp.float32) for x in parts).astype(parts[0].dtype)
    of_sinks = None if sinks is None else _sink_gradient(sinks, log_sums, out, cotangent)
    return None, *jax.tree.map(total, *found), None, None, of_sinks


read_with_parents.defvjp(_forward, _backward)


def _asked(readings, segments, key_segments):
    """The kernel and the segments of each reading."""
    parents = jnp.where(segments.parents == segments.own, _NONE, segments.parents)
    return [
        (kernel, splash_attention_kernel.SegmentIds(of_queries, key_segments))
        for kernel, of_queries in ((readings.own, segments.own), (_told(readings.parents, segments.behind), parents))
    ]


def _told(kernel, slots):
    """The kernel with these slots of queries, by which it masks what it reads."""
    infos = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
    return Kernel(*(info._replace(q_sequence=slots) for info in infos), **kernel.kwargs)


def _gradients(kernel, residuals, cotangent):
    """Those of queries, keys and values: JAX has no public function that takes what was read and the sums as given."""
    residuals = (*residuals, kernel.dq_mask_info, kernel.dkv_mask_info)
    found = splash_attention_kernel._splash_attention_bwd(**kernel.kwargs, res=residuals, do=cotangent)
    return found[3:6]


def _sink_gradient(sinks, log_sums, out, cotangent):
    """A sink is a key whose value is zero: its weight times minus the delta of each query."""
    deltas = jnp.sum(out.astype(jnp.float32) * cotangent.astype(jnp.float32), axis=-1)
    return -jnp.sum(jnp.exp(sinks[:, None] - log_sums) * deltas, axis=-1)
