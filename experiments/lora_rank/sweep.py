r"""Which rank does a LoRA need, and does the answer depend on the learning rate?

    python -m sft_jax.sweep --config=configs/sft.py:lora --sweep=experiments/lora_rank/sweep.py \
        --workdir=runs/lora_rank --config.data.train=train.jsonl --config.data.held_out=test.jsonl

Twelve runs: two ranks by two learning rates, each with three seeds. Alpha grows with the rank, so that the update has
the same scale.
"""

from sft_jax.sweeps import product, seeds, values, zip_


def get_sweep() -> list[dict]:
    """The runs, as overrides of the config."""
    return product(
        zip_(values("adapter.rank", [4, 32]), values("adapter.alpha", [8.0, 64.0])),
        values("optimizer.learning_rate", [2e-4, 1e-3]),
        seeds(3),
    )
