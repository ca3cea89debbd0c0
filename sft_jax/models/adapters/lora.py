"""LoRA: x W + scale (x A) B with W frozen (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

The update A B is never formed during training: the gradient of W (the costly one) is never needed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from sft_jax.models.products import einsum


def init(key: PRNGKeyArray, kernel_shape: tuple[int, ...], rank: int) -> dict[str, Array]:
    """A ~ U(-1/sqrt(in), 1/sqrt(in)) as in peft, B = 0: the output is unchanged at step 0. float32.

    Args:
        key: random key.
        kernel_shape: (in, out), or (layers, in, out) for stacked layers.
        rank: inner dimension.
    """
    *stack, fan_in, fan_out = kernel_shape
    bound = fan_in**-0.5
    return {
        "a": jax.random.uniform(key, (*stack, fan_in, rank), jnp.float32, -bound, bound),
        "b": jnp.zeros((*stack, rank, fan_out), jnp.float32),
    }


def apply(
    x: Float[Array, "B S I"],
    kernel: Float[Array, "I O"],
    output: Float[Array, "B S O"],
    adapter: dict[str, Array],
    product_dtype: str,
) -> Float[Array, "B S O"]:
    """The adapted output.

    Args:
        x: input of the layer, after adapter dropout.
        kernel: the frozen weight, which this method does not read.
        output: x W, before dropout touched x.
        adapter: `a` [I, r], `b` [r, O], `scale` [].
        product_dtype: dtype of the inputs of the products.
    """
    del kernel
    inner = einsum("bsi,ir->bsr", x, adapter["a"], product_dtype, "float32")
    update = einsum("bsr,ro->bso", inner, adapter["b"], product_dtype, "float32")
    return output + (adapter["scale"] * update).astype(output.dtype)


def merge(kernel: Float[Array, "*L I O"], adapter: dict[str, Array]) -> Float[Array, "*L I O"]:
    """W + scale A B in float32, cast back to the dtype of the kernel."""
    update = jnp.einsum("...ir,...ro->...io", adapter["a"], adapter["b"], precision=jax.lax.Precision.HIGHEST)
    scale = jnp.reshape(adapter["scale"], (*jnp.shape(adapter["scale"]), 1, 1))
    scale = jnp.broadcast_to(scale, update.shape)
    return (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)
