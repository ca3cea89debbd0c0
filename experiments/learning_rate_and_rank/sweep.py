r"""Which rank does a LoRA need, and does the answer depend on the learning rate?

    python -m sft_jax.sweep --config=configs/sft.py:lora --sweep=experiments/learning_rate_and_rank/sweep.py \
        --workdir=runs/rank --config.data.train=train.jsonl --config.data.held_out=test.jsonl

Twelve runs: two ranks by two learning rates, each with three seeds. Alpha grows with the rank, so that the update has
the same scale. The rows are those of the config.
"""

from experiments.short_titles.setting import setting_of
from sft_jax.sweeps import product, seeds, values, zip_


def get_sweep(arg: str = "") -> list[dict]:
    """The runs, as overrides of the config."""
    setting = setting_of(arg)
    return setting.few(
        product(
            zip_(values("adapter.rank", [4, 32]), values("adapter.alpha", [8.0, 64.0])),
            values("optimizer.learning_rate", [2e-4, 1e-3]),
            seeds(setting.seeds),
            setting.small,
        )
    )
