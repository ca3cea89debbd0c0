"""A second embedding of each token, with a part for each layer, that the layers add (Gemma 3n and Gemma 4).

Dimensions as in `decoder`, and P the width of a layer's part.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sft_jax.models.config import AdapterSpec, DecoderConfig, Execution
from sft_jax.models.layers import Linear, Norm, activated, weight_of
from sft_jax.models.lookup import look_up
from sft_jax.models.partitioning import BATCH_AXES, constrain

NAME = "per_layer"  # of both modules


class PerLayerInputs(nn.Module):
    """What all layers add: rows of an embedding, and a projection of the first embedding."""

    config: DecoderConfig
    execution: Execution
    adapter: AdapterSpec | None

    @nn.compact
    def __call__(
        self, tokens: Int[Array | np.ndarray, "B S"], embedded: Float[Array, "B S D"]
    ) -> Float[Array, "L B S P"]:
        """(norm of the projection + row) / sqrt(2), for each layer."""
        config, width = self.config, self.config.per_layer_dim
        total = config.num_layers * width
        shape = (config.vocab_size, total)
        table = self.param("embedding", nn.initializers.normal(0.02), shape)
        rows = look_up(table, tokens, self.execution.activation_dtype, weight_of(self, "embedding", shape))
        projected = Linear(total, False, self.execution, self.adapter, name="projection")(embedded)
        by_layer = (*embedded.shape[:2], config.num_layers, width)
        rows, projected = (x.reshape(by_layer) for x in (rows * width**0.5, projected * config.model_dim**-0.5))
        both = (Norm(config, name="norm")(projected) + rows) * 2**-0.5
        return constrain(jnp.moveaxis(both, 2, 0), None, BATCH_AXES, "context", None)


class PerLayerInput(nn.Module):
    """What one layer makes of its part: norm(out(activation(gate(x)) * part))."""

    config: DecoderConfig
    execution: Execution
    adapter: AdapterSpec | None

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], part: Float[Array, "B S P"]) -> Float[Array, "B S D"]:
        """What is added to the residual stream `x`."""
        config = self.config
        gate = Linear(config.per_layer_dim, False, self.execution, self.adapter, name="gate")(x)
        inner = constrain(activated(gate, config.activation) * part, BATCH_AXES, "context", "tensor")
        out = Linear(config.model_dim, False, self.execution, self.adapter, name="out")(inner)
        return Norm(config, name="norm")(out)
