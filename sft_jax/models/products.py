"""The one matrix product of the code: low-precision inputs, float32 accumulation, forward and backward.

Plain autodiff of a bf16 product multiplies float32 cotangents with bf16 operands, which has no fast kernel on CPUs with
AVX-512 BF16 and costs a conversion elsewhere. The rule below casts the cotangent too, so that all three products of a
layer (forward, input gradient, weight gradient) run at the speed of the product dtype.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def einsum(
    spec: str, x: Float[Array, "..."], y: Float[Array, "..."], product_dtype: str, out_dtype: str
) -> Float[Array, "..."]:
    """Two-operand einsum with inputs cast to `product_dtype` and float32 accumulation.

    Args:
        spec: two-operand einsum with explicit output; every index of an operand occurs in the other or in the output.
        x: left operand, any float dtype.
        y: right operand, any float dtype.
        product_dtype: dtype of the inputs of the product, forward and backward.
        out_dtype: dtype of the result. Gradients come back in the dtypes of `x` and `y`.
    """
    return contract(spec, x, y, product_dtype).astype(out_dtype)


def contract(spec: str, x: Float[Array, "..."], y: Float[Array, "..."], product_dtype: str) -> Float[Array, "..."]:
    """The product itself, float32, for code with a backward pass of its own; arguments as of `einsum`."""
    # float32 means float32 on accelerators too, where the default would be one bf16 pass.
    precision = jax.lax.Precision.HIGHEST if product_dtype == "float32" else None
    return jnp.einsum(
        spec,
        x.astype(product_dtype),
        y.astype(product_dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def _forward(spec, x, y, product_dtype, out_dtype):
    # Kept for the backward pass: the left operand, an activation, as the product reads it; the right one, a weight,
    # as it is, since it is alive anyway. The empty array holds the dtype that the gradient of x shall have.
    kept = (x.astype(product_dtype), y, jnp.zeros((0,), x.dtype))
    # Not through `einsum`: a remat policy that saves products must find a product here, not a call with its own rule.
    return contract(spec, x, y, product_dtype).astype(out_dtype), kept


def _backward(spec, product_dtype, out_dtype, residuals, cotangent):
    del out_dtype
    x, y, like_x = residuals
    inputs, out = spec.split("->")
    left, right = inputs.split(",")
    dx = contract(f"{out},{right}->{left}", cotangent, y, product_dtype).astype(like_x.dtype)
    dy = contract(f"{left},{out}->{right}", x, cotangent, product_dtype).astype(y.dtype)
    return dx, dy


einsum.defvjp(_forward, _backward)
