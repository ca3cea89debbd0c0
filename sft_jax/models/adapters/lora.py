"""LoRA: x W + scale (x A) B with W frozen (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

The update A B is never formed during training: the gradient of W (the costly one) is never needed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

INIT_READS_KERNEL = False
ON_EXPERTS = True
ON_TIED_EMBEDDING = True


def init(key: PRNGKeyArray, kernel: Float[Array, "*L I O"], rank: int, scale: Float[Array, ""]) -> dict[str, Array]:
    """A ~ U(-1/sqrt(in), 1/sqrt(in)) as in peft, B = 0: the output is unchanged at step 0. float32.

    Args:
        key: random key.
        kernel: the frozen weight, before its inputs the layers where they are stacked, and the experts; not read.
        rank: inner dimension.
        scale: factor of the update; not read.
    """
    del scale
    *stack, fan_in, fan_out = kernel.shape
    bound = fan_in**-0.5
    return {
        "a": jax.random.uniform(key, (*stack, fan_in, rank), jnp.float32, -bound, bound),
        "b": jnp.zeros((*stack, rank, fan_out), jnp.float32),
    }


def init_embedding(
    key: PRNGKeyArray, kernel: Float[Array, "V D"], rank: int, scale: Float[Array, ""]
) -> dict[str, Array]:
    """The other way round, as in peft: A = 0, which is looked up by token, and B ~ N(0, 1)."""
    del scale
    vocabulary, width = kernel.shape
    return {"a": jnp.zeros((vocabulary, rank), jnp.float32), "b": jax.random.normal(key, (rank, width), jnp.float32)}


def apply(
    x: Array,
    kernel: Float[Array, "*E I O"],
    output: Float[Array, "*B O"],
    adapter: dict[str, Array],
    matmul: Callable[[Array, Array], Array],
) -> Float[Array, "*B O"]:
    """The adapted output.

    Args:
        x: input of the layer, after adapter dropout; tokens, where the layer is an embedding.
        kernel: the frozen weight (of each expert), which this method does not read.
        output: x W, before dropout touched x.
        adapter: `a` [I, r], `b` [r, O], of each expert where there are some, `scale` [].
        matmul: inputs and weights to outputs, float32; with experts each token meets the weights of its own.
    """
    del kernel
    update = matmul(matmul(x, adapter["a"]), adapter["b"])
    return output + (adapter["scale"] * update).astype(output.dtype)


def apply_transposed(
    x: Array, output: Float[Array, "*B I"], adapter: dict[str, Array], matmul: Callable[[Array, Array], Array]
) -> Float[Array, "*B I"]:
    """The output adapted beside the transposed weight, of which (A B)^T = B^T A^T is the update.

    Args:
        x: input of the layer.
        output: x W^T.
        adapter: as for `apply`.
        matmul: inputs and weights [O, I] to inputs times transposed weights, float32.
    """
    update = matmul(matmul(x, adapter["b"]), adapter["a"])
    return output + (adapter["scale"] * update).astype(output.dtype)


def merge(kernel: Float[Array, "*L I O"], adapter: dict[str, Array]) -> Float[Array, "*L I O"]:
    """W + scale A B in float32, cast back to the dtype of the kernel."""
    return (kernel.astype(jnp.float32) + update_of(adapter)).astype(kernel.dtype)


def update_of(adapter: dict[str, Array]) -> Float[Array, "*L I O"]:
    """scale A B, float32."""
    update = jnp.einsum("...ir,...ro->...io", adapter["a"], adapter["b"], precision=jax.lax.Precision.HIGHEST)
    scale = jnp.asarray(adapter["scale"])
    return scale.reshape(scale.shape + (1,) * (update.ndim - scale.ndim)) * update
