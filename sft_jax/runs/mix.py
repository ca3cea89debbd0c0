"""Between a base and the result of a run: base + mix (result - base), weight by weight.

Of weights that were trained from one another, the ones between them often keep most of what was learnt and of what was
known before (WiSE-FT, Wortsman et al. 2022, https://arxiv.org/abs/2109.01903): mix is their alpha. `FinishedRun` reads
such weights wherever it reads those of its result.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sft_jax.models import adapters
from sft_jax.models.adapters import new_tokens
from sft_jax.models.config import AdapterSpec
from sft_jax.models.quantization import dequantized_tree
from sft_jax.models.variables import merge_adapters
from sft_jax.options import AdapterOptions
from sft_jax.sharding import shardings_of

Tree = Any
NOT_LINEAR = ("dora",)  # methods whose update, times a factor, is no adapter of that method


def check_mix(mix: float) -> None:
    """Checks that it names weights between a base and a result; beyond either nothing is known of them.

    Raises:
        ValueError: it does not.
    """
    if not 0 <= mix <= 1:
        raise ValueError(f"--mix={mix} must lie between 0 (the base) and 1 (the result of the run)")


@functools.partial(jax.jit, static_argnums=2, donate_argnums=0)
def between(base: Tree, result: Tree, mix: float) -> Tree:
    """base + mix (result - base), leaf by leaf, in float32; `base`, float32, is overwritten."""
    return _between(base, result, mix)


def _between(base: Tree, result: Tree, mix: float) -> Tree:
    return jax.tree.map(lambda start, end: start + mix * (end.astype(jnp.float32) - start), base, result)


def mixed_adapters(tree: Tree, adapter: AdapterSpec, mix: float, mesh: Mesh) -> Tree:
    """What `variables` of a finished run gives, with the update of its adapters times `mix`.

    Args:
        tree: parameters, and beside them adapters with their scale.
        adapter: what the adapters are.
        mix: 0 to 1.
        mesh: where the arrays are.

    Returns:
        The same form, with the scale times `mix` and embeddings of new tokens between where they began and where they
        are; of methods that are NOT_LINEAR the parameters alone, float32, between the base's and the merged ones.
    """
    if adapter.method in NOT_LINEAR:
        return _mixed_with_merged(tree, adapter, mix, mesh)
    beside = _scaled(tree[adapters.COLLECTION], mix)
    if new_tokens.NAME in beside:
        own = beside[new_tokens.NAME]
        first = adapter.first_new_token
        start = new_tokens.init(tree["params"], range(first, first + own["embedding"].shape[0]))
        beside[new_tokens.NAME] = between(start, own, mix)
    return tree | {adapters.COLLECTION: beside}


def _mixed_with_merged(tree: Tree, adapter: AdapterSpec, mix: float, mesh: Mesh) -> Tree:
    def mixed(tree: Tree) -> Tree:
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), dequantized_tree(tree["params"]))
        merged = merge_adapters(tree | {"params": params}, adapter.method, adapter.first_new_token)
        return {"params": _between(params, merged, mix)}

    return jax.jit(mixed, out_shardings=shardings_of(jax.eval_shape(mixed, tree), mesh))(tree)


def mixed_options(adapter: AdapterOptions, mix: float) -> AdapterOptions:
    """The options under which the same arrays make `mix` times the update."""
    return dataclasses.replace(adapter, alpha=adapter.alpha * mix)


def _scaled(beside: Tree, mix: float) -> Tree:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * mix if getattr(path[-1], "key", None) == "scale" else leaf, beside
    )
