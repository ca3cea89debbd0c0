"""Stacked, by the period of a pattern or all together, and one subtree a layer: a round trip changes nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.models.config import DecoderConfig
from sft_jax.models.layouts import (
    Span,
    is_stacked,
    layout_of,
    numbers_of,
    of_one_layer,
    place_in,
    resolved,
    spans_of,
    to_layout,
    without_layers,
)

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


def decoder(windows, **fields):
    return DecoderConfig(64, len(windows), 32, 4, 2, 8, 48, layer_windows=tuple(windows), **fields)


DENSE = (("num_experts", 0),)


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (decoder([0] * 5), "scan"),
        (decoder([8, 0] * 13), "0_26_2"),  # Gemma 2 2B
        (decoder(([8] * 5 + [0]) * 10 + [8] * 2), "0_60_6 60_62_1"),  # Gemma 3 27B
        (decoder([0] * 3 + [8] * 4), "0_3_1 3_7_1"),
        (decoder([8, 8, 8, 0]), "0_3_1 3_4_1"),
        (decoder([1, 2, 3]), "0_3_3"),  # no two are equal
        (
            decoder([0] * 8, num_experts=4, experts_per_token=2, layer_overrides=(DENSE,) * 3 + ((),) * 5),
            "0_3_1 3_8_1",
        ),
    ],
)
def test_the_smallest_program(config, layout):
    assert resolved("scan", config) == layout
    assert resolved("unrolled", config) == "unrolled"


@pytest.mark.parametrize("seed", range(20))
def test_no_program_of_random_layers_is_larger_than_needed(seed):
    """Spans cover every layer once, with equal layers at each place; and are no more than what the period of all is."""
    windows = np.random.default_rng(seed).integers(1, 3, 9).tolist()
    spans = spans_of(decoder(windows))
    assert [number for span in spans for number in range(span.start, span.stop)] == list(range(9))
    for span in spans:
        assert all(len({windows[number] for number in span.layers(place)}) == 1 for place in range(span.period))
    runs = 1 + sum(a != b for a, b in itertools.pairwise(windows))
    assert sum(span.period for span in spans) <= runs


def test_an_overriding_layer_is_another_decoder():
    config = decoder([0] * 2, num_experts=4, experts_per_token=2, layer_overrides=(DENSE, ()))
    assert [config.of_layer(number).num_experts for number in range(2)] == [0, 4]
    assert config.of_layer(1) == decoder([0], num_experts=4, experts_per_token=2)


PATTERN = "0_9_3 9_12_1"


@pytest.mark.parametrize("stack", [jnp.stack, np.stack])
@pytest.mark.parametrize("layout", [PATTERN, "0_12_12", "0_2_1 2_12_2"])
def test_round_trips_by_period(layout, stack):
    stacked = to_layout(MANY, layout, stack)
    assert layout_of(stacked) == layout
    assert_equal(to_layout(stacked, "unrolled"), MANY)
    assert_equal(to_layout(to_layout(stacked, "scan", stack), layout, stack), stacked)


def test_what_lies_where_by_hand():
    stacked = to_layout(MANY, PATTERN)
    np.testing.assert_array_equal(stacked["layers_0_9_3"]["layer_1"]["bias"][:, 0], [1, 4, 7])
    np.testing.assert_array_equal(stacked["layers_9_12_1"]["layer_0"]["bias"][:, 0], [9, 10, 11])
    assert place_in(PATTERN, "layers_7/ffn/up/kernel", 12) == ("layers_0_9_3/layer_1/ffn/up/kernel", (2, 3))
    assert place_in("scan", "layers_7/ffn/up/kernel", 12) == ("layers/ffn/up/kernel", (7, 12))
    assert place_in("unrolled", "layers_7/ffn/up/kernel", 12) == ("layers_7/ffn/up/kernel", None)
    assert place_in(PATTERN, "embedding", 12) == ("embedding", None)


def test_layers_that_hold_nothing_are_left_out():
    """Adapters of some layers."""
    some = {name: MANY[name] for name in ("layers_2", "layers_5", "layers_8")}
    stacked = to_layout(some, PATTERN)
    assert stacked.keys() == {"layers_0_9_3"}
    assert stacked["layers_0_9_3"].keys() == {"layer_2"}
    assert_equal(to_layout(stacked, "unrolled"), some)
    with pytest.raises(ValueError, match=r"layers \[5\] are missing beside others of \[2, 5, 8\]"):
        to_layout({name: MANY[name] for name in ("layers_2", "layers_8")}, PATTERN)


@pytest.mark.parametrize(
    ("path", "layers", "stacked"),
    [
        ("params/layers_7/ffn/up/kernel", range(7, 8), False),
        ("layers/ffn/up/kernel", range(4), True),
        ("opt/0/mu/params/layers_0_60_6/layer_2/ffn/up/kernel", Span(0, 60, 6).layers(2), True),
        ("params/embedding", None, False),
        ("params/final_norm/scale", None, False),
    ],
)
def test_names_say_which_layers(path, layers, stacked):
    assert numbers_of(path, 4) == layers
    assert is_stacked(path) == stacked
    if layers is not None:
        assert of_one_layer(path).endswith("layers/ffn/up/kernel")
        assert without_layers(path).endswith("ffn/up/kernel")
        assert "layer" not in without_layers(path)
    else:
        assert of_one_layer(path) == without_layers(path) == path
