r"""How many wrong answers does tuning bear, and from which share on is the base better as it is?

    python -m experiments.short_titles
    python -m sft_jax.sweep --config=configs/short_titles.py --sweep=experiments/data_noise/sweep.py \
        --workdir=runs/data_noise

15 runs: none, 25, 50, 75 and 100 percent of the answers are those to another title, each with three seeds. The titles
that are measured have right answers. Each run measures the task before its first step too, which is the base.
"""

from configs.short_titles import titles
from experiments.short_titles.rows import HELD_OUT, WRONG_PERCENT, of_wrong
from experiments.short_titles.setting import setting_of
from sft_jax.sweeps import fixed, product, seeds, values


def get_sweep(arg: str = "") -> list[dict]:
    """The runs, as overrides of the config."""
    setting = setting_of(arg)
    return setting.few(
        product(
            values("data.train", [setting.file(of_wrong(percent)) for percent in [0, *WRONG_PERCENT]]),
            fixed("data.held_out", setting.file(HELD_OUT)),
            fixed("evaluation.tasks", {"titles": titles(setting.file(HELD_OUT), rows=setting.asked)}),
            seeds(setting.seeds),
            setting.small,
        )
    )
