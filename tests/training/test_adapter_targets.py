"""Each target of an adapter by itself takes a step in the precision that is the default, on one device.

What is split over several devices is compiled otherwise; a CPU alone is where a product may have no kernel.
"""

import jax
import pytest

from sft_jax.models.adapters import METHODS
from sft_jax.runs.metric_log import read_metrics
from sft_jax.training import run
from tests import tiny
from tests.models import families

ATTENTION = tuple(f"attention/{name}" for name in ("query", "key", "value", "out"))
DENSE = tuple(f"ffn/{name}" for name in ("gate", "up", "down"))
EXPERTS = tuple(f"experts/{name}" for name in ("router", "gate", "up", "down"))
TARGETS = {
    "tied": ("embedding", *ATTENTION, *DENSE),
    "untied": ("embedding", "head", *ATTENTION, *DENSE),
    "experts": ("embedding", "head", *EXPERTS),
}
BESIDE_THE_HEAD = [(model, target) for model, targets in TARGETS.items() for target in targets if "/" not in target]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    made = {name: tmp_path_factory.mktemp(name) for name in TARGETS}
    for name, root in made.items():
        if name == "experts":
            families.save(families.torch_model("mixtral"), root / "model")
            tiny.tokenizer().save_pretrained(root / "model")
        else:
            tiny.write_checkpoint(root / "model", num_hidden_layers=1, tie_word_embeddings=name == "tied")
        tiny.write_rows(root / "train.jsonl", 8)
    return made


def take_a_step(root, workdir, **changes):
    settings = {"duration": "1 steps", "precision.matmul": "bfloat16", "optimizer.warmup": "0 steps"}
    settings |= {"batch.sequences": 2, "data.held_out": ""}
    config = tiny.config(root, "lora", **settings | changes)
    result = run(config, workdir, devices=jax.devices()[:1])
    assert result.step == 1
    (line,) = (line for line in read_metrics(workdir / "metrics.jsonl") if line["step"] == 1)
    assert line["train/skipped"] == 0
    assert line["train/grad_norm"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("model", "target"), [(m, target) for m, targets in TARGETS.items() for target in targets])
def test_a_target_by_itself(model, target, roots, tmp_path):
    take_a_step(roots[model], tmp_path / "run", **{"adapter.targets": (target,)})


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"lora"}))
@pytest.mark.parametrize(("model", "target"), BESIDE_THE_HEAD)
def test_other_methods_beside_embedding_and_head(method, model, target, roots, tmp_path):
    if model == "tied" and not METHODS[method].ON_TIED_EMBEDDING:
        pytest.skip("refused by name")
    take_a_step(roots[model], tmp_path / "run", **{"adapter.targets": (target,), "adapter.method": method})


@pytest.mark.parametrize("model", ["tied", "untied"])
def test_rows_of_new_tokens(model, roots, tmp_path):
    changes = {"model.new_tokens": ("<|x|>", "<|y|>"), "adapter.train_new_tokens": True, "adapter.method": "none"}
    take_a_step(roots[model], tmp_path / "run", **changes)


def test_experts_with_a_bound(roots, tmp_path):
    take_a_step(roots["experts"], tmp_path / "run", **{"experts.capacity": 1.5})
