"""Stacked and one subtree a layer: a round trip changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.models.layouts import layout_of, to_layout

UNROLLED = {
    "embedding": np.arange(4.0),
    "layers_0": {"ffn": {"kernel": np.ones((2, 3))}},
    "layers_1": {"ffn": {"kernel": np.full((2, 3), 2.0)}},
}
MANY = {f"layers_{index}": {"bias": np.asarray([float(index)])} for index in range(12)}


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_stacking_by_hand():
    stacked = to_layout(UNROLLED, "scan")
    assert stacked.keys() == {"embedding", "layers"}
    assert stacked["layers"]["ffn"]["kernel"].shape == (2, 2, 3)
    np.testing.assert_array_equal(stacked["layers"]["ffn"]["kernel"][:, 0, 0], [1, 2])


@pytest.mark.parametrize("tree", [UNROLLED, MANY])
@pytest.mark.parametrize("stack", [jnp.stack, np.stack])
def test_round_trip(tree, stack):
    assert_equal(to_layout(to_layout(tree, "scan", stack), "unrolled"), tree)


def test_layers_are_stacked_by_number_not_by_name():
    np.testing.assert_array_equal(to_layout(MANY, "scan")["layers"]["bias"][:, 0], np.arange(12))


def test_numpy_trees_stay_numpy():
    assert isinstance(to_layout(UNROLLED, "scan", np.stack)["layers"]["ffn"]["kernel"], np.ndarray)


@pytest.mark.parametrize("layout", ["scan", "unrolled"])
def test_a_tree_in_the_layout_or_without_layers_is_itself(layout):
    tree = to_layout(UNROLLED, layout)
    assert to_layout(tree, layout) is tree
    rest = {"embedding": UNROLLED["embedding"]}
    assert layout_of(rest) is None
    assert to_layout(rest, layout) is rest


def test_a_gap_between_layers_is_an_error():
    with pytest.raises(ValueError, match=r"layers \[0, 2\] do not count from 0"):
        to_layout({"layers_0": UNROLLED["layers_0"], "layers_2": UNROLLED["layers_1"]}, "scan")
