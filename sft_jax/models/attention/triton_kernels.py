"""The three kernels of attention on GPUs, in Pallas for Triton: what is read, and the gradients of queries and of keys.

The algorithm is that of FlashAttention-2 (Dao 2023): a program takes one block of queries (or of keys), goes through
the blocks that these see (or that see these), and holds nothing larger than a block of scores. Queries stand in blocks
of `BLOCK` slots that follow on one another; each block is told its first slot, so that a device may have any of them.

Dimensions: B batch, S queries, T keys, H heads, K key/value heads, N head dim, I blocks of queries, C chunks of them.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from sft_jax.models.attention.parents import QuerySegments

BLOCK = 64  # slots of queries and of keys
_LOWEST = -1e30  # finite: exp of (-inf) - (-inf) would be NaN
LOG2_E = math.log2(math.e)  # GPUs have 2 ** x in hardware


class Who(NamedTuple):
    """Who sees whom.

    Attributes:
        segments: which segments each query sees.
        key_segments: segment of each key; keys stand from first to last.
        first_slots: slot of the first query of each block.
        window: slots that a query sees, itself included.
    """

    segments: QuerySegments
    key_segments: Int[Array, "B T"]
    first_slots: Int[Array, "I"]
    window: Int[Array, "1"]


class Form(NamedTuple):
    """What is static in the kernels.

    Attributes:
        softcap: of the scores; 0 is none.
        chunks: the blocks of queries are so many runs, equally long, in each of which slot follows on slot.
        interpret: for CPUs, without Triton.
    """

    softcap: float
    chunks: int
    interpret: bool


def forward(
    query: Float[Array, "B S H N"],
    key: Float[Array, "B T K N"],
    value: Float[Array, "B T K N"],
    sinks: Float[Array, "H"] | None,
    who: Who,
    form: Form,
) -> tuple[Float[Array, "B S H N"], Float[Array, "B H S"]]:
    """What queries read, and the logarithm to base 2 of the sums of their weights; queries are scaled already.

    The sums have the weights of sinks, which are float32, in them.
    """
    batch, length, heads, _ = query.shape
    of_block, of_keys, of_who = _specs(query, key, who)
    of_row = pl.BlockSpec((None, None, BLOCK), lambda i, b, h: (b, h, i))
    of_head = None if sinks is None else pl.BlockSpec((1,), lambda i, b, h: (h,))
    return pl.pallas_call(
        functools.partial(_forward_kernel, softcap=form.softcap, head_dim=query.shape[-1]),
        grid=(length // BLOCK, batch, heads),
        in_specs=[of_block, of_keys, of_keys, of_head, of_who],
        out_specs=[of_block, of_row],
        out_shape=[_like(query), jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)],
        compiler_params=_compiler_params(query.shape[-1]),
        interpret=form.interpret,
        name="attention_forward",
    )(query, key, value, sinks, who)


def backward(
    query: Float[Array, "B S H N"],
    key: Float[Array, "B T K N"],
    value: Float[Array, "B T K N"],
    who: Who,
    log_sums: Float[Array, "B H S"],
    deltas: Float[Array, "B H S"],
    cotangent: Float[Array, "B S H N"],
    form: Form,
) -> tuple[Float[Array, "B S H N"], Float[Array, "B T K N"], Float[Array, "B T K N"]]:
    """Gradients of queries, keys and values.

    Args:
        query: as of `forward`.
        key: likewise.
        value: likewise.
        who: likewise.
        log_sums: what `forward` gave.
        deltas: sum over what a query reads of it times its cotangent, float32 (Dao 2023, eq. 4).
        cotangent: of what queries read, in the dtype of the queries.
        form: as of `forward`.
    """
    how = {"compiler_params": _compiler_params(query.shape[-1]), "interpret": form.interpret}
    batch, length, heads, head_dim = query.shape
    slots, kv_heads = key.shape[1:3]
    of_block, of_keys, of_who = _specs(query, key, who)
    of_row = pl.BlockSpec((None, None, BLOCK), lambda i, b, h: (b, h, i))
    arrays = (query, key, value, who, log_sums, deltas, cotangent)
    query_gradient = pl.pallas_call(
        functools.partial(_query_gradient_kernel, softcap=form.softcap, head_dim=head_dim),
        grid=(length // BLOCK, batch, heads),
        in_specs=[of_block, of_keys, of_keys, of_who, of_row, of_row, of_block],
        out_specs=of_block,
        out_shape=_like(query),
        name="attention_query_gradient",
        **how,
    )(*arrays)
    width, group = pl.next_power_of_2(head_dim), heads // kv_heads
    of_key_block = pl.BlockSpec((None, BLOCK, None, width), lambda j, b, k: (b, j, k, 0))
    of_group = pl.BlockSpec((None, length, group, width), lambda j, b, k: (b, 0, k, 0))
    of_rows = pl.BlockSpec((None, group, length), lambda j, b, k: (b, k, 0))
    of_who = _specs_of_who(
        who,
        pl.BlockSpec((None, length), lambda j, b, k: (b, 0)),
        pl.BlockSpec((None, BLOCK), lambda j, b, k: (b, j)),
        pl.BlockSpec((length // BLOCK,), lambda j, b, k: (0,)),
        pl.BlockSpec((1,), lambda j, b, k: (0,)),
    )
    key_gradient, value_gradient = pl.pallas_call(
        functools.partial(
            _key_gradient_kernel, softcap=form.softcap, head_dim=head_dim, group=group, chunks=form.chunks
        ),
        grid=(slots // BLOCK, batch, kv_heads),
        in_specs=[of_group, of_key_block, of_key_block, of_who, of_rows, of_rows, of_group],
        out_specs=[of_key_block, of_key_block],
        out_shape=[_like(key), _like(value)],
        name="attention_key_gradient",
        **how,
    )(*arrays)
    return query_gradient, key_gradient, value_gradient


def _specs(query, key, who):
    """How a program of one block of queries and one head sees queries, keys and `Who`."""
    heads, (slots, kv_heads, head_dim) = query.shape[2], key.shape[1:]
    width, group = pl.next_power_of_2(head_dim), heads // kv_heads
    of_block = pl.BlockSpec((None, BLOCK, None, width), lambda i, b, h: (b, i, h, 0))
    of_keys = pl.BlockSpec((None, slots, None, width), lambda i, b, h: (b, 0, jax.lax.div(h, group), 0))
    of_who = _specs_of_who(
        who,
        pl.BlockSpec((None, BLOCK), lambda i, b, h: (b, i)),
        pl.BlockSpec((None, slots), lambda i, b, h: (b, 0)),
        pl.BlockSpec((1,), lambda i, b, h: (i,)),
        pl.BlockSpec((1,), lambda i, b, h: (0,)),
    )
    return of_block, of_keys, of_who


def _specs_of_who(who, of_queries, of_keys, of_firsts, of_window):
    return Who(jax.tree.map(lambda _: of_queries, who.segments), of_keys, of_firsts, of_window)


def _forward_kernel(
    query_ref, key_ref, value_ref, sinks_ref, who, out_ref, log_sums_ref, *, softcap, head_dim
):  # fmt: skip
    columns = _columns(query_ref, head_dim)
    query, window = _load(query_ref, columns), who.window[0]
    queries = _queries(who, slice(None), who.first_slots[0])
    sink = None if sinks_ref is None else sinks_ref[0]

    def step(number, carry):
        mixed, largest, total = carry
        block = pl.ds(number * BLOCK, BLOCK)
        scores, _ = _scores(query, _load(key_ref.at[block, :], columns), softcap)
        seen = _seen(queries, number * BLOCK + jnp.arange(BLOCK), who.key_segments[block], window)
        scores = jnp.where(seen, scores * LOG2_E, _LOWEST)
        larger = jnp.maximum(largest, jnp.max(scores, axis=1))
        weights, kept = jnp.exp2(scores - larger[:, None]), jnp.exp2(largest - larger)
        value = _load(value_ref.at[block, :], columns)
        mixed = mixed * kept[:, None] + plgpu.dot(weights.astype(value.dtype), value)
        return mixed, larger, total * kept + jnp.sum(weights, axis=1)

    empty = jnp.zeros((BLOCK, query_ref.shape[-1]), jnp.float32)
    largest = jnp.full((BLOCK,), _LOWEST if sink is None else sink * LOG2_E, jnp.float32)
    start = (empty, largest, jnp.full((BLOCK,), 0.0 if sink is None else 1.0, jnp.float32))
    bounds = _key_blocks(queries, who.first_slots[0], window, key_ref.shape[0])
    mixed, largest, total = jax.lax.fori_loop(*bounds, step, start)
    plgpu.store(out_ref, (mixed / total[:, None]).astype(out_ref.dtype), mask=columns)
    log_sums_ref[...] = largest + jnp.log2(total)


def _query_gradient_kernel(
    query_ref, key_ref, value_ref, who, log_sums_ref, deltas_ref, cotangent_ref, out_ref, *, softcap, head_dim
):  # fmt: skip
    columns = _columns(query_ref, head_dim)
    query, cotangent = _load(query_ref, columns), _load(cotangent_ref, columns)
    queries, window = _queries(who, slice(None), who.first_slots[0]), who.window[0]
    log_sums, deltas = log_sums_ref[...], deltas_ref[...]

    def step(number, gradient):
        block = pl.ds(number * BLOCK, BLOCK)
        key, value = _load(key_ref.at[block, :], columns), _load(value_ref.at[block, :], columns)
        seen = _seen(queries, number * BLOCK + jnp.arange(BLOCK), who.key_segments[block], window)
        _, scores = _gradients(query, key, value, seen, log_sums, deltas, cotangent, softcap)
        return gradient + plgpu.dot(scores.astype(key.dtype), key)

    empty = jnp.zeros((BLOCK, query_ref.shape[-1]), jnp.float32)
    bounds = _key_blocks(queries, who.first_slots[0], window, key_ref.shape[0])
    gradient = jax.lax.fori_loop(*bounds, step, empty)
    plgpu.store(out_ref, gradient.astype(out_ref.dtype), mask=columns)


def _key_gradient_kernel(
    query_ref, key_ref, value_ref, who, log_sums_ref, deltas_ref, cotangent_ref, key_out_ref, value_out_ref, *,
    softcap, head_dim, group, chunks,
):  # fmt: skip
    columns = _columns(key_ref, head_dim)
    key, value, key_segments = _load(key_ref, columns), _load(value_ref, columns), who.key_segments[...]
    window, first_key, blocks = who.window[0], pl.program_id(0) * BLOCK, who.first_slots.shape[0] // chunks
    with_parents = who.segments.parents is not None

    def of_head(head, carry):
        for chunk in range(chunks):
            first = who.first_slots[chunk * blocks]
            bounds = _query_blocks(first, first_key, window, blocks, with_parents)
            carry = jax.lax.fori_loop(*bounds, functools.partial(step, head, chunk * blocks, first), carry)
        return carry

    def step(head, start, first, number, carry):
        block = pl.ds((start + number) * BLOCK, BLOCK)
        query = _load(query_ref.at[block, head, :], columns)
        cotangent = _load(cotangent_ref.at[block, head, :], columns)
        queries = _queries(who, block, first + number * BLOCK)
        seen = _seen(queries, first_key + jnp.arange(BLOCK), key_segments, window)
        sums = (log_sums_ref[head, block], deltas_ref[head, block])
        weights, scores = _gradients(query, key, value, seen, *sums, cotangent, softcap)
        of_keys = carry[0] + plgpu.dot(scores.astype(query.dtype).T, query)
        return of_keys, carry[1] + plgpu.dot(weights.astype(query.dtype).T, cotangent)

    empty = jnp.zeros((BLOCK, key_ref.shape[-1]), jnp.float32)
    of_keys, of_values = jax.lax.fori_loop(0, group, of_head, (empty, empty))
    plgpu.store(key_out_ref, of_keys.astype(key_out_ref.dtype), mask=columns)
    plgpu.store(value_out_ref, of_values.astype(value_out_ref.dtype), mask=columns)


def _gradients(query, key, value, seen, log_sums, deltas, cotangent, softcap):
    """Weights of a block, and the cotangents of its scores before they were capped."""
    scores, slopes = _scores(query, key, softcap)
    weights = jnp.where(seen, jnp.exp2(scores * LOG2_E - log_sums[:, None]), 0.0)
    return weights, weights * (plgpu.dot(cotangent, value.T) - deltas[:, None]) * slopes


def _scores(query, key, softcap):
    """Scores of a block, and their derivative by what they were before they were capped."""
    scores = plgpu.dot(query, key.T)
    if not softcap:
        return scores, 1.0
    capped = jnp.tanh(scores / softcap)
    return softcap * capped, 1.0 - capped * capped


class _Queries(NamedTuple):
    """Those of a block: the slot of each, and what `QuerySegments` has."""

    slots: Array
    own: Array
    parents: Array | None
    behind: Array | None


def _queries(who, block, first):
    """The queries of a block, the first of which is that of slot `first`."""
    return _Queries(first + jnp.arange(BLOCK), *(None if ref is None else ref[block] for ref in who.segments))


def _seen(queries, key_slots, key_segments, window):
    own = _within(queries.slots, queries.own, key_slots, key_segments, window)
    if queries.parents is None:
        return own
    return own | _within(queries.behind, queries.parents, key_slots, key_segments, window)


def _within(slots, segments, key_slots, key_segments, window):
    behind = slots[:, None] - key_slots[None, :]
    return (behind >= 0) & (behind < window) & (segments[:, None] == key_segments[None, :])


def _key_blocks(queries, first, window, keys):
    """The first of the blocks of keys that a block of queries sees, and the end: at least its own."""
    end = jnp.minimum(first + BLOCK, keys)
    nearest = first if queries.parents is None else jnp.min(queries.behind)
    return jax.lax.div(jnp.maximum(nearest - window + 1, 0), BLOCK), jax.lax.div(end + BLOCK - 1, BLOCK)


def _query_blocks(first, first_key, window, blocks, with_parents):
    """Those of a run of blocks of queries that see a block of keys; `first` is the first slot of the run.

    The keys of a parent are seen from anywhere behind them.
    """
    start = jax.lax.div(jnp.maximum(first_key - first, 0), BLOCK)
    if with_parents:
        return start, blocks
    behind = jnp.maximum(first_key + BLOCK - 1 + window - first, 0)  # slots of the run before the window has passed
    return start, jnp.minimum(jax.lax.div(behind + BLOCK - 1, BLOCK), blocks)


def _columns(ref, head_dim):
    """True for what is of a head: blocks are as wide as the next power of two."""
    return (jnp.arange(ref.shape[-1]) < head_dim)[None, :]


def _load(ref, columns):
    return plgpu.load(ref, mask=columns, other=0.0)


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _compiler_params(head_dim):
    return plgpu.CompilerParams(num_warps=4 if head_dim <= 128 else 8, num_stages=2)
