"""Attention on TPUs: JAX's splash kernel, which makes scores a block at a time in the memory of a core.

Each of the model's windows is a kernel of its own, which skips the blocks that no query sees. The kernel is told slots,
not positions: of packed sequences that is the same, for inside a segment positions grow by one from slot to slot.
Where segments have parents it reads twice (`splash_parents.py`). Products take inputs in the matmul dtype, sums are
float32. On CPUs the same kernel is interpreted, which is for tests.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from sft_jax.models.attention.kept import KEPT
from sft_jax.models.attention.parents import QuerySegments
from sft_jax.models.attention.placement import CONTEXT, on_each_device, placement
from sft_jax.models.attention.splash_mask import slot_mask
from sft_jax.models.attention.splash_parents import Kernel, Readings, read_with_parents
from sft_jax.models.visibility import Visibility

BLOCKS = (512, 256, 128)  # slots of a block; the kernel wants multiples of 128
MOST_PADDING = 1 / 8  # a larger block is worth so many slots beside those of a sequence


def splash_attention(
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
    placed = placement(query, key)
    of_length = functools.partial(_kernel, query.shape[1], visibility.dealt, placed.parts, softcap, window)
    kernels = of_length if visibility.query_parents is None else functools.partial(_readings, of_length)
    compiled, interpreted = kernels(interpret=False), kernels(interpret=True)
    specs = None if placed.spec is None else _specs(compiled, placed.parts)

    def local(query, key, value, segments, key_segments, more):
        kernels, sinks = more
        of_cpu = jax.tree.unflatten(jax.tree.structure(interpreted), jax.tree.leaves(kernels))
        queries, keys = _padded(query.shape[1]), _padded(key.shape[1])
        inputs = [_heads_first(query.astype(jnp.float32) * scale, queries, matmul_dtype)]
        inputs += [_heads_first(x, keys, matmul_dtype) for x in (key, value)]
        inputs += [jax.tree.map(lambda x: _lengthened(x, queries), segments), _lengthened(key_segments, keys)]
        mixed = jax.lax.platform_dependent(
            *inputs, sinks, cpu=functools.partial(_read, of_cpu), tpu=functools.partial(_read, kernels)
        )
        return jnp.swapaxes(mixed, 1, 2)[:, : query.shape[1]].astype(query.dtype)

    more, more_specs = (compiled, sinks), (specs, placed.of_heads)
    return on_each_device(local, placed, query, key, value, visibility, more, more_specs)


def _read(
    kernels: Kernel | Readings,
    query: Float[Array, "B H s N"],
    key: Float[Array, "B K S N"],
    value: Float[Array, "B K S M"],
    segments: QuerySegments,
    key_segments: Int[Array, "B S"],
    sinks: Float[Array, "H"] | None,
) -> Float[Array, "B H s M"]:
    """What the kernel gives, or both readings do."""

    def one_sequence(query, key, value, segments, key_segments, sinks):
        if isinstance(kernels, Readings):
            sinks = None if sinks is None else sinks.astype(jnp.float32)
            return read_with_parents(kernels, query, key, value, segments, key_segments, sinks)
        ids = splash_attention_kernel.SegmentIds(segments.own, key_segments)
        return kernels(query, key, value, ids, None if sinks is None else _with_wide_gradient(sinks))

    arrays = (query, key, value, segments, key_segments, sinks)
    return jax.vmap(one_sequence, in_axes=(0, 0, 0, 0, 0, None))(*arrays)


@jax.custom_vjp
def _with_wide_gradient(sinks):
    """Float32 sinks, whose gradient the kernel gives in the dtype of what is read."""
    return sinks.astype(jnp.float32)


_with_wide_gradient.defvjp(
    lambda sinks: (_with_wide_gradient(sinks), sinks), lambda sinks, cotangent: (cotangent.astype(sinks.dtype),)
)


def _readings(of_length: Callable[..., Kernel], interpret: bool) -> Readings:
    """The kernels for a query's own segment and for its parent."""
    own, parents = (of_length(of_parents=of_parents, joined=True, interpret=interpret) for of_parents in (False, True))
    return Readings(own, parents)


def _kernel(
    length: int,
    dealt: int,
    parts: int,
    softcap: float,
    window: int,
    *,
    interpret: bool,
    of_parents: bool = False,
    joined: bool = False,
) -> Kernel:
    """The kernel of one window, whose arrays, which blocks to read, are split like the queries.

    Args:
        length: slots of a sequence.
        dealt: see `Visibility`.
        parts: in how many parts the queries of a sequence are split.
        softcap: of the scores; 0 is none.
        window: slots that a query sees, itself included; 0 is all.
        interpret: for CPUs.
        of_parents: reads parents, which a window reaches wherever they are.
        joined: what it gives is put together with what another one does.
    """
    rows, keys = _padded(length // parts), _padded(length)
    mask = slot_mask(length, rows, keys, dealt, parts, window, 0 if of_parents else window)
    return splash_attention_kernel.make_splash_mha(
        mask=splash_attention_mask.MultiHeadMask([mask]),  # the same for all heads
        block_sizes=_block_sizes(_block(length // parts), _block(length)),
        head_shards=1,
        q_seq_shards=parts,
        attn_logits_soft_cap=softcap or None,
        save_residuals=joined,
        residual_checkpoint_name=None if joined else KEPT,
        interpret=interpret,
    )


def _specs(kernels: Kernel | Readings, parts: int) -> Kernel | Readings:
    """How the arrays of kernels are split."""
    split = NamedSharding(jax.sharding.get_abstract_mesh(), P(None, CONTEXT if parts > 1 else None))
    of_kernel = lambda kernel: kernel.manual_sharding_spec(split)
    return jax.tree.map(of_kernel, kernels, is_leaf=lambda x: isinstance(x, Kernel))


def _block_sizes(queries: int, keys: int) -> splash_attention_kernel.BlockSizes:
    return splash_attention_kernel.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_q_dq=queries,
        block_kv_dq=keys,
    )


def _block(length: int) -> int:
    """The largest block for which little is padded."""
    return next(block for block in BLOCKS if -length % block <= length * MOST_PADDING or block == BLOCKS[-1])


def _padded(length: int) -> int:
    return length + -length % _block(length)


def _lengthened(x: Array, length: int) -> Array:
    """With slots of padding behind: of segment 0, and no other slot sees what is behind it."""
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def _heads_first(x: Float[Array, "B S H N"], length: int, dtype: str) -> Float[Array, "B H T N"]:
    return jnp.swapaxes(_lengthened(x.astype(dtype), length), 1, 2)
