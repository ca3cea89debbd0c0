"""Runs of a model whose layers differ in turn: scanned by the period of the pattern they are what they are unrolled."""

import shutil

import jax
import numpy as np
import pytest
from etils import epath

from sft_jax.models.initial import init_params
from sft_jax.models.layouts import SCAN, UNROLLED, resolved, to_layout
from sft_jax.runs.base import open_base, open_run
from sft_jax.runs.checkpoints import Checkpoints, RunPosition
from sft_jax.runs.metric_log import read_metrics
from sft_jax.sharding import inference_mesh, placement
from sft_jax.training import run
from tests import tiny
from tests.models import families, reference

# Five layers of which every second does not rotate: a scan over two, repeated twice, and one layer.
PATTERN = {"model_type": "smollm3", "num_hidden_layers": 5, "no_rope_layers": [1, 0, 1, 0, 1]}
LAYOUT = "0_4_2 4_5_1"
CASES = {
    "full": ("full", {}),
    "lora": ("lora", {"adapter.targets": ("attention/.*", "ffn/down")}),
    "pissa beside int8": ("lora", {"adapter.method": "pissa", "precision.quantized": "int8"}),
    "bfloat16, averaged": ("full", {"precision.params": "bfloat16", "ema.decay": 0.9, "execution.remat": "full"}),
    "8-bit moments": ("full", {"optimizer.name": "adam8bit"}),
    "muon": ("full", {"optimizer.name": "muon"}),
}
FAST = ("full", "lora")


def configured(root, arg, **overrides):
    if not (root / "model").exists():
        tiny.write_checkpoint(root / "model", **PATTERN)
        tiny.write_rows(root / "train.jsonl", 48)
        tiny.write_rows(root / "held_out.jsonl", 12, seed=1)
    steps = {"duration": "4 steps", "evaluation.every": "4 steps", "checkpoint.every": "2 steps"}
    return tiny.config(root, arg, **steps | overrides)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("patterns")


def losses(workdir):
    return [line["train/loss"] for line in read_metrics(workdir / "metrics.jsonl") if "train/loss" in line]


@pytest.mark.parametrize(
    "case", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_scanned_by_period_as_unrolled(root, case):
    """Begun scanned, gone on with unrolled, and the other way round: the losses of runs in one layout."""
    arg, overrides = CASES[case]
    found = {}
    for layouts in (("scan", "scan"), ("unrolled", "unrolled"), ("scan", "unrolled"), ("unrolled", "scan")):
        workdir = root / case / "-".join(layouts)
        for layout, stop_after in zip(layouts, (2, None), strict=True):
            run(
                configured(root, arg, **overrides, **{"execution.layer_layout": layout}), workdir, stop_after=stop_after
            )
        found[layouts] = losses(workdir)
    one, *others = found.values()
    assert len(one) == 4
    assert one[-1] < one[0]
    for other in others:
        np.testing.assert_allclose(other, one, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["qwen3_5_text", "deepseek_v3", "gemma4_text with shared keys"])
def test_layers_of_other_kinds_begun_by_period(tmp_path, case):
    """Delta nets, latent attention, and layers that read another's keys: gone on with by period the losses are those of
    a run that was not ended, bit for bit; and with layers apart they are the same but for rounding."""
    families.save(families.torch_model(case), tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    tiny.write_rows(tmp_path / "train.jsonl", 48)
    tiny.write_rows(tmp_path / "held_out.jsonl", 12, seed=1)
    layout = lambda name: configured(tmp_path, "full", **{"execution.layer_layout": name})
    assert resolved(SCAN, open_base(str(tmp_path / "model")).decoder) not in (SCAN, UNROLLED)
    run(layout("scan"), tmp_path / "whole")
    run(layout("scan"), tmp_path / "again", stop_after=2)
    shutil.copytree(tmp_path / "again", tmp_path / "apart")
    run(layout("scan"), tmp_path / "again")
    run(layout("unrolled"), tmp_path / "apart")
    whole = losses(tmp_path / "whole")
    assert len(whole) == 4
    assert whole[-1] < whole[0]
    assert losses(tmp_path / "again") == whole
    np.testing.assert_allclose(losses(tmp_path / "apart"), whole, rtol=1e-5)


def test_the_result_is_read_in_every_layout(root):
    workdir, mesh = root / "read", inference_mesh(jax.devices()[:1])
    run(configured(root, "full", **{"execution.layer_layout": "scan"}), workdir)
    opened = open_run(str(workdir))
    assert resolved(SCAN, opened.base.decoder) == LAYOUT
    with jax.set_mesh(mesh):
        unrolled, stacked = (opened.params(layout, "float32", mesh) for layout in (UNROLLED, LAYOUT))
    assert set(stacked) == {"embedding", "final_norm", "layers_0_4_2", "layers_4_5_1"}
    jax.tree.map(np.testing.assert_array_equal, to_layout(stacked, UNROLLED), unrolled)


def test_random_weights_are_the_same_in_every_layout(root):
    configured(root, "full")
    decoder, mesh = open_base(str(root / "model")).decoder, inference_mesh(jax.devices()[:1])
    made = lambda layout: init_params(decoder, layout, "float32", placement(mesh), seed=3, deviation=0.1)
    stacked = made(LAYOUT)
    assert stacked.keys() == {"embedding", "final_norm", "layers_0_4_2", "layers_4_5_1"}
    jax.tree.map(np.testing.assert_array_equal, to_layout(stacked, UNROLLED), made(UNROLLED))


def test_a_checkpoint_of_one_stack_is_restored_by_period(tmp_path):
    """All layers in one stack: as they lie where no layer differs from the others."""
    mesh, rng = inference_mesh(jax.devices()[:1]), np.random.default_rng(0)
    layers = {f"layers_{n}": {"ffn": {"up": {"kernel": rng.normal(size=(3, 4))}}} for n in range(5)}
    layers = jax.tree.map(lambda x: jax.numpy.asarray(x, "float32"), layers)
    tree = lambda layout: {"trained": {"params": to_layout(layers, layout)}, "count": jax.numpy.ones(())}
    checkpoints = Checkpoints(epath.Path(tmp_path), keep_last=1)
    try:
        checkpoints.save(1, tree(SCAN), RunPosition(SCAN, 0, {}), {})
        checkpoints.wait()
        for layout in (LAYOUT, UNROLLED, SCAN):
            restored = checkpoints.restore(1, tree(layout), layout, mesh)
            assert reference.flat(restored).keys() == reference.flat(tree(layout)).keys()
            jax.tree.map(np.testing.assert_array_equal, restored, tree(layout))
    finally:
        checkpoints.close()
