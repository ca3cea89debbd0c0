"""What is trained of the weights: by pattern, the last layers, biases, norms; the rest has no moments."""

import jax
import numpy as np
import pytest

from configs import sft
from sft_jax.models.config import DecoderConfig
from sft_jax.models.variables import is_buffer
from sft_jax.options import weight_options
from sft_jax.runs.freezing import saved_shapes, weight_shapes
from sft_jax.runs.precision import with_dtypes
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh
from sft_jax.training import run
from tests import tiny
from tests.models import reference

QUIET = {
    "checkpoint.best_metric": "",
    "evaluation.every": "0 steps",
    "duration": "2 steps",
    "optimizer.warmup": "0 steps",
}
CASES = {
    "norms": ({"trained.weights": (".*norm/scale",)}, lambda path: "norm" in path),
    "attention": ({"trained.weights": ("layers/attention/.*",)}, lambda path: "/attention/" in path),
    "last layer": ({"trained.last_layers": 1}, lambda path: "layers_2/" in path),
    "biases": ({"trained.weights": (".*/bias",)}, lambda path: path.endswith("bias")),
    "norms of the last two": (
        {"trained.weights": (".*norm/scale",), "trained.last_layers": 2},
        lambda path: "norm" in path and ("layers_1/" in path or "layers_2/" in path),
    ),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tiny Llama with biases."""
    from tests.models.reference import save, torch_llama

    made = tmp_path_factory.mktemp("freezing")
    save(torch_llama(attention_bias=True, mlp_bias=True), made / "model")
    tiny.tokenizer().save_pretrained(made / "model")
    tiny.write_rows(made / "train.jsonl", 24)
    tiny.write_rows(made / "held_out.jsonl", 8, seed=1)
    return made


def loaded(source):
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        return reference.flat(load_for_inference(str(source), mesh, "float32").variables["params"])


@pytest.fixture(scope="module")
def before(root):
    return loaded(root / "model")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_is_trained_moves_and_the_rest_stays(root, before, case, tmp_path):
    changes, is_trained = CASES[case]
    kept = {}
    config = tiny.config(root, **QUIET, **changes)
    run(config, tmp_path / "run", evaluators={"keep": lambda model, state: kept.update(state=state) or {}})
    after = loaded(tmp_path / "run")
    moved = {path for path in before if np.abs(after[path] - before[path]).max() > 0}
    assert moved == {path for path in before if is_trained(path)}
    trained, moments = kept["state"].trained, kept["state"].opt_state[0]
    size = sum(leaf.size for leaf in jax.tree.leaves(trained))
    assert size == sum(before[path].size for path in moved)
    assert sum(leaf.size for leaf in jax.tree.leaves((moments.mu, moments.nu))) == 2 * size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained.weights": ("layers/attention",)}, "'layers/attention' matches no weight; there are: "),
        ({"trained.weights": ("(",)}, "is not a regular expression"),
        ({"trained.last_layers": 9}, "last_layers=9: the model has 3 layers"),
        ({"trained.last_layers": 1, "execution.layer_layout": "scan"}, "must be auto or unrolled, not scan"),
        ({"trained.last_layers": 1, "trained.weights": ("embedding",)}, "nothing to train"),
        ({"trained.weights": (".*norm/scale",), "optimizer.name": "muon"}, "made for kernels of layers, and none is"),
        ({"optimizer.groups": ("head: weight_decay=0",)}, "'head' matches no trained parameter"),
        ({"optimizer.groups": ("head weight_decay=0",)}, "is not '<pattern>: <option>=<number>"),
    ],
)
def test_what_names_nothing_is_refused(root, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tiny.config(root, **QUIET, **changes), tmp_path / "run")


def test_adapters_freeze_all_weights(root, tmp_path):
    with pytest.raises(ValueError, match=r"under --config\.adapter\.method=lora all weights are frozen"):
        run(tiny.config(root, "lora", **QUIET, **{"trained.last_layers": 1}), tmp_path / "run")


@pytest.mark.parametrize(("arg", "precision"), [("full", "params"), ("lora", "frozen")])
def test_buffers_are_not_trained_and_stay_in_float32(arg, precision):
    """Whatever the dtype of the weights; checkpoints of a full run hold them, those of adapters are beside the base."""
    made = sft.get_config(arg).copy_and_resolve_references()
    made.update_from_flattened_dict({f"precision.{precision}": "bfloat16"})
    sizes = {"vocab_size": 8, "num_layers": 2, "model_dim": 8, "num_heads": 2, "num_kv_heads": 2, "head_dim": 4}
    decoder = DecoderConfig(**sizes, ffn_dim=8, num_experts=4, experts_per_token=2, router_correction=True)
    options = weight_options(with_dtypes(made, "cpu"))
    trained, frozen = (reference.flat(tree) for tree in weight_shapes(options, decoder, "unrolled"))
    buffers = {f"params/layers_{layer}/experts/correction_bias" for layer in range(2)}
    assert {path for path in frozen if is_buffer(path)} == buffers
    assert not any(is_buffer(path) for path in trained)
    assert {str(frozen[path].dtype) for path in buffers} == {"float32"}
    weights = (trained if arg == "full" else frozen).items()
    assert {str(leaf.dtype) for path, leaf in weights if not is_buffer(path)} == {"bfloat16"}
    _, kept = saved_shapes(options, decoder, "unrolled")
    assert reference.flat(kept).keys() == (buffers if arg == "full" else set())
