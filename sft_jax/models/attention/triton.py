"""Attention on GPUs: kernels that make scores a block at a time (`triton_kernels.py`), and their gradient.

The kernels have one width for queries, keys and values: narrower ones get zeros behind, of which nothing comes.
Packed sequences, parents, grouped heads, windows and softcaps are said in the kernels. They are told slots, not
positions: of packed sequences that is the same, for inside a segment positions grow by one from slot to slot; where
there are parents, also the slots that there would be without what stands in between. Products take inputs in the matmul
dtype, sums are float32. On CPUs the same kernels are interpreted, which is for tests.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from sft_jax.models.attention import triton_kernels
from sft_jax.models.attention.kept import KEPT
from sft_jax.models.attention.placement import CONTEXT, on_each_device, placement
from sft_jax.models.attention.triton_kernels import BLOCK, LOG2_E, Form, Who
from sft_jax.models.context import dealt_order
from sft_jax.models.visibility import Visibility


def triton_attention(
    query: Float[Array, "B S H N"],
    key: Float[Array, "B S K N"],
    value: Float[Array, "B S K M"],
    visibility: Visibility,
    window: int,
    matmul_dtype: str,
    scale: float,
    softcap: float,
    sinks: Float[Array, "H"] | None = None,
) -> Float[Array, "B S H M"]:
    """Scaled dot-product attention with grouped key/value heads; softmax in float32.

    Args:
        query: H query heads; head h reads key/value head h // (H / K).
        key: K key heads, of the same slots.
        value: K value heads, of a width of their own.
        visibility: which keys each query sees, in order.
        window: positions that a query sees, itself included; 0 is all.
        matmul_dtype: dtype of the inputs of the matrix products, and of what is read before it is cast back.
        scale: factor on scores.
        softcap: scores x become softcap tanh(x / softcap); 0 leaves them.
        sinks: one more score of each head, with no value; None is none.
    """
    placed, length, dealt = placement(query, key), query.shape[1], visibility.dealt
    width = value.shape[-1]
    query, key, value = _of_one_width(query, key, value)
    size = jnp.asarray([min(window or length, length)], jnp.int32)
    chunks = 2 * dealt // placed.parts if dealt > 1 else 1  # of a device, each of slots that follow on one another
    firsts = jnp.asarray(_first_slots(length, dealt, placed.parts, chunks))

    def local(query, key, value, segments, key_segments, more):
        firsts, size, sinks = more
        sinks = None if sinks is None else sinks.astype(jnp.float32)
        in_blocks = functools.partial(_in_blocks, chunks=chunks)
        queries = in_blocks((query.astype(jnp.float32) * scale).astype(matmul_dtype))
        keys, values = (_in_blocks(x.astype(matmul_dtype), chunks=1) for x in (key, value))
        who = Who(jax.tree.map(in_blocks, segments), _in_blocks(key_segments, chunks=1), firsts, size)
        mixed = _attention(queries, keys, values, sinks, who, softcap, chunks)
        mixed = mixed.reshape(mixed.shape[0], chunks, -1, *mixed.shape[2:])[:, :, : query.shape[1] // chunks]
        return mixed.reshape(query.shape).astype(query.dtype)

    specs = (P(CONTEXT if placed.parts > 1 else None), P(), placed.of_heads)
    mixed = on_each_device(local, placed, query, key, value, visibility, (firsts, size, sinks), specs)
    return mixed[..., :width]


def _of_one_width(*heads: Float[Array, "B S _ _"]) -> list[Float[Array, "B S _ N"]]:
    """Each with zeros behind, up to the width of the widest."""
    width = max(x.shape[-1] for x in heads)
    return [jnp.pad(x, [(0, 0)] * 3 + [(0, width - x.shape[-1])]) for x in heads]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attention(query, key, value, sinks, who, softcap, chunks):
    return _forward(query, key, value, sinks, who, softcap, chunks)[0]


def _forward(query, key, value, sinks, who, softcap, chunks):
    out, log_sums = _on_platform(triton_kernels.forward, softcap, chunks)(query, key, value, sinks, who)
    out, log_sums = (checkpoint_name(x, KEPT) for x in (out, log_sums))
    return out, (query, key, value, sinks, who, out, log_sums)


def _backward(softcap, chunks, residuals, cotangent):
    query, key, value, sinks, who, out, log_sums = residuals
    deltas = jnp.einsum("bshn,bshn->bhs", out.astype(jnp.float32), cotangent.astype(jnp.float32))
    arrays = (query, key, value, who, log_sums, deltas, cotangent)
    gradients = _on_platform(triton_kernels.backward, softcap, chunks)(*arrays)
    return *gradients, None if sinks is None else _sink_gradient(sinks, log_sums, deltas), None


_attention.defvjp(_forward, _backward)


def _sink_gradient(sinks, log_sums, deltas):
    """A sink is a key whose value is zero: its weight times minus the delta of each query."""
    weights = jnp.exp2(sinks[None, :, None] * LOG2_E - log_sums)
    return -jnp.sum(weights * deltas, axis=(0, 2))


def _on_platform(kernels, softcap, chunks):
    """The kernels, interpreted where they are lowered for CPUs."""
    on_gpu, on_cpu = (
        functools.partial(kernels, form=Form(softcap, chunks, interpret=interpret)) for interpret in (False, True)
    )
    return lambda *arrays: jax.lax.platform_dependent(*arrays, cuda=on_gpu, cpu=on_cpu)


def _first_slots(length: int, dealt: int, parts: int, chunks: int) -> np.ndarray:
    """Slot of the first query of each block, for all devices one after the other."""
    starts = dealt_order(length, dealt)[:: length // (parts * chunks)]
    blocks = -(-length // (parts * chunks) // BLOCK)
    return (starts[:, None] + BLOCK * np.arange(blocks)[None]).astype(np.int32).ravel()


def _in_blocks(x: Array, chunks: int) -> Array:
    """With padding behind each chunk, of segment 0, up to whole blocks; what it gives is not read."""
    x = x.reshape(x.shape[0], chunks, -1, *x.shape[2:])
    x = jnp.pad(x, [(0, 0), (0, 0), (0, -x.shape[2] % BLOCK)] + [(0, 0)] * (x.ndim - 3))
    return x.reshape(x.shape[0], -1, *x.shape[3:])
