"""Models that are planned for without being there have as many parameters as their makers published."""

import math

import jax
import jax.numpy as jnp
import pytest

from sft_jax.models import Decoder, Execution
from sft_jax.models.families import get_family
from sft_jax.planning.models import PUBLISHED

PARAMETERS = {
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name):
    decoder = get_family(PUBLISHED[name]).decoder_config(PUBLISHED[name])
    model = Decoder(decoder, Execution(layer_layout="scan"))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]
