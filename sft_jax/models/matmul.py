"""The matrix products of the model: low-precision inputs, float32 accumulation, forward and backward.

Plain autodiff of a bf16 product multiplies float32 cotangents with bf16 operands, which has no fast kernel on CPUs with
AVX-512 BF16 and costs a conversion elsewhere. The rule below casts the cotangent too, so that all three products of a
layer (forward, input gradient, weight gradient) run at the speed of the matmul dtype.
"""

import functools

import jax
import jax.numpy as jnp
from jax.lax import RaggedDotDimensionNumbers
from jaxtyping import Array, Float, Int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def einsum(
    spec: str, x: Float[Array, "..."], y: Float[Array, "..."], matmul_dtype: str, out_dtype: str
) -> Float[Array, "..."]:
    """Two-operand einsum with inputs cast to `matmul_dtype` and float32 accumulation.

    Args:
        spec: two-operand einsum with explicit output; every index of an operand occurs in the other or in the output.
        x: left operand, any float dtype.
        y: right operand, any float dtype.
        matmul_dtype: dtype of the inputs of the matrix product, forward and backward.
        out_dtype: dtype of the result. Gradients come back in the dtypes of `x` and `y`.
    """
    return contract(spec, x, y, matmul_dtype).astype(out_dtype)


def contract(spec: str, x: Float[Array, "..."], y: Float[Array, "..."], matmul_dtype: str) -> Float[Array, "..."]:
    """The product itself, float32, for code with a backward pass of its own; arguments as of `einsum`."""
    # float32 means float32 on accelerators too, where the default would be one bf16 pass.
    precision = jax.lax.Precision.HIGHEST if matmul_dtype == "float32" else None
    return jnp.einsum(
        spec,
        x.astype(matmul_dtype),
        y.astype(matmul_dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def _forward(spec, x, y, matmul_dtype, out_dtype):
    # Kept for the backward pass: the left operand, an activation, as the product reads it; the right one, a weight,
    # as it is, since it is alive anyway. The empty array holds the dtype that the gradient of x shall have.
    kept = (x.astype(matmul_dtype), y, jnp.zeros((0,), x.dtype))
    # Not through `einsum`: a remat policy that saves products must find a product here, not a call with its own rule.
    return contract(spec, x, y, matmul_dtype).astype(out_dtype), kept


def _backward(spec, matmul_dtype, out_dtype, residuals, cotangent):
    del out_dtype
    x, y, like_x = residuals
    inputs, out = spec.split("->")
    left, right = inputs.split(",")
    dx = contract(f"{out},{right}->{left}", cotangent, y, matmul_dtype).astype(like_x.dtype)
    dy = contract(f"{left},{out}->{right}", x, cotangent, matmul_dtype).astype(y.dtype)
    return dx, dy


einsum.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def grouped_matmul(
    x: Float[Array, "M I"],
    weights: Float[Array, "E I O"],
    sizes: Int[Array, "E"],
    matmul_dtype: str,
    out_dtype: str,
) -> Float[Array, "M O"]:
    """The first `sizes[0]` rows of `x` times the first weight, the next `sizes[1]` times the second, …

    Args:
        x: rows sorted by weight.
        weights: one matrix a group.
        sizes: rows of each group; rows behind the last group give zeros.
        matmul_dtype: dtype of the inputs of the matrix products, forward and backward.
        out_dtype: dtype of the result. Gradients come back in the dtypes of `x` and `weights`.
    """
    return _grouped_forward(x, weights, sizes, matmul_dtype, out_dtype)[0]


_ROWS_WITH_WEIGHTS = RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), (0,), (0,))
_ROWS_WITH_TRANSPOSED_WEIGHTS = RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), (0,), (0,))
_ROWS_WITH_ROWS = RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())


def _grouped(x, y, sizes, numbers, matmul_dtype):
    precision = jax.lax.Precision.HIGHEST if matmul_dtype == "float32" else None
    operands = (x.astype(matmul_dtype), y.astype(matmul_dtype))
    return jax.lax.ragged_dot_general(
        *operands, sizes, numbers, precision=precision, preferred_element_type=jnp.float32
    )


def _grouped_forward(x, weights, sizes, matmul_dtype, out_dtype):
    kept = (x.astype(matmul_dtype), weights, sizes, jnp.zeros((0,), x.dtype))
    out = _in_groups(_grouped(x, weights, sizes, _ROWS_WITH_WEIGHTS, matmul_dtype), sizes)
    return out.astype(out_dtype), kept


def _in_groups(rows, sizes):
    """Zeros behind the last group, whatever a backend leaves there."""
    return jnp.where(jnp.arange(rows.shape[0])[:, None] < jnp.sum(sizes), rows, 0.0)


def _grouped_backward(matmul_dtype, out_dtype, residuals, cotangent):
    del out_dtype
    x, weights, sizes, like_x = residuals
    dx = _in_groups(_grouped(cotangent, weights, sizes, _ROWS_WITH_TRANSPOSED_WEIGHTS, matmul_dtype), sizes)
    dweights = _grouped(x, cotangent, sizes, _ROWS_WITH_ROWS, matmul_dtype)
    return dx.astype(like_x.dtype), dweights.astype(weights.dtype), None


grouped_matmul.defvjp(_grouped_forward, _grouped_backward)
