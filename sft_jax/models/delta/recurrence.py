"""The gated delta rule (Yang et al. 2024, "Gated Delta Networks"), over packed rows.

Each head has a matrix S, from keys to values. A token makes it decay and corrects what it holds for the token's key:

    S <- exp(g) S;  S <- S + beta k (v - k^T S);  and gives q^T S.

`recurrent` does this token by token. `chunked` gives the same in chunks of tokens, between which S is carried on: the
corrections of a chunk are the solution of a triangular system (the UT transform of Yang et al. 2024, "Parallelizing
Linear Transformers with the Delta Rule over Sequence Length"), so that all but one product a chunk is done for all
chunks at a time. S begins anew with each segment, wherever that stands (`order`).

Memory grows with the length of a row, not with its square: the backward pass keeps the inputs alone and computes the
rest again.

Dimensions: B batch, S tokens, K key heads, H value heads of which H / K read one key head, N key dim, P value dim,
M chunks, E places of a row. Within: z each chunk of each row, k key head, g value heads of it, i and j tokens of a
chunk, n key dim, p value dim, v states that are carried (`order.Chunks`).
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sft_jax.models.delta.cost import CHUNK
from sft_jax.models.delta.order import Chunks, Order, chunks
from sft_jax.models.matmul import einsum


def normalized(x: Float[Array, "*B N"], scale: float = 1.0, eps: float = 1e-6) -> Float[Array, "*B N"]:
    """Float32 vectors of length `scale`."""
    wide = x.astype(jnp.float32)
    return wide * (jax.lax.rsqrt(jnp.sum(wide**2, axis=-1, keepdims=True) + eps) * scale)


def chunked(
    query: Float[Array, "B S K N"],
    key: Float[Array, "B S K N"],
    value: Float[Array, "B S H P"],
    log_decay: Float[Array, "B S H"],
    beta: Float[Array, "B S H"],
    order: Order,
    state: Float[Array, "B H N P"] | None,
    ends: Int[Array, "B E"] | None,
    matmul_dtype: str,
    size: int = CHUNK,
) -> tuple[Float[Array, "B S H P"], Float[Array, "B E H N P"]]:
    """What each token reads, and states; float32. Padding reads zeros, and changes no state.

    Args:
        query: normalised and scaled.
        key: normalised.
        value: of the value heads; head h reads key head h // (H / K).
        log_decay: g, at most 0.
        beta: how far a token corrects.
        order: which tokens go on from which.
        state: of what `order.carried` is; None is zeros.
        ends: tokens after which the state is given; None is the last token of each row.
        matmul_dtype: dtype of the inputs of the matrix products; sums, states and the triangular system are float32.
        size: tokens of a chunk.
    """
    rule = jax.checkpoint(functools.partial(_chunked, matmul_dtype=matmul_dtype, size=min(size, key.shape[1])))
    return rule(query, key, value, log_decay, beta, order, state, ends)


def _chunked(query, key, value, log_decay, beta, order, state, ends, *, matmul_dtype, size):
    (batch, length, key_heads, key_dim), (heads, value_dim) = key.shape, value.shape[2:]
    group, whole = heads // key_heads, -(-length // size) * size
    query, key = (_in_chunks(x, whole, size) for x in (query, key))
    value, log_decay, beta = (_in_chunks(x, whole, size) for x in (value, log_decay, beta))
    value, log_decay, beta = (x.reshape(-1, key_heads, group, *x.shape[2:]) for x in (value, log_decay, beta))
    cuts = chunks(order.padded(whole), size)
    if state is None:
        state = jnp.zeros((batch, heads, key_dim, value_dim), jnp.float32)
    states = jnp.stack([state.reshape(batch, key_heads, group, key_dim, value_dim)] * cuts.enters.shape[1], axis=3)
    chunk = _prepared(query, key, value, log_decay, beta, cuts, matmul_dtype)
    read, corrections, starts, final = _carried_on(chunk, states, matmul_dtype)
    read = jnp.moveaxis(read.reshape(batch, -1, heads, size, value_dim), 2, 3)
    if ends is None:
        after = final[:, :, :, 0]
    else:
        after = _states_after(ends, key, log_decay, corrections, cuts, starts, matmul_dtype)
    read = read.reshape(batch, whole, heads, value_dim)[:, :length]
    return read, after.reshape(batch, -1, heads, key_dim, value_dim)


def _in_chunks(x: Array, length: int, size: int) -> Array:
    """Float32 [B, S, H, ...] padded and cut, the tokens of a chunk behind the heads: [B M, H, C, ...]."""
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, length - x.shape[1]), *((0, 0),) * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(-1, size, *x.shape[2:]), 1, 2)


def _decays(log_decay: Array, path: Array) -> tuple[Array, Array]:
    """How much is left for each token of what entered the chunk [zkgi], and of what each token wrote [zkgij]."""
    by_head = log_decay.reshape(log_decay.shape[0], -1, log_decay.shape[-1])
    total = _product("zhj,zij->zhi", by_head, path.astype(jnp.float32), "float32").reshape(log_decay.shape)
    path = path[:, None, None]
    # Where a token reads nothing the difference may be above 0: no exp of it is taken, which might be infinite.
    between = jnp.where(path, total[..., :, None] - total[..., None, :], 0.0)
    return jnp.exp(total), jnp.where(path, jnp.exp(between), 0.0)


@flax.struct.dataclass
class _Chunk:
    """What is computed for all chunks at a time; z is each chunk of each row, w all key dims of all states.

    Attributes:
        written: corrections if S were zero [zkgip].
        erased: what S takes from them [zkgiw].
        reading: what is read of S [zkgiw].
        weights: what is read of corrections [zkgij].
        kept: how much of each state is in each that is carried on [zkgvv].
        writing: what corrections add to these [zkgjw].
    """

    written: Array
    erased: Array
    reading: Array
    weights: Array
    kept: Array
    writing: Array


def _prepared(query, key, value, log_decay, beta, cuts, matmul_dtype) -> _Chunk:
    product = functools.partial(_product, matmul_dtype=matmul_dtype)
    entering, between = _decays(log_decay, cuts.path)
    entered = _of_entering(entering, cuts)
    weights = product("zin,zjn->zij", query, key)[:, :, None] * between
    overlaps = product("zin,zjn->zij", key, key)[:, :, None] * between * beta[..., None]
    solved = _solved(overlaps, beta[..., None] * jnp.concatenate([value, _weighted(entered, key)], axis=-1))
    written, erased = jnp.split(solved, (value.shape[-1],), axis=-1)
    kept, leaving = _leaving(entered, between, cuts)
    return _Chunk(written, erased, _weighted(entered, query), weights, kept, _weighted(leaving, key))


def _carried_on(chunk: _Chunk, states: Array, matmul_dtype: str) -> tuple[Array, Array, Array, Array]:
    """(what is read, corrections, states [zkgwp] with which each chunk begins; those [bkgvnp] behind the last)."""
    product = functools.partial(_product, matmul_dtype=matmul_dtype)
    in_rows = lambda x: jnp.moveaxis(x.reshape(states.shape[0], -1, *x.shape[1:]), 1, 0)

    def step(flat, chunk):
        corrections = chunk.written - product("ziw,zwp->zip", chunk.erased, flat)
        read = product("ziw,zwp->zip", chunk.reading, flat) + product("zij,zjp->zip", chunk.weights, corrections)
        stayed = _product("zvu,zux->zvx", chunk.kept, flat.reshape(*chunk.kept.shape[:-1], -1), "float32")
        added = product("zjw,zjp->zwp", chunk.writing, corrections)
        return stayed.reshape(flat.shape) + added, (read, corrections, flat)

    flat = states.reshape(*states.shape[:3], -1, states.shape[-1])
    final, found = jax.lax.scan(step, flat, jax.tree.map(in_rows, chunk))
    read, corrections, starts = (jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]) for x in found)
    return read, corrections, starts, final.reshape(states.shape)


# What is of matrices has one axis before theirs: with as many as here, products of XLA for CPUs crash (jaxlib 0.10.2).


def _product(spec: str, x: Array, y: Array, matmul_dtype: str) -> Array:
    """Products of the matrices that stand in the last two axes, float32."""
    found = einsum(spec, _by_matrix(x), _by_matrix(y), matmul_dtype, "float32")
    return found.reshape(*x.shape[:-2], *found.shape[1:])


@jax.custom_vjp
def _solved(system: Array, right: Array) -> Array:
    """X of (1 + A) X = B, where A is what stands below the diagonal of `system`.

    By the inverse of 1 + A, which is small: of matrix products alone, where a triangular solver of XLA is a loop.
    """
    return _solve(system, right)[0]


def _solve(system, right):
    inverse = _inverse(system)
    found = _product("zij,zjw->ziw", inverse, right, "float32")
    return found, (inverse, found)


def _solve_backward(kept, cotangent):
    inverse, found = kept
    of_right = _product("zji,zjw->ziw", inverse, cotangent, "float32")
    of_system = -_product("ziw,zjw->zij", of_right, found, "float32")
    return jnp.tril(of_system, -1), of_right


_solved.defvjp(_solve, _solve_backward)


def _inverse(system: Array) -> Array:
    """Of 1 + A: that of blocks on the diagonal, which is 1 for blocks of one, gives that of blocks twice as large."""
    size = system.shape[-1]
    block = np.arange(size)
    inverse = jnp.expand_dims(jnp.eye(size, dtype=jnp.float32), range(system.ndim - 2)) - _between(block, system)
    while (block := block // 2).any():
        right = _product("zij,zjw->ziw", _between(block, system), inverse, "float32")
        inverse = inverse - _product("zij,zjw->ziw", inverse, right, "float32")
    return inverse


def _between(block: np.ndarray, system: Array) -> Array:
    """What of two neighbouring blocks is below the diagonal: D of (A 0; D B), whose inverse has -B^-1 D A^-1 there."""
    below = (block[:, None] % 2 == 1) & (block[None] == block[:, None] - 1)
    return jnp.where(jnp.expand_dims(below, range(system.ndim - 2)), system, 0.0)


def _by_matrix(x: Array) -> Array:
    return x.reshape(-1, *x.shape[-2:])


def _of_entering(entering: Array, cuts: Chunks) -> Array:
    """What is left for each token of each state that is carried into its chunk, zkgvi."""
    return entering[:, :, :, None] * cuts.enters.astype(jnp.float32)[:, None, None]


def _weighted(weights: Array, x: Array) -> Array:
    """Keys or queries [zkin] times each of several weights [zkgvi], side by side: [zkgiw]."""
    return jnp.concatenate(
        [weights[:, :, :, number, :, None] * x[:, :, None] for number in range(weights.shape[3])], axis=-1
    )


def _leaving(entered: Array, between: Array, cuts: Chunks) -> tuple[Array, Array]:
    """How much each state that is carried on keeps of those carried in [zkgvv], and of what tokens wrote [zkgvj]."""
    leaves, stays = cuts.leaves[:, None, None, :, None], jnp.eye(entered.shape[3], dtype=jnp.float32)
    of_states = _at(jnp.moveaxis(entered, 3, 4), cuts.leaving)
    return jnp.where(leaves, of_states, stays[None, None, None]), jnp.where(leaves, _at(between, cuts.leaving), 0.0)


def _at(x: Array, places: Int[Array, "Z E"]) -> Array:
    """[zkgi...] at places of each chunk: [zkge...]."""
    return jnp.take_along_axis(x, places[:, None, None, :, None], axis=3)


def _states_after(ends, key, log_decay, corrections, cuts, starts, matmul_dtype):
    """The states [b, e, k, g, n, p] after tokens, each made of its own chunk and the states with which that begins."""
    size, (batch, count) = key.shape[2], ends.shape
    first = jnp.arange(batch, dtype=ends.dtype)[:, None] * (key.shape[0] // batch)
    take = lambda x: jnp.take(x, (first + ends // size).reshape(-1), axis=0)
    own, places = jax.tree.map(take, cuts), (ends % size).reshape(-1, 1)
    entering, between = _decays(take(log_decay), own.path)
    of_states, start = _at(jnp.moveaxis(_of_entering(entering, own), 3, 4), places), take(starts)
    start = start.reshape(*start.shape[:3], of_states.shape[-1], -1)
    added = _product("zjn,zjp->znp", _weighted(_at(between, places), take(key)), take(corrections), matmul_dtype)
    kept = _product("zvu,zux->zvx", of_states, start, "float32").reshape(added.shape)
    return (kept + added).reshape(batch, count, *added.shape[1:])


def recurrent(
    query: Float[Array, "B S K N"],
    key: Float[Array, "B S K N"],
    value: Float[Array, "B S H P"],
    log_decay: Float[Array, "B S H"],
    beta: Float[Array, "B S H"],
    segments: Int[Array, "B S"],
    state: Float[Array, "B H N P"],
    carried: Int[Array, "B"],
) -> tuple[Float[Array, "B S H P"], Float[Array, "B H N P"]]:
    """What each token reads and the state after the last, token by token, in float32; arguments as of `chunked`.

    Args:
        query: as there, and so are those that follow.
        key: likewise.
        value: likewise.
        log_decay: likewise.
        beta: likewise.
        segments: of the tokens; no segment has a parent.
        state: of the segment `carried`.
        carried: 0 is none.
    """
    group = value.shape[2] // key.shape[2]
    wide = lambda x: jnp.repeat(x.astype(jnp.float32), group, axis=2)
    dot = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

    def step(carry, token):
        state, carried = carry
        query, key, value, log_decay, beta, segment = token
        seen, goes_on = segment > 0, segment == carried
        decayed = jnp.where(goes_on[:, None], jnp.exp(log_decay), 0.0)[..., None, None] * state
        correction = beta[..., None] * (value - dot("bhn,bhnp->bhp", key, decayed))
        after = decayed + key[..., None] * correction[..., None, :]
        read = jnp.where(seen[:, None, None], dot("bhn,bhnp->bhp", query, after), 0.0)
        return (jnp.where(seen[:, None, None, None], after, state), jnp.where(seen, segment, carried)), read

    float32 = lambda x: x.astype(jnp.float32)
    tokens = (wide(query), wide(key), float32(value), float32(log_decay), float32(beta), segments)
    by_token = lambda x: jnp.moveaxis(x, 1, 0)
    (state, _), read = jax.lax.scan(step, (state, carried), tuple(map(by_token, tokens)))
    return jnp.moveaxis(read, 0, 1), state
