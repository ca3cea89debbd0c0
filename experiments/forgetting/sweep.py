r"""What does the new task cost of what the model could do, and what keeps it?

    python -m experiments.short_titles
    python -m sft_jax.sweep --config=configs/short_titles.py:replay --sweep=experiments/forgetting/sweep.py \
        --workdir=runs/forgetting

18 runs: a LoRA and all weights; by themselves, with a quarter of the sequences from pieces of Python, and with a
divergence from the base in the loss; each with three seeds. Titles and Python are measured afterwards (README.md).
"""

from experiments.short_titles.rows import HELD_OUT, TRAIN, held_out_of, train_of
from experiments.short_titles.setting import setting_of
from sft_jax.sweeps import fixed, product, seeds, values, zip_


def get_sweep(arg: str = "") -> list[dict]:
    """The runs, as overrides of the config."""
    setting = setting_of(arg)
    files = {
        "data.mixture.titles.path": setting.file(TRAIN),
        "data.mixture.general.path": setting.file(train_of("general")),
        "data.held_out": f"{setting.file(HELD_OUT)},{setting.file(held_out_of('general'))}",
    }
    return setting.few(
        product(
            zip_(
                values("adapter.method", ["lora", "none"]),
                values("optimizer.learning_rate", [1e-3, 1e-4]),
            ),
            zip_(
                values("data.mixture.general.weight", ["0", "1", "0"]),
                values("objective.kl_to_base", [0.0, 0.0, 0.3]),
            ),
            *(fixed(field, path) for field, path in files.items()),
            seeds(setting.seeds),
            setting.small,
        )
    )
