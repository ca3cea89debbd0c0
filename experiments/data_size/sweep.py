r"""How much do more rows help, at the same number of steps?

    python -m experiments.short_titles
    python -m sft_jax.sweep --config=configs/short_titles.py --sweep=experiments/data_size/sweep.py \
        --workdir=runs/data_size

Nine runs: 2, 8 and 32 rows, each with three seeds. The smaller sets are the first rows of the larger ones.
"""

from experiments.short_titles.rows import HELD_OUT, SIZES, of_size
from experiments.short_titles.setting import setting_of
from sft_jax.sweeps import fixed, product, seeds, values


def get_sweep(arg: str = "") -> list[dict]:
    """The runs, as overrides of the config."""
    setting = setting_of(arg)
    return setting.few(
        product(
            values("data.train", [setting.file(of_size(rows)) for rows in SIZES]),
            fixed("data.held_out", setting.file(HELD_OUT)),
            seeds(setting.seeds),
            setting.small,
        )
    )
