"""The matrix products of the model: low-precision inputs, float32 accumulation, forward and backward.

Plain autodiff of a bf16 product multiplies float32 cotangents with bf16 operands, which has no fast kernel on CPUs with
AVX-512 BF16 and costs a conversion elsewhere. The rule below casts the cotangent too, so that all three products of a
layer (forward, input gradient, weight gradient) run at the speed of the matmul dtype.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.lax import RaggedDotDimensionNumbers
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from sft_jax.models.partitioning import constrain, gather_own, gathered, scatter_own


@dataclasses.dataclass(frozen=True)
class Weight:
    """How the right operand of a product lies on the mesh, where it is a weight.

    Attributes:
        stored: how it, and its gradient, are split. For the product it is cast, and then gathered along the axes that
            split parameters (`partitioning.gathered`), forward and backward.
        gradient_dtype: dtype in which its gradient leaves the product, and is summed over devices.
    """

    stored: P
    gradient_dtype: str = "float32"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4, 5))
def einsum(
    spec: str,
    x: Float[Array, "..."],
    y: Float[Array, "..."],
    matmul_dtype: str,
    out_dtype: str,
    weight: Weight | None = None,
    probe: Float[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Two-operand einsum with inputs cast to `matmul_dtype` and float32 accumulation.

    Args:
        spec: two-operand einsum with explicit output; every index of an operand occurs in the other or in the output.
        x: left operand, any float dtype.
        y: right operand, any float dtype.
        matmul_dtype: dtype of the inputs of the matrix product, forward and backward.
        out_dtype: dtype of the result, and in which the gradient of `x` leaves its product. Gradients come back in the
            dtypes of `x` and `y`.
        weight: where `y` lies on a mesh. By default that is left to the compiler.
        probe: takes the gradient of `y`, as `weight` says, in place of `y`, which then has none (`probes`). It has the
            shape of `y`, and is not read.
    """
    return contract(spec, x, _read(y, matmul_dtype, weight), matmul_dtype, out_dtype)


def contract(
    spec: str, x: Float[Array, "..."], y: Float[Array, "..."], matmul_dtype: str, out_dtype: str = "float32"
) -> Float[Array, "..."]:
    """The product itself, for code with a backward pass of its own; arguments as of `einsum`."""
    # float32 means float32 on accelerators too, where the default would be one bf16 pass.
    precision = jax.lax.Precision.HIGHEST if matmul_dtype == "float32" else None
    return jnp.einsum(
        spec,
        x.astype(matmul_dtype),
        y.astype(matmul_dtype),
        precision=precision,
        preferred_element_type=out_dtype,
    )


def _read(y: Array, matmul_dtype: str, weight: Weight | None) -> Array:
    """The right operand as the product reads it: cast first, so that few bytes are gathered."""
    if weight is None:
        return y.astype(matmul_dtype)
    return constrain(constrain(_cast(y, matmul_dtype), *weight.stored), *gathered(weight.stored))


def _cast(weight: Array, matmul_dtype: str) -> Array:
    """A weight in the matmul dtype, cast where it is read.

    XLA for TPUs makes those of all layers bfloat16 before the loop over layers, if a layer does nothing but cast them:
    two bytes a parameter of each device. Through a barrier of integers it does not.
    """

    def here(weight: Array) -> Array:
        bits = jax.lax.optimization_barrier(jax.lax.bitcast_convert_type(weight, jnp.uint32))
        return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(matmul_dtype)

    if (weight.dtype, matmul_dtype) != (jnp.float32, "bfloat16"):
        return weight.astype(matmul_dtype)
    return jax.lax.platform_dependent(weight, tpu=here, default=lambda weight: weight.astype(matmul_dtype))


def _forward(spec, x, y, matmul_dtype, out_dtype, weight, probe):
    # Kept for the backward pass: the left operand, an activation, as the product reads it; the right one, a weight,
    # as it is, since it is alive anyway. Empty arrays hold the dtypes that the gradients of x and the probe shall have.
    kept = (x.astype(matmul_dtype), y, _empty_like(x), _empty_like(probe))
    # Not through `einsum`: a remat policy that saves products must find a product here, not a call with its own rule.
    return contract(spec, x, _read(y, matmul_dtype, weight), matmul_dtype, out_dtype), kept


def _empty_like(x):
    return None if x is None else jnp.zeros((0,), x.dtype)


