"""Converts parameters between the two layer layouts: stacked layers (`scan`) and one subtree a layer (`unrolled`).

Works on anything shaped like the parameters: gradients, moments, adapters. A layout is a property of the compiled
program, not of a checkpoint, so everything that is stored says which one it has.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sft_jax.models.config import LayerLayout

_LAYER = re.compile(r"^layers_(\d+)$")

Tree = Any


def layout_of(tree: Tree) -> LayerLayout | None:
    """The layout of a parameter-like tree; None where it holds no layers."""
    if "layers" in tree:
        return "scan"
    return "unrolled" if any(_LAYER.match(name) for name in tree) else None


def to_layout(tree: Tree, layout: LayerLayout, stack: Callable = jnp.stack) -> Tree:
    """`tree` with its layers in `layout`; the tree itself where they are so already.

    Args:
        tree: nested dict with `layers` ([L, …] leaves) or `layers_0`, `layers_1`, … at its top.
        layout: the layout wanted.
        stack: how leaves are stacked, `np.stack` for NumPy trees.
    """
    current = layout_of(tree)
    if current is None or current == layout:
        return tree
    return _unstack(tree) if layout == "unrolled" else _stack(tree, stack)


def _stack(tree: Tree, stack: Callable) -> Tree:
    numbered = {int(match[1]): tree[name] for name in tree if (match := _LAYER.match(name))}
    if sorted(numbered) != list(range(len(numbered))):
        raise ValueError(f"layers {sorted(numbered)} do not count from 0 without a gap")
    rest = {name: leaf for name, leaf in tree.items() if not _LAYER.match(name)}
    layers = [numbered[index] for index in range(len(numbered))]
    return {**rest, "layers": jax.tree.map(lambda *leaves: stack(leaves), *layers)}


def _unstack(tree: Tree) -> Tree:
    rest = {name: leaf for name, leaf in tree.items() if name != "layers"}
    leaves, treedef = jax.tree.flatten(tree["layers"])
    count = leaves[0].shape[0]
    layers = {
        f"layers_{index}": jax.tree.unflatten(treedef, [leaf[index] for leaf in leaves]) for index in range(count)
    }
    return {**rest, **layers}
