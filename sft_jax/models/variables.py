"""The variables that the decoder's `apply` takes, {"params": …, "adapters": …}: splitting, merging and scaling them."""

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from sft_jax.models import adapters
from sft_jax.models.adapters import new_tokens
from sft_jax.models.layouts import is_stacked, of_one_layer
from sft_jax.models.quantization import dequantized_tree

Tree = Any
CORRECTION = "correction_bias"  # of a router
OUTPUT_SCALE = "output_scale"  # of a layer
SCORE = "score"  # the head of a decoder that scores
_KERNEL_OF_LAYER = re.compile(r"layers/(?!.*router/).*/kernel")


def split(tree: Tree, is_trained: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """(trained, frozen): two trees that hold each leaf once, by a predicate over its path `params/layers/…`."""
    flat = flatten_dict(tree, sep="/")
    trained = {path: leaf for path, leaf in flat.items() if is_trained(path)}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def canonical_path(path: str) -> str:
    """The name of a parameter in every layer layout, as patterns in a config see it.

    `params/layers_3/ffn/up/kernel` and `params/layers/ffn/up/kernel` are both `layers/ffn/up/kernel`; adapters keep
    their collection: `adapters/layers/ffn/up/a`.
    """
    return of_one_layer(path).removeprefix("params/")


def is_buffer(path: str) -> bool:
    """True for parameters that no run trains, and that are float32 whatever the dtype of the weights: a router's
    corrections, which pretraining moved by how often each expert was chosen, and no gradient reaches; and the numbers
    that layers of Gemma 4 multiply their outputs by."""
    return path.endswith((f"/{CORRECTION}", f"/{OUTPUT_SCALE}"))


def is_score(path: str) -> bool:
    """True for the head of a decoder that scores: few numbers, which are float32 whatever the dtype of the weights, and
    are trained whole, also beside adapters."""
    return canonical_path(path) == SCORE


def is_kernel_of_layer(path: str) -> bool:
    """True for kernels of layers, but for those of routers, which are small and computed with in float32."""
    return _KERNEL_OF_LAYER.fullmatch(canonical_path(path)) is not None


def matrix_axes(path: str, ndim: int) -> int:
    """How many of the last axes of a parameter are one matrix, or vector; those before count layers and experts."""
    if path.endswith(("/scale", "/bias", "/sinks", "/magnitude", "/a_log", "/dt_bias")):
        return 1
    return min(2, ndim - is_stacked(path))


def merge(trained: Tree, frozen: Tree) -> Tree:
    """The inverse of `split`."""
    return unflatten_dict({**flatten_dict(frozen), **flatten_dict(trained)})


def variables(trained: Tree, frozen: Tree, hyper: dict[str, Array]) -> Tree:
    """What the decoder's `apply` takes: parameters, and adapters with their scale and dropout from `hyper`."""
    tree = merge(trained, frozen)
    if adapters.COLLECTION not in tree:
        return tree
    return {**tree, adapters.COLLECTION: scaled_adapters(tree[adapters.COLLECTION], hyper)}


def scaled_adapters(arrays: Tree, hyper: dict[str, Array]) -> Tree:
    """Adapters with their scale and dropout, which `hyper` has, beside their arrays.

    The rank of an adapter is that of its arrays, unless `hyper` has another one (`rank_name`): columns beyond it are 0.
    """
    flat, added = flatten_dict(arrays), {}
    for path, leaf in flat.items():
        if path[-1] == "a":
            stack = leaf.shape[:1] if is_stacked("/".join(path)) else ()
            scale = adapter_scale(hyper, hyper.get(rank_name("/".join(path[:-1])), leaf.shape[-1]))
            added[(*path[:-1], "scale")] = jnp.broadcast_to(scale, stack)
            added[(*path[:-1], "dropout")] = jnp.broadcast_to(hyper["adapter_dropout"], stack)
    return unflatten_dict({**flat, **added})


def rank_name(path: str) -> str:
    """The name among hyperparameters of the rank of the adapter at a path, where its arrays have more columns."""
    return f"adapter_rank/{canonical_path(path)}"


def adapter_scale(hyper: dict[str, Array], rank: int | Float[Array, ""]) -> Float[Array, ""]:
    """alpha / rank, or alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023)."""
    return hyper["adapter_alpha"] / jnp.asarray(rank, jnp.float32) ** hyper["adapter_rank_power"]


def merge_adapters(tree: Tree, method: str, first_new_token: int | None = None) -> Tree:
    """The parameters with adapters merged into them.

    Args:
        tree: what `variables` gives.
        method: of the adapters; `none` where only new tokens are trained.
        first_new_token: as in `AdapterSpec`.

    Raises:
        ValueError: an unknown method, or embeddings of new tokens without the id of the first.
    """
    params = flatten_dict(dequantized_tree(tree["params"]))
    beside = dict(tree[adapters.COLLECTION])
    of_new_tokens = beside.pop(new_tokens.NAME, {})
    if of_new_tokens and first_new_token is None:
        raise ValueError("there are embeddings of new tokens; give first_new_token, the id of the first")
    by_weight: dict[tuple[str, ...], dict[str, Array]] = {}
    for path, leaf in flatten_dict(beside).items():
        by_weight.setdefault(path[:-1], {})[path[-1]] = leaf
    for path, arrays in by_weight.items():
        weight = path if path in params else (*path, "kernel")
        params[weight] = adapters.get_method(method).merge(params[weight], arrays)
    for name, own in of_new_tokens.items():
        params[(name,)] = new_tokens.merge(name, params[(name,)], own, first_new_token)
    return unflatten_dict(params)


def head_weights(tree: Tree) -> Tree:
    """What the vocabulary head reads of parameters and adapters, as a subtree; empty where `tree` has none."""
    names = ("embedding", "head", new_tokens.NAME)
    return {
        kind: {name: subtree[name] for name in names if name in subtree}
        for kind, subtree in tree.items()
        if kind in ("params", adapters.COLLECTION)
    }
