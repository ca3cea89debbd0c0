"""LoRA: x W + scale (x A) B with W frozen (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

The update A B is never formed during training: the gradient of W (the costly one) is never needed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def init(key: PRNGKeyArray, kernel_shape: tuple[int, ...], rank: int) -> dict[str, Array]:
    """A ~ U(-1/sqrt(in), 1/sqrt(in)) as in peft, B = 0: the output is unchanged at step 0. float32.

    Args:
        key: random key.
        kernel_shape: (in, out); before them the number of layers where they are stacked, and that of experts.
        rank: inner dimension.
    """
    *stack, fan_in, fan_out = kernel_shape
    bound = fan_in**-0.5
    return {
        "a": jax.random.uniform(key, (*stack, fan_in, rank), jnp.float32, -bound, bound),
        "b": jnp.zeros((*stack, rank, fan_out), jnp.float32),
    }


def apply(
    x: Float[Array, "*B I"],
    kernel: Float[Array, "*E I O"],
    output: Float[Array, "*B O"],
    adapter: dict[str, Array],
    product: Callable[[Array, Array], Array],
) -> Float[Array, "*B O"]:
    """The adapted output.

    Args:
        x: input of the layer, after adapter dropout.
        kernel: the frozen weight (of each expert), which this method does not read.
        output: x W, before dropout touched x.
        adapter: `a` [I, r], `b` [r, O], of each expert where there are some, `scale` [].
        product: rows and weights to rows, float32; with experts each row meets the weights of its own.
    """
    del kernel
    update = product(product(x, adapter["a"]), adapter["b"])
    return output + (adapter["scale"] * update).astype(output.dtype)


def merge(kernel: Float[Array, "*L I O"], adapter: dict[str, Array]) -> Float[Array, "*L I O"]:
    """W + scale A B in float32, cast back to the dtype of the kernel."""
    update = jnp.einsum("...ir,...ro->...io", adapter["a"], adapter["b"], precision=jax.lax.Precision.HIGHEST)
    scale = jnp.asarray(adapter["scale"])
    scale = scale.reshape(scale.shape + (1,) * (update.ndim - scale.ndim))
    return (kernel.astype(jnp.float32) + jnp.broadcast_to(scale, update.shape) * update).astype(kernel.dtype)