def _backward(spec, matmul_dtype, out_dtype, weight, residuals, cotangent):
    x, y, like_x, like_probe = residuals
    inputs, out = spec.split("->")
    left, right = inputs.split(",")
    read = _read(y, matmul_dtype, weight)
    dx = contract(f"{out},{right}->{left}", cotangent, read, matmul_dtype, out_dtype).astype(like_x.dtype)
    dtype = "float32" if weight is None else weight.gradient_dtype
    dy = contract(f"{left},{out}->{right}", x, cotangent, matmul_dtype, dtype)
    if weight is not None:
        dy = constrain(dy, *weight.stored)
    return dx, *_given(dy, y, like_probe)


def _given(gradient, weight, like_probe):
    """The gradients of a weight and of its probe."""
    if like_probe is None:
        return gradient.astype(weight.dtype), None
    return None, gradient.astype(like_probe.dtype)


einsum.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def grouped_matmul(
    x: Float[Array, "M I"],
    weights: Float[Array, "E _ _"],
    sizes: Int[Array, "E"],
    matmul_dtype: str,
    out_dtype: str,
    weight: Weight | None = None,
    probe: Float[Array, "E _ _"] | None = None,
) -> Float[Array, "M _"]:
    """The first `sizes[0]` rows of `x` times the first weight, the next `sizes[1]` times the second, …

    Args:
        x: rows sorted by weight.
        weights: one matrix [I, O] a group; this device's own part of it where `weight` is given.
        sizes: rows of each group; rows behind the last group give zeros.
        matmul_dtype: dtype of the inputs of the matrix products, forward and backward.
        out_dtype: as of `einsum`.
        weight: under `jax.shard_map`, where the weights lie, of which this device has its own part. By default all of
            them are here.
        probe: takes the gradient of `weights`, as of `einsum`.
    """
    return _grouped_forward(x, weights, sizes, matmul_dtype, out_dtype, weight, probe)[0]


_ROWS_WITH_WEIGHTS = RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), (0,), (0,))
_ROWS_WITH_TRANSPOSED_WEIGHTS = RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), (0,), (0,))
_ROWS_WITH_ROWS = RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())


def _grouped(x, y, sizes, numbers, matmul_dtype, out_dtype):
    precision = jax.lax.Precision.HIGHEST if matmul_dtype == "float32" else None
    operands = (x.astype(matmul_dtype), y.astype(matmul_dtype))
    return jax.lax.ragged_dot_general(
        *operands, sizes, numbers, precision=precision, preferred_element_type=jnp.dtype(out_dtype)
    )


def _gathered_weights(weights, matmul_dtype, weight):
    if weight is None:
        return weights.astype(matmul_dtype)
    return gather_own(_cast(weights, matmul_dtype), weight.stored)


def _grouped_forward(x, weights, sizes, matmul_dtype, out_dtype, weight, probe):
    kept = (x.astype(matmul_dtype), weights, sizes, _empty_like(x), _empty_like(probe))
    read = _gathered_weights(weights, matmul_dtype, weight)
    return _in_groups(_grouped(x, read, sizes, _ROWS_WITH_WEIGHTS, matmul_dtype, out_dtype), sizes), kept


def _in_groups(rows, sizes):
    """Zeros behind the last group, whatever a backend leaves there."""
    return jnp.where(jnp.arange(rows.shape[0])[:, None] < jnp.sum(sizes), rows, 0.0)


def _grouped_backward(matmul_dtype, out_dtype, weight, residuals, cotangent):
    x, weights, sizes, like_x, like_probe = residuals
    read = _gathered_weights(weights, matmul_dtype, weight)
    dx = _grouped(cotangent, read, sizes, _ROWS_WITH_TRANSPOSED_WEIGHTS, matmul_dtype, out_dtype)
    dtype = "float32" if weight is None else weight.gradient_dtype
    dweights = _grouped(x, cotangent, sizes, _ROWS_WITH_ROWS, matmul_dtype, dtype)
    if weight is not None:
        dweights = scatter_own(dweights, weight.stored)
    of_weights, of_probe = _given(dweights, weights, like_probe)
    return _in_groups(dx, sizes).astype(like_x.dtype), of_weights, None, of_probe


grouped_matmul.defvjp(_grouped_forward, _grouped_backward)
