"""How far each weight of a finished run is from where it began: ||W - W0|| / ||W0||, by layer and kind of weight.

What comes out is a row for each weight, for a table or a plot. Where a run moved far says which weights to freeze next
time, or to give a lower learning rate.
"""

import functools
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Float

from sft_jax.models import adapters
from sft_jax.models.adapters import new_tokens
from sft_jax.models.config import AdapterSpec
from sft_jax.models.layouts import numbers_of
from sft_jax.models.quantization import dequantized_tree
from sft_jax.models.variables import canonical_path, merge_adapters
from sft_jax.runs.base import FinishedRun
from sft_jax.runs.freezing import trained_predicate

Tree = Any
Row = dict[str, str | int | float | None]


def weight_drift(run: FinishedRun, mesh: Mesh, weights: str = "trained") -> list[Row]:
    """A row for each weight that was trained, or that an adapter or new tokens were trained beside.

    Call it inside `jax.set_mesh`. Adapters are merged for it in float32, one weight after the other.

    Args:
        run: of `open_run`.
        mesh: where the arrays go meanwhile.
        weights: `trained`, or `ema` for the average that the run kept.

    Returns:
        `layer` (from 0; None outside layers), `weight` (`attention/query/kernel`, `embedding`), `norm` ||W0||_F,
        `change` ||W - W0||_F, and `relative`, the change over the norm; None where that is 0. All experts of a layer
        are one weight.

    Raises:
        ValueError: weights between the base and the result, or no such average.
    """
    if run.mix != 1:
        raise ValueError(
            f"{run.name}: give the result of the run; at mix {run.mix:g} it drifted {run.mix:g} times as far"
        )
    measured = _of_adapters(run, mesh, weights) if run.adapter else _of_weights(run, mesh, weights)
    rows = [_row(path, *(float(norm) for norm in norms)) for path, norms in measured]
    return sorted(rows, key=lambda row: (-1 if row["layer"] is None else row["layer"], row["weight"]))


def _row(path: str, norm: float, change: float) -> Row:
    name = canonical_path(path)
    layers = numbers_of(path, 1)
    relative = change / norm if norm else None
    return {
        "layer": None if layers is None else layers[0],
        "weight": name.removeprefix("layers/"),
        "norm": norm,
        "change": change,
        "relative": relative,
    }


Norms = tuple[Float[Array, ""], Float[Array, ""]]


def _of_weights(run: FinishedRun, mesh: Mesh, weights: str) -> Iterator[tuple[str, Norms]]:
    is_trained = trained_predicate(run.options.adapter, run.options.trained, run.base.decoder.num_layers)
    start = flatten_dict(run.base.params("unrolled", "float32", mesh), sep="/")
    for path, leaf in flatten_dict(run.variables("unrolled", mesh, weights)["params"], sep="/").items():
        if is_trained(f"params/{path}"):
            yield path, _norms(start[path], leaf)


def _of_adapters(run: FinishedRun, mesh: Mesh, weights: str) -> Iterator[tuple[str, Norms]]:
    tree = run.variables("unrolled", mesh, weights)
    beside = dict(tree[adapters.COLLECTION])
    own = beside.pop(new_tokens.NAME, {})
    near: dict[tuple[str, ...], dict[str, Array]] = {}
    for path, leaf in flatten_dict(beside).items():
        near.setdefault(path[:-1], {})[path[-1]] = leaf
    for name in own:
        near.setdefault((name,), {})
    for path, arrays in near.items():
        stored = functools.reduce(operator.getitem, path, tree["params"])
        if len(path) > 1:  # a projection of a layer, which may have a bias beside its kernel
            params, merged_with = {"layer": {"kernel": stored["kernel"]}}, {"layer": arrays}
            yield "/".join((*path, "kernel")), _merged_norms(params, merged_with, run.adapter)
        else:
            (name,) = path
            merged_with = {name: arrays} if arrays else {}
            if name in own:
                merged_with[new_tokens.NAME] = {name: own[name]}
            yield name, _merged_norms({name: stored}, merged_with, run.adapter)


@jax.jit
def _norms(start: Array, end: Array) -> Norms:
    start, end = start.astype(jnp.float32), end.astype(jnp.float32)
    return jnp.sqrt(jnp.sum(jnp.square(start))), jnp.sqrt(jnp.sum(jnp.square(end - start)))


@functools.partial(jax.jit, static_argnums=2)
def _merged_norms(params: Tree, beside: Tree, adapter: AdapterSpec) -> Norms:
    """Of one weight. The names in its trees say nothing of its layer, so that one program serves all of a shape."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), dequantized_tree(params))
    merged = merge_adapters({"params": params, adapters.COLLECTION: beside}, adapter.method, adapter.first_new_token)
    return _norms(*jax.tree.leaves(params), *jax.tree.leaves(merged))
