"""The gated delta rule on the devices of a mesh: each has its sequences, whole, and its heads.

Between the tokens of a sequence there is a loop, which no compiler splits: where `context` splits sequences, heads are
split along it instead, if there are enough.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from sft_jax.models.delta.order import Order
from sft_jax.models.partitioning import BATCH_AXES, fit_spec


def on_each_device(
    rule: Callable[..., tuple[Array, Array]],
    given: tuple[Array, Array, Array, Array, Array],
    order: Order,
    state: Float[Array, "B H N P"] | None,
    ends: Int[Array, "B E"] | None,
    matmul_dtype: str,
) -> tuple[Float[Array, "B S H P"], Float[Array, "B E H N P"]]:
    """Calls `rule`, which is `recurrence.chunked`, with what each device has of its arguments.

    Args:
        rule: the rule.
        given: query, key, value, log_decay and beta, as of `rule`.
        order: which tokens go on from which.
        state: as of `rule`.
        ends: likewise.
        matmul_dtype: likewise.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return rule(*given, order, state, ends, matmul_dtype)
    query, key, value, log_decay, beta = given
    sizes, heads = dict(mesh.shape), value.shape[2]
    batch = fit_spec(P(BATCH_AXES), value.shape[:1], sizes)[0]
    split = next((axes for axes in (("tensor", "context"), ("tensor",)) if heads % _size(axes, sizes) == 0), ())
    repeats = math.lcm(key.shape[2], _size(split, sizes)) // key.shape[2]  # each device has the keys of its values
    if repeats > 1:
        query, key = (jnp.repeat(x, repeats, axis=2) for x in (query, key))
    of_tokens = P(batch, None, split)
    on_device = lambda given, order, state, ends: rule(*given, order, state, ends, matmul_dtype)
    specs = ((of_tokens,) * 5, P(batch), P(batch, split), P(batch))
    return jax.shard_map(on_device, in_specs=specs, out_specs=(of_tokens, of_tokens), check_vma=False)(
        (query, key, value, log_decay, beta), order, state, ends
    )


def _size(axes: tuple[str, ...], sizes: dict[str, int]) -> int:
    return math.prod(sizes[axis] for axis in axes)
