"""The loss that keeps a mixture of experts from sending all tokens to a few of them."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from sft_jax.models.experts import Routing


def balance_loss(
    routing: Routing, chosen: Float[Array, "E"], tokens: Float[Array, ""], num_layers: int
) -> Float[Array, ""]:
    """A part's share in the balance loss of a whole step: E sum_e f_e P_e (Fedus et al. 2021, eq. 4 to 6).

    f_e is the mean number of times that a token of the step chose expert e, P_e the mean probability that the router
    gave it; both means go over all layers with experts together, as in transformers. Where all experts are alike, the
    loss is the number of experts a token takes. The shares of all micro-batches sum up to the loss of the step, because
    `chosen`, which has no gradient, is that of the step.

    Args:
        routing: sums over the tokens of the part, and over layers.
        chosen: how often each expert was chosen in the whole step, summed over layers.
        tokens: tokens of the whole step, padding left out.
        num_layers: layers that have experts.
    """
    count = jnp.maximum(tokens * num_layers, 1.0)
    return chosen.shape[0] * jnp.sum((chosen / count) * (routing.probability / count))
