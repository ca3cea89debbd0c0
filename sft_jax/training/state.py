"""The training state: what is trained, what is frozen, moments, hyperparameters, and how trees are split and merged."""

import re
import zlib
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from sft_jax.models import adapters
from sft_jax.models.layouts import to_layout

Tree = Any
Leaf = Any


@flax.struct.dataclass
class TrainState:
    """All that a step reads and writes; also the tree of its shapes, or of its shardings.

    Attributes:
        step: int32 scalar, optimizer steps done, skipped ones included.
        trained: nested dict {"params": …, "adapters": …} of what the optimizer sees.
        frozen: the rest, in the same form; carries neither gradient nor moments.
        opt_state: optax state over `trained`.
        hyper: hyperparameters as float32 scalars.
        skipped: int32 scalar, steps left out because loss or gradient was not finite.
        skipped_in_a_row: int32 scalar, those since the last good step.
        ema: exponential moving average of `trained`, float32; empty where the run keeps none.
    """

    step: Leaf
    trained: Tree
    frozen: Tree
    opt_state: Tree
    hyper: dict[str, Leaf]
    skipped: Leaf
    skipped_in_a_row: Leaf
    ema: Tree


def split(tree: Tree, is_trained: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """(trained, frozen): two trees that hold each leaf once, by a predicate over its path `params/layers/…`."""
    flat = flatten_dict(tree, sep="/")
    trained = {path: leaf for path, leaf in flat.items() if is_trained(path)}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def canonical_path(path: str) -> str:
    """The name of a parameter in either layer layout, as patterns in a config see it.

    `params/layers_3/ffn/up/kernel` and `params/layers/ffn/up/kernel` are both `layers/ffn/up/kernel`; adapters keep
    their collection: `adapters/layers/ffn/up/a`.
    """
    return re.sub(r"(^|/)layers_\d+/", r"\1layers/", path).removeprefix("params/")


def merge(trained: Tree, frozen: Tree) -> Tree:
    """The inverse of `split`."""
    return unflatten_dict({**flatten_dict(frozen), **flatten_dict(trained)})


def variables(trained: Tree, frozen: Tree, hyper: dict[str, Array]) -> Tree:
    """What the decoder's `apply` takes: parameters, and adapters with their scale and dropout from `hyper`."""
    tree = merge(trained, frozen)
    if adapters.COLLECTION not in tree:
        return tree
    flat = flatten_dict(tree[adapters.COLLECTION])
    added = {}
    for path, leaf in flat.items():
        if path[-1] == "a":
            stack = leaf.shape[:1] if path[0] == "layers" else ()
            added[(*path[:-1], "scale")] = jnp.broadcast_to(hyper["adapter_alpha"] / leaf.shape[-1], stack)
            added[(*path[:-1], "dropout")] = jnp.broadcast_to(hyper["adapter_dropout"], stack)
    return {**tree, adapters.COLLECTION: unflatten_dict({**flat, **added})}


def merge_adapters(tree: Tree, method: str) -> Tree:
    """The parameters with adapters of that method merged into them; `tree` is what `variables` gives."""
    merge_one = adapters.get_method(method).merge
    params = flatten_dict(tree["params"])
    by_layer: dict[tuple[str, ...], dict[str, Array]] = {}
    for path, leaf in flatten_dict(tree[adapters.COLLECTION]).items():
        by_layer.setdefault(path[:-1], {})[path[-1]] = leaf
    for path, arrays in by_layer.items():
        params[(*path, "kernel")] = merge_one(params[(*path, "kernel")], arrays)
    return unflatten_dict(params)


def head_weights(tree: Tree) -> Tree:
    """The parameters that the vocabulary head reads, as a {"params": …} subtree; empty where `tree` has none."""
    params = tree.get("params", {})
    return {"params": {name: params[name] for name in ("embedding", "head") if name in params}}


def adapter_targets(params: Tree, patterns: tuple[str, ...]) -> list[str]:
    """Paths of the projections (`layers/attention/query`) whose path one of the patterns matches from its start
    (after `layers/`) to its end.

    Args:
        params: parameters in the stacked layout.
        patterns: regular expressions, for example `attention/(query|value)`.

    Raises:
        ValueError: a pattern matches no projection; lists those there are.
    """
    projections = [path[: -len("/kernel")] for path in flatten_dict(params, sep="/") if path.endswith("/kernel")]
    names = {path.removeprefix("layers/"): path for path in projections}
    unmatched = [pattern for pattern in patterns if not any(re.fullmatch(pattern, name) for name in names)]
    if unmatched or not patterns:
        raise ValueError(
            f"--config.adapter.targets={unmatched or '()'} match no projection; there are: {', '.join(sorted(names))}"
        )
    return [path for name, path in names.items() if any(re.fullmatch(pattern, name) for pattern in patterns)]


def init_adapters(params: Tree, config: ml_collections.ConfigDict, seed: int, layout: str) -> Tree:
    """Fresh adapters beside `params`, float32, the same numbers in either layout.

    Args:
        params: parameters or their shapes, in the stacked layout.
        config: `adapter` of the experiment config.
        seed: of the initial values; each projection draws from its own stream.
        layout: layer layout of the result.
    """
    method = adapters.get_method(config.method)
    flat = flatten_dict(params, sep="/")
    key = jax.random.key(seed)
    made = {}
    for path in adapter_targets(params, tuple(config.targets)):
        path_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        made[path] = method.init(path_key, flat[f"{path}/kernel"].shape, config.rank)
    return to_layout(unflatten_dict(made, sep="/"), layout)
