"""How far weights are from where they began: by hand, in either layout, with adapters as without."""

import dataclasses

import jax
import numpy as np
import pytest

from sft_jax.models.quantization import dequantized_tree
from sft_jax.runs.base import open_run
from sft_jax.runs.drift import weight_drift
from sft_jax.sharding import inference_mesh
from sft_jax.training import run
from tests import tiny
from tests.models import reference

FAST = {"duration": "3 steps", "evaluation.every": "3 steps", "checkpoint.every": "3 steps"}
LORA = {"adapter.targets": ("attention/query", "ffn/down", "embedding")}
RUNS = {
    "full": ("full", {"ema.decay": 0.5}),
    "last layer": ("full", {"trained.last_layers": 1}),
    "lora": ("lora", LORA),
    "dora": ("lora", {"adapter.method": "dora"}),
    "new tokens": ("lora", {"model.new_tokens": ("<|x|>",), "adapter.train_new_tokens": True}),
    "few bits": ("lora", {"precision.quantized": "nf4"}),
}
OFTEN = ("full", "lora", "new tokens")
EVERY = [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("drift")


def finished(root, name, layout="auto"):
    arg, overrides = RUNS[name]
    directory = root / f"{name} {layout}"
    if not directory.exists():
        run(tiny.config(root, arg, **FAST | overrides, **{"execution.layer_layout": layout}), directory)
    return open_run(str(directory))


def drift(opened, weights="trained"):
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        return weight_drift(opened, mesh, weights)


def by_hand(opened, weights="trained"):
    """Both models whole, in float64: {(layer, weight): (norm, change)} of what changed."""
    mesh, found = inference_mesh(jax.devices()), {}
    with jax.set_mesh(mesh):
        precision = opened.options.precision
        read = opened.base.params("unrolled", precision.frozen, mesh, precision.quantized)
        start = reference.flat(dequantized_tree(read))
        end = reference.flat(opened.params("unrolled", "float32", mesh, "none", weights))
    for path, leaf in start.items():
        before, after = np.asarray(leaf, np.float64), np.asarray(end[path], np.float64)
        if np.any(before != after):
            layer, _, rest = path.partition("/")
            place = (int(layer.removeprefix("layers_")), rest) if layer.startswith("layers_") else (None, path)
            found[place] = (np.sqrt(np.sum(before**2)), np.sqrt(np.sum((after - before) ** 2)))
    return found


@pytest.mark.parametrize("name", EVERY)
def test_by_hand(root, name):
    opened = finished(root, name)
    expected, rows = by_hand(opened), drift(opened)
    assert {(row["layer"], row["weight"]) for row in rows} == expected.keys()
    for row in rows:
        norm, change = expected[row["layer"], row["weight"]]
        assert row["norm"] == pytest.approx(norm, rel=1e-5)
        assert row["change"] == pytest.approx(change, rel=1e-3)
        assert row["relative"] == pytest.approx(change / norm, rel=1e-3)
        assert row["relative"] > 1e-4


def test_the_rows_of_an_adapter(root):
    """Those of its targets in each layer, layer by layer, after what lies outside layers."""
    places = [(row["layer"], row["weight"]) for row in drift(finished(root, "lora"))]
    layers = [(layer, name) for layer in (0, 1) for name in ("attention/query/kernel", "ffn/down/kernel")]
    assert places == [(None, "embedding"), *layers]


@pytest.mark.parametrize("name", ["full", "lora"])
def test_scanned_and_unrolled_runs_drift_alike(root, name):
    scanned, unrolled = (drift(finished(root, name, layout)) for layout in ("scan", "unrolled"))
    assert len(scanned) == len(unrolled) > 4
    for one, other in zip(scanned, unrolled, strict=True):
        assert (one["layer"], one["weight"]) == (other["layer"], other["weight"])
        for number in ("norm", "change", "relative"):
            assert one[number] == pytest.approx(other[number], rel=1e-3)


def test_an_average_drifts_less(root):
    opened = finished(root, "full")
    for row, own in zip(drift(opened, "ema"), drift(opened), strict=True):
        assert row["change"] < 0.9 * own["change"]


def test_a_mix_is_refused(root):
    opened = dataclasses.replace(finished(root, "full"), mix=0.5)
    with pytest.raises(
        ValueError, match=r"\(mix 0\.5\): give the result of the run; at mix 0\.5 it drifted 0\.5 times"
    ):
        drift(opened)
