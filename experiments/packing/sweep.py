r"""Does it matter that examples share a sequence, where as many of them are trained?

    python -m experiments.short_titles
    python -m sft_jax.sweep --config=configs/short_titles.py --sweep=experiments/packing/sweep.py --workdir=runs/packing

Nine runs: best fit, the order of the file, and sequences of one example each, which are shorter and four to a step;
each with three seeds. All of them see 64 examples, so nearly the same supervised tokens, in as many steps as that
takes.
"""

from experiments.short_titles.setting import setting_of
from sft_jax.sweeps import fixed, product, seeds, values, zip_


def get_sweep(arg: str = "") -> list[dict]:
    """The runs, as overrides of the config."""
    setting = setting_of(arg)
    return setting.few(
        product(
            zip_(
                values("data.packing", ["best_fit", "sequential", "none"]),
                values("data.sequence_length", [384, 384, 160]),
                values("batch.sequences", [1, 1, 4]),
            ),
            setting.in_full(fixed("duration", "64 examples")),
            setting.rows(),
            seeds(setting.seeds),
            setting.small,
        )
    )
