"""PiSSA: LoRA on the principal part of W (Meng et al. 2024, https://arxiv.org/abs/2404.02948).

A and B begin as A0 and B0, the largest singular parts of W, and the rest of W is frozen: x (W - scale A0 B0) +
scale (x A) B. Here W itself is frozen and A0 B0 is subtracted beside it, which is the same function: the base model
stays unchanged, and the adapter can be exported and merged as a LoRA of twice the rank, [A, A0] [B; -B0].
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from sft_jax.models.adapters import lora

INIT_READS_KERNEL = True
ON_EXPERTS = True
ON_TIED_EMBEDDING = True


def init(key: PRNGKeyArray, kernel: Float[Array, "*L I O"], rank: int, scale: Float[Array, ""]) -> dict[str, Array]:
    """A = U sqrt(S / scale), B = sqrt(S / scale) V of the `rank` largest singular values, and both again as constants.

    The output is unchanged at step 0, up to rounding.
    """
    del key
    left, values, right = jnp.linalg.svd(kernel.astype(jnp.float32), full_matrices=False)
    root = jnp.sqrt(values[..., :rank] / scale)
    a, b = left[..., :rank] * root[..., None, :], root[..., :, None] * right[..., :rank, :]
    return {"a": a, "b": b, "constant_a": a, "constant_b": b}


init_embedding = init


def apply(
    x: Array,
    kernel: Float[Array, "*E I O"],
    output: Float[Array, "*B O"],
    adapter: dict[str, Array],
    matmul: Callable[[Array, Array], Array],
) -> Float[Array, "*B O"]:
    """The adapted output; arguments as of `lora.apply`, and the constants in `adapter`."""
    return lora.apply(x, kernel, output, as_lora(adapter), matmul)


def apply_transposed(
    x: Array, output: Float[Array, "*B I"], adapter: dict[str, Array], matmul: Callable[[Array, Array], Array]
) -> Float[Array, "*B I"]:
    """The output adapted beside the transposed weight; arguments as of `lora.apply_transposed`."""
    return lora.apply_transposed(x, output, as_lora(adapter), matmul)


def merge(kernel: Float[Array, "*L I O"], adapter: dict[str, Array]) -> Float[Array, "*L I O"]:
    """W + scale (A B - A0 B0) in float32, cast back to the dtype of the kernel."""
    return lora.merge(kernel, as_lora(adapter))


def as_lora(adapter: dict[str, Array]) -> dict[str, Array]:
    """The same update as a LoRA of twice the rank and the same scale."""
    return {
        "a": jnp.concatenate([adapter["a"], adapter["constant_a"]], axis=-1),
        "b": jnp.concatenate([adapter["b"], -adapter["constant_b"]], axis=-2),
        "scale": adapter["scale"],
    }
