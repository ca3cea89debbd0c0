"""The loss of each example by itself: its definition, whatever the batch, the chunk of the head and the mesh."""

import re

import jax
import numpy as np
import pytest

from sft_jax.data.batches import held_out_batches
from sft_jax.data.tokenizing import tokenize_records
from sft_jax.evaluation import held_out_loss
from sft_jax.evaluation.held_out_loss import example_losses
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import make_mesh
from tests.evaluation.asking import RECORDS, record

MANY = (*RECORDS, record(4, "a", "red"), record(5, "tree of cat", "cat of tree of cat and I"))


@pytest.fixture(scope="module")
def examples(loaded):
    made, dropped = tokenize_records(list(MANY), loaded.renderer, max_example_tokens=512)
    assert not dropped
    return made


@pytest.fixture(scope="module")
def expected(loaded, examples):
    """-log p of each trained token, one example at a time, in float64."""
    found = []
    for number in range(len(examples)):
        tokens, weights = examples.example(number)
        scores = np.asarray(loaded.model.apply(loaded.variables, tokens[None])[0], np.float64)
        log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        trained = [position for position in range(1, len(tokens)) if weights[position] > 0]
        found.append((-sum(log_p[position - 1, tokens[position]] for position in trained), len(trained)))
    return found


HOW = {
    "as usual": (1, {}),
    "one at a time": (1, {"batch_sequences": 1}),
    "the last batch is not full": (1, {"batch_sequences": 3}),
    "three slots at a time": (1, {"batch_sequences": 4, "head_chunk_tokens": 12}),
    "all slots at once": (1, {"head_chunk_tokens": 0}),
    "8 devices": (8, {"head_chunk_tokens": 4}),
}


@pytest.mark.parametrize("how", HOW)
def test_it_is_its_definition(tiny_model, examples, expected, how):
    devices, options = HOW[how]
    mesh = make_mesh({"fsdp": -1, "tensor": 2 if devices > 1 else 1}, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        model = load_for_inference(str(tiny_model), mesh, "float32")
        found = example_losses(model.model, model.variables, examples, mesh, **options)
    assert [one["loss_weight"] for one in found] == [weight for _, weight in expected]
    assert [one["loss_sum"] for one in found] == pytest.approx([total for total, _ in expected], rel=2e-6)


def test_the_head_takes_all_examples_together(loaded, examples, on_mesh):
    """A loop over chunks of slots, and none over examples, which would leave devices idle that hold others."""
    targets = int(examples.supervised.max())
    batch = next(iter(held_out_batches(examples, 64, targets, 5, packing="none")))
    program = jax.make_jaxpr(held_out_loss._example_sums, static_argnums=(0, 1))
    text = lambda chunk: str(program(loaded.model, chunk, loaded.variables, batch))
    assert "scan[" not in text(0)
    lengths = re.findall(r"length=(\d+)", text(4))
    assert lengths == [str(-(-targets // 4))]
    assert lengths != ["5"]
