r"""What does a model know that was tuned in one chat format and is asked in another?

    python -m experiments.short_titles
    python -m sft_jax.sweep --config=configs/short_titles.py --sweep=experiments/template_drift/sweep.py \
        --workdir=runs/template_drift

Twelve runs: the same titles in the model's own format, as plain text, under headings, and in all three in turn; each
with three seeds. Each run measures the answers behind questions in every format by themselves.
"""

from experiments.short_titles.rows import EVERY_FORMAT, FORMATS, held_out_of, train_of
from experiments.short_titles.setting import setting_of
from sft_jax.sweeps import fixed, product, seeds, values


def get_sweep(arg: str = "") -> list[dict]:
    """The runs, as overrides of the config."""
    setting = setting_of(arg)
    return setting.few(
        product(
            values("data.train", [setting.file(train_of(name)) for name in [*FORMATS, EVERY_FORMAT]]),
            fixed("data.held_out", setting.file(held_out_of("formats"))),
            fixed("data.reading.group_column", "source"),  # their format
            fixed("data.reading.text_end", "none"),  # the rows spell their end
            seeds(setting.seeds),
            setting.small,
        )
    )
