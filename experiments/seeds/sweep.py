r"""How far do runs differ that differ in nothing but their seed, and how many does a difference take?

    python -m experiments.short_titles
    python -m sft_jax.sweep --config=configs/short_titles.py --sweep=experiments/seeds/sweep.py --workdir=runs/seeds \
        --launcher=stacked

16 runs: two learning rates, each with eight seeds. A seed is that of the order of the rows and of the fresh adapter.
"""

from experiments.short_titles.setting import setting_of
from sft_jax.sweeps import product, seeds, values


def get_sweep(arg: str = "") -> list[dict]:
    """The runs, as overrides of the config."""
    setting = setting_of(arg)
    return setting.few(
        product(
            values("optimizer.learning_rate", [5e-4, 1e-3]),
            setting.rows(),
            seeds(8),
            setting.small,
        )
    )
