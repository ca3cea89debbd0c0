"""NEFTune: uniform noise on the embeddings in training (Jain et al. 2023, https://arxiv.org/abs/2310.05914)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from sft_jax.models.context import dealt


def embedding_noise(
    keys: Key[Array, "B"], segment_ids: Int[Array, "B S"], width: int, alpha: Float[Array, ""], dealt_to: int = 1
) -> Float[Array, "B S D"]:
    """Noise from -a to a with a = alpha / sqrt(L D), where L is the length of the token's own example; none on padding.

    Every sequence has a key of its own, so that the noise does not depend on how a batch is split into micro-batches.

    Args:
        keys: one a sequence.
        segment_ids: example of each token, 0 for padding.
        width: D.
        alpha: the paper's alpha, 5 to 15.
        dealt_to: the tokens are dealt out to so many devices; each gets the noise that it would get otherwise.
    """
    length = segment_ids.shape[1]
    of_segment = jax.vmap(lambda ids: jnp.bincount(ids, length=length + 1))(segment_ids)
    lengths = jnp.take_along_axis(of_segment, segment_ids, axis=1)
    size = jnp.where(segment_ids > 0, alpha * jax.lax.rsqrt(lengths.astype(jnp.float32) * width), 0.0)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (length, width), jnp.float32, -1.0, 1.0))(keys)
    return (uniform if dealt_to == 1 else dealt(uniform, dealt_to)) * size[..., None]
