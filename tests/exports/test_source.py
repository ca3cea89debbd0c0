"""Merging weight by weight is merging the whole tree, on every kind of base."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from sft_jax.exports.source import merged_weights
from sft_jax.models import adapters
from sft_jax.models.config import AdapterSpec
from sft_jax.models.quantization import dequantized_tree, quantized_tree
from sft_jax.models.variables import merge_adapters
from tests.models import reference


def variables_of(method, frozen):
    """A base of two layers, the second with experts, and adapters on some of its weights."""
    _, params = reference.random_params({"num_hidden_layers": 2})
    rng = np.random.default_rng(0)
    if adapters.get_method(method).ON_EXPERTS:
        experts = jnp.asarray(rng.standard_normal((3, 32, 48)), jnp.float32)
        params["layers_1"]["experts"] = {"up": {"kernel": experts}}
    adapted, scale = {}, jnp.float32(2.0)
    for path, leaf in flatten_dict(params, sep="/").items():
        if path == "embedding" or path.endswith(("query/kernel", "down/kernel", "experts/up/kernel")):
            stem, method_of = path.removesuffix("/kernel"), adapters.get_method(method)
            init = method_of.init_embedding if path == "embedding" else method_of.init
            made = init(jax.random.key(1), leaf, 3, scale)
            pushed = {name: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32) for name, x in made.items()}
            adapted[stem] = pushed | {"scale": scale, "dropout": jnp.float32(0)}
    base = (
        quantized_tree(params, frozen)
        if frozen in ("int8", "nf4")
        else jax.tree.map(lambda x: x.astype(frozen), params)
    )
    return {"params": base, adapters.COLLECTION: unflatten_dict(adapted, sep="/")}


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["float32", "bfloat16", "int8", "nf4"])
@pytest.mark.parametrize("method", adapters.METHODS)
def test_weight_by_weight_or_all_at_once(method, frozen):
    variables = variables_of(method, frozen)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), dequantized_tree(variables["params"]))
    expected = flatten_dict(merge_adapters(variables | {"params": wide}, method), sep="/")
    weights = merged_weights(variables, AdapterSpec(method))
    assert weights.keys() == expected.keys()
    for path, make in weights.items():
        np.testing.assert_allclose(make(()).astype(jnp.float32), expected[path], atol=1e-5, rtol=1e-5, err_msg=path)
    for name in [path for path in weights if "experts" in path]:
        for number in range(3):
            np.testing.assert_allclose(weights[name]((number,)), expected[name][number], atol=1e-5, rtol=1e-5)
    before = flatten_dict(wide, sep="/")
    moved = [path.removesuffix("/kernel") for path in expected if np.abs(expected[path] - before[path]).max() > 1e-3]
    beside = flatten_dict(variables[adapters.COLLECTION], sep="/")
    assert sorted(moved) == sorted(path.removesuffix("/scale") for path in beside if path.endswith("scale"))
