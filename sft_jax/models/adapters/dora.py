"""DoRA: the columns of W + scale A B with a trained magnitude (Liu et al. 2024, https://arxiv.org/abs/2402.09353).

The norm of a column is expanded, |W|^2 + 2 scale W.(A B) + scale^2 |A B|^2, so that the update is not formed, and its
gradient is stopped (section 4.3 of the paper).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from sft_jax.models.adapters import lora
from sft_jax.models.matmul import contract

INIT_READS_KERNEL = True
ON_EXPERTS = False  # each token would have to be scaled by the magnitudes of its own expert
ON_TIED_EMBEDDING = False  # as a head, the embedding has other columns


def init(key: PRNGKeyArray, kernel: Float[Array, "*L I O"], rank: int, scale: Float[Array, ""]) -> dict[str, Array]:
    """LoRA's A and B, and as magnitude the norm of each column: the output is unchanged at step 0. float32."""
    return lora.init(key, kernel, rank, scale) | {"magnitude": _norm(kernel)}


def init_embedding(
    key: PRNGKeyArray, kernel: Float[Array, "V D"], rank: int, scale: Float[Array, ""]
) -> dict[str, Array]:
    """As for a projection, with the A and B that embeddings begin with."""
    return lora.init_embedding(key, kernel, rank, scale) | {"magnitude": _norm(kernel)}


def apply(
    x: Array,
    kernel: Float[Array, "I O"],
    output: Float[Array, "*B O"],
    adapter: dict[str, Array],
    matmul: Callable[[Array, Array], Array],
) -> Float[Array, "*B O"]:
    """The adapted output; arguments as of `lora.apply`, and `magnitude` [O] in `adapter`."""
    share = adapter["magnitude"] / jax.lax.stop_gradient(_adapted_norm(kernel, adapter))
    update = matmul(matmul(x, adapter["a"]), adapter["b"])
    wide = output.astype(jnp.float32) + adapter["scale"] * update
    return (wide * share.reshape((1,) * (wide.ndim - 1) + share.shape)).astype(output.dtype)


def merge(kernel: Float[Array, "*L I O"], adapter: dict[str, Array]) -> Float[Array, "*L I O"]:
    """The columns of W + scale A B, scaled to their magnitudes, in float32; cast back to the dtype of the kernel."""
    merged = kernel.astype(jnp.float32) + lora.update_of(adapter)
    share = adapter["magnitude"] / _norm(merged)
    return (merged * share[..., None, :]).astype(kernel.dtype)


def _norm(kernel: Float[Array, "*L I O"]) -> Float[Array, "*L O"]:
    return jnp.sqrt(jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=-2))


def _adapted_norm(kernel: Float[Array, "I O"], adapter: dict[str, Array]) -> Float[Array, "O"]:
    """Norm of each column of W + scale A B."""
    a, b, scale, wide = adapter["a"], adapter["b"], adapter["scale"], kernel.astype(jnp.float32)
    crossed = contract("io,ir->ro", wide, a, "float32")
    inner = contract("ir,iq->rq", a, a, "float32")
    square = jnp.sum(jnp.square(wide), axis=0)
    square += 2 * scale * jnp.sum(crossed * b, axis=0)
    square += scale**2 * jnp.sum(contract("rq,qo->ro", inner, b, "float32") * b, axis=0)
    return jnp.sqrt(square)
