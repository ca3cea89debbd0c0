"""A run of supervised fine-tuning as it was recorded: whatever is added beside it, its numbers stay."""

import hashlib
import json

import pytest

from sft_jax.data.batches import train_batches
from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from sft_jax.training.loop import run
from tests import tiny

EXAMPLES = "0f53a40d1e6c4c4fe05192d9f1563647d999be59933e70c0ca02025c64d6ee11"
BATCHES = "7b5d3ffab33bb1083c247bd22e87743e17651e5872e72e7a367acdd132e69114"
LOSSES = {
    "full": [
        6.439675596338757,
        5.470689521856672,
        4.630672725554436,
        3.9769540955896407,
        3.4820316795729473,
        3.2144923700350465,
    ],
    "lora": [
        6.439675596338757,
        6.252553811171188,
        5.906322060861895,
        5.531141741924694,
        5.222053057986621,
        5.078001028280763,
    ],
}


def test_examples_and_batches_to_the_bit(tmp_path):
    data = load_data(options_of(tiny.config(tmp_path)))
    tokens, weights = data.examples.tokens.astype("<i4"), data.examples.weights.astype("<f4")
    assert hashlib.sha256(tokens.tobytes() + weights.tobytes()).hexdigest() == EXAMPLES
    digest = hashlib.sha256()
    for batch in train_batches(data.examples, data.plan, 0, 4, threads=0):
        for name, array in sorted(batch.items()):
            digest.update(name.encode() + str(array.dtype).encode() + array.tobytes())
    assert digest.hexdigest() == BATCHES


@pytest.mark.parametrize("arg", LOSSES)
def test_losses(tmp_path, arg):
    """To what another kind of processor may round otherwise."""
    run(tiny.config(tmp_path, arg), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [line["train/loss"] for line in lines if "train/loss" in line]
    assert found == pytest.approx(LOSSES[arg], rel=2e-6)
