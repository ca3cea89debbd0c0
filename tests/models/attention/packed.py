"""Packed sequences for the tests of attention: inputs, who sees whom, and what a backend makes of them."""

import jax
import jax.numpy as jnp
import numpy as np

from sft_jax.models.attention import attention
from sft_jax.models.context import dealt, natural
from sft_jax.models.visibility import Visibility
from tests.models import reference

HEADS, KV_HEADS, HEAD_DIM = 6, 2, 8


def visibility(length, segmented=True):
    """Sequence 0: two segments and padding behind them; sequence 1: one segment."""
    first, second = length // 3, length // 2
    segments = np.ones((2, length), np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (2, 1))
    if segmented:
        segments[0, first : first + second], segments[0, first + second :] = 2, 0
        positions[0, first:] -= first
        positions[0, first + second :] -= second
    return Visibility(*(jnp.asarray(x) for x in (positions, positions, segments, segments)), in_order=True)


def branched(length):
    """Sequence 0: a trunk with two branches, a segment by itself, a trunk with one branch, and padding behind them.
    Sequence 1: a trunk with three branches."""
    tenth = length // 10
    trunk = length - 7 * tenth
    texts = (
        ((1, 1, 0, tenth), (2, 1, tenth, 2 * tenth), (3, 1, tenth, 3 * tenth), (4, 4, 0, tenth), (5, 5, 0, tenth),
         (6, 5, tenth, tenth), (0, 0, 0, length - 9 * tenth)),
        ((1, 1, 0, trunk), (2, 1, trunk, tenth), (3, 1, trunk, 2 * tenth), (4, 1, trunk, 4 * tenth)),
    )  # fmt: skip
    segments, parents, positions = np.zeros((3, 2, length), np.int32)
    for sequence, of_sequence in enumerate(texts):
        begin = 0
        for segment, parent, position, size in of_sequence:
            slots = (sequence, slice(begin, begin + size))
            segments[slots], parents[slots], positions[slots] = segment, parent, position + np.arange(size)
            begin += size
        assert begin == length
    arrays = (positions, positions, segments, segments, parents)
    return Visibility(*(jnp.asarray(x) for x in arrays), in_order=True)


def inputs(length, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, value_dim=0):
    """Query, key, value, and the cotangent of what is read; the last two may have a width of their own."""
    rng, counts = np.random.default_rng(0), (heads, kv_heads, kv_heads, heads)
    widths = (head_dim, head_dim, value_dim or head_dim, value_dim or head_dim)
    return [jnp.asarray(rng.normal(size=(2, length, *size)), jnp.float32) for size in zip(counts, widths, strict=True)]


def sinks_of(heads=HEADS):
    """About as large as scores are."""
    return jnp.asarray(np.random.default_rng(1).normal(size=heads), jnp.float32)


def results(backend, length, matmul_dtype="float32", window=0, softcap=0.0, parts=1, seen=None, sinks=None, **sizes):
    """What is read, and the gradients of query, key and value, from first to last slot; and of sinks if any.

    By default `visibility` is what is seen. With several parts, all arrays are dealt out to them first.
    """
    arrays, seen = inputs(length, **sizes), visibility(length) if seen is None else seen
    if parts > 1:
        arrays, seen = jax.tree.map(lambda x: dealt(x, parts), (arrays, seen.replace(dealt=parts)))

    @reference.jit
    def both(query, key, value, cotangent, seen, sinks):
        def run(query, key, value, sinks):
            return attention(query, key, value, seen, matmul_dtype, backend, window, softcap=softcap, sinks=sinks)

        out, pull = jax.vjp(run, query, key, value, sinks)
        *of_slots, of_sinks = pull(cotangent)
        return (out, *of_slots), of_sinks

    found, of_sinks = both(*arrays, seen, sinks)
    found = [np.asarray(natural(jnp.asarray(np.asarray(x)), parts) if parts > 1 else x) for x in found]
    return found if sinks is None else [*found, np.asarray(of_sinks)]


def differences(ours, theirs):
    """Relative difference of what is read, and of each gradient."""
    return [reference.relative(found, expected) for found, expected in zip(ours, theirs, strict=True)]
